"""The Open Inference Protocol as REST: an unmodified client of another make, and raw requests that do not fit."""

import gzip
import http.client
import json
import logging
import socket
import threading

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from offramp.bundle.preprocessing import preprocess
from offramp.errors import StageError
from offramp.runtime.tail import Tail, TailRequest
from offramp.serving.http import HttpServer
from offramp.serving.server import GrpcServer

PIXELS = 28 * 28


@pytest.fixture(scope="module")
def inputs(tail, digit_images):
    return preprocess(digit_images[0][:64], tail.bundle.manifest.preprocessing)


@pytest.fixture(scope="module")
def port(tail):
    with (
        GrpcServer(tail, port=0, workers=2, max_message_mb=1, max_elements=30_000) as server,
        HttpServer(server.service, port=0, max_message_mb=1) as beside,
    ):
        yield beside.port


@pytest.fixture(scope="module")
def client(port):
    """NVIDIA's own client, as it comes."""
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as found:
        yield found


def tensor(name, values, **kind):
    found = triton.InferInput(name, values.shape, {"float32": "FP32", "uint8": "UINT8"}[values.dtype.name])
    return found.set_data_from_numpy(values, **kind)


# --- an unmodified client of another make ---------------------------------------------------------------


def test_health_and_metadata(client, tail, name):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(f"{name}-tail-1-uint8", tail.bundle.digest)
    assert not client.is_model_ready(f"{name}-tail-2")
    assert not client.is_model_ready(name, "f" * 64)
    found = client.get_server_metadata()
    assert found["name"] == "offramp"
    assert found["version"]
    assert "binary_tensor_data" in found["extensions"]


def test_model_metadata_holds_the_digest_and_the_tensors(client, tail, name):
    (spec,) = tail.stages.wire(0, "uint8")
    for version in ("", tail.bundle.digest):
        found = client.get_model_metadata(f"{name}-tail-0-uint8", version)
        assert found == {
            "name": f"{name}-tail-0-uint8",
            "versions": [tail.bundle.digest],
            "platform": "onnx_offramp",
            "inputs": [{"name": spec.name, "datatype": "UINT8", "shape": [-1, *spec.shape]}],
            "outputs": [
                {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
                {"name": "exit", "datatype": "INT64", "shape": [-1]},
            ],
        }


def test_the_repository_index(client, tail, port):
    expected = [{"name": model, "version": tail.bundle.digest, "state": "READY"} for model in tail.models]
    found = client.get_model_repository_index()
    assert sorted(found, key=lambda m: m["name"]) == sorted(expected, key=lambda m: m["name"])
    for body, count in ((b"", len(expected)), (b'{"ready": true}', len(expected))):
        assert len(post(port, "/v2/repository/index", body)[2]) == count
    for bad in (b"[]", b"{", b'{"ready": 1}', b"[" * 100_000):
        assert post(port, "/v2/repository/index", bad)[0] == 400


@pytest.mark.parametrize("sent", [True, False], ids=["bytes", "JSON"])
@pytest.mark.parametrize("wanted", [True, False], ids=["bytes back", "JSON back"])
def test_infer_gives_the_local_answer_bit_for_bit(client, tail, name, inputs, sent, wanted):
    cuts = [("input", name, inputs[:2])]
    (packed,), _ = tail.stages.encode(0, "uint8", tail.stages.stage(0, [inputs[:2]])[0])
    cuts.append((tail.stages.wire(0, "uint8")[0].name, f"{name}-tail-0-uint8", packed))
    outputs = [triton.InferRequestedOutput(o, binary_data=wanted) for o in ("exit", "logits")]
    for tensor_name, model, values in cuts:
        x = tensor(tensor_name, values, binary_data=sent)
        answer = client.infer(model, [x], outputs=outputs, request_id="mine")
        local = tail.infer(TailRequest(model, {tensor_name: values}))
        assert answer.as_numpy("logits").tobytes() == local.logits.tobytes()
        assert answer.as_numpy("exit").tolist() == local.exits.tolist()
        response = answer.get_response()
        assert (response["id"], response["model_name"]) == ("mine", model)
        assert response["model_version"] == tail.bundle.digest
        assert response["parameters"]["server_ms"] > 0
        assert [o["name"] for o in response["outputs"]] == ["exit", "logits"]


def test_all_outputs_if_none_is_named_and_compressed_requests(client, tail, name, inputs):
    local = tail.infer(TailRequest(name, {"input": inputs[:4]}, final=True))
    for algorithm in (None, "gzip", "deflate"):
        answer = client.infer(
            name,
            [tensor("input", inputs[:4])],
            parameters={"final": True},
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert answer.as_numpy("exit").tolist() == [2] * 4
        assert answer.as_numpy("logits").tobytes() == local.logits.tobytes()


def test_a_version_or_a_digest_may_be_asked_for(client, tail, name, inputs):
    x = [tensor("input", inputs[:1])]
    for asked in ({"model_version": tail.bundle.digest}, {"parameters": {"digest": tail.bundle.digest}}):
        assert client.infer(name, x, **asked).as_numpy("logits").shape == (1, 10)
    for asked in ({"model_version": "f" * 64}, {"parameters": {"digest": "f" * 64}}):
        with pytest.raises(InferenceServerException, match=tail.bundle.digest[:12]) as caught:
            client.infer(name, x, **asked)
        assert caught.value.status() == "400"


def test_nested_data_as_the_protocol_has_it(port, tail, name, inputs):
    local = tail.infer(TailRequest(name, {"input": inputs[:2]}))
    for data in (inputs[:2].tolist(), inputs[:2].ravel().tolist()):
        asked = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 1, 28, 28], "data": data}]}
        status, headers, answer = post(port, f"/v2/models/{name}/infer", json.dumps(asked).encode())
        assert (status, headers["Content-Type"]) == (200, "application/json")
        logits = np.array(answer["outputs"][0]["data"], np.float32).reshape(answer["outputs"][0]["shape"])
        assert logits.tobytes() == local.logits.tobytes()


# --- refusals -------------------------------------------------------------------------------------------


def post(port, path, body, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, json.loads(response.read())
    finally:
        connection.close()


def good(**changes):
    entry = {"name": "input", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.5] * PIXELS}
    return {k: v for k, v in {**entry, **changes}.items() if v is not None}


def binary(size):
    return good(data=None, parameters={"binary_data_size": size})


ROWS = [[[[0.5] * 28] * 28]]
LONG_ROW = [[[[0.5] * 29] + [[0.5] * 28] * 26 + [[0.5] * 27]]]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body"),
        (b"{", "the body"),
        (b"\xff\xfe", "the body"),
        (b"[]", "the body"),
        (b'{"inputs": ' + b"[" * 100_000, "the body"),
        ({}, "inputs"),
        ({"inputs": 3}, "inputs"),
        ({"inputs": []}, "nothing"),
        ({"inputs": [{"name": "input"}]}, "inputs.0.datatype"),
        ({"inputs": [good(name="other")]}, "other"),
        ({"inputs": [good(), good()]}, "twice"),
        ({"inputs": [good(datatype="FP64")]}, "FP64"),
        ({"inputs": [good(datatype="BYTES")]}, "BYTES"),
        ({"inputs": [good(shape=[1, 28, 28])]}, "(1, 28, 28)"),
        ({"inputs": [good(shape=[1, 1, 28, 29])]}, "784 values"),
        ({"inputs": [good(shape=[-1, 1, 28, 28])]}, "-1"),
        ({"inputs": [good(shape=["1", 1, 28, 28])]}, "shape"),
        ({"inputs": [good(shape=[1.0, 1, 28, 28])]}, "shape"),
        ({"inputs": [good(shape=[1] * 40 + [PIXELS])]}, "dimensions"),
        ({"inputs": [good(shape=[0, 1, 28, 28], data=[])]}, "at least one"),
        ({"inputs": [good(shape=[10**400, 1, 28, 28])]}, "values"),
        ({"inputs": [good(data=["0.5"] * PIXELS)]}, "other values"),
        ({"inputs": [good(data=[True] * PIXELS)]}, "other values"),
        ({"inputs": [good(data=[None] * PIXELS)]}, "other values"),
        ({"inputs": [good(data=[{}] * PIXELS)]}, "other values"),
        ({"inputs": [good(data=[10**400] + [0.5] * (PIXELS - 1))]}, "larger values"),
        ({"inputs": [good(data=[1e300] * PIXELS)]}, "NaN or infinity"),
        ({"inputs": [good(data=LONG_ROW)]}, "nested"),
        ({"inputs": [good(data=[ROWS])]}, "nested"),
        ({"inputs": [good(data=[0.5, ROWS])]}, "values"),
        ({"inputs": [good(data=None)]}, "either"),
        ({"inputs": [good(parameters={"binary_data_size": 4})]}, "either"),
        ({"inputs": [binary(4 * PIXELS)]}, "0 bytes are left"),
        ({"inputs": [binary(-4)]}, "-4 bytes"),
        ({"inputs": [binary(True)]}, "binary_data_size"),
        ({"inputs": [good(parameters={"a": {"deep": 1}})]}, "parameters"),
        ({"inputs": [good()], "outputs": [{"name": "labels"}]}, "labels"),
        ({"inputs": [good()], "outputs": [{"name": "logits", "parameters": {"classification": 3}}]}, "classific"),
        ({"inputs": [good()], "outputs": [{"name": "logits", "parameters": {"binary_data": 3}}]}, "binary_data"),
        ({"inputs": [good()], "parameters": {"digest": 3}}, "digest"),
        ({"inputs": [good()], "parameters": {"final": "yes"}}, "final"),
        ({"inputs": [good()], "id": 3}, "id"),
    ],
)
def test_what_does_not_fit_is_a_bad_request(port, tail, name, body, why):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, headers, answer = post(port, f"/v2/models/{name}/infer", content)
    assert (status, list(answer)) == (400, ["error"])
    assert why in answer["error"]
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert len(answer["error"]) < 600
    for inside in (str(tail.bundle.path), "Traceback", ".py", "pydantic", "0.5, 0.5"):
        assert inside not in answer["error"]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("-1", "number"),
        ("ten", "number"),
        ("", "number"),
        ("9" * 30, "number"),
        ("²", "number"),
        ("99999", "bytes"),
    ],
)
def test_where_the_json_ends(port, name, header, why):
    body = json.dumps({"inputs": [good()]}).encode()
    headers = {"Inference-Header-Content-Length": header.encode("latin-1")}
    status, _, answer = post(port, f"/v2/models/{name}/infer", body, headers)
    assert status == 400
    assert why in answer["error"]


@pytest.mark.parametrize(
    ("sizes", "sent", "why"),
    [
        ([4 * PIXELS], 4 * PIXELS + 1, "1 bytes belong to no tensor"),
        ([4 * PIXELS], 4 * PIXELS - 1, "bytes are left"),
        ([4], 4, "got 4"),
    ],
)
def test_bytes_that_do_not_fit(port, name, sizes, sent, why):
    head = json.dumps({"inputs": [binary(size) for size in sizes]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, _, answer = post(port, f"/v2/models/{name}/infer", head + bytes(sent), headers)
    assert status == 400
    assert why in answer["error"]


def test_uint8_and_bool_beyond_their_type(port, name):
    for value, why in ((256, "0 to 255"), (-1, "0 to 255"), (1.0, "other values")):
        entry = good(name="input_uint8", datatype="UINT8", data=[value] * PIXELS)
        status, _, answer = post(port, f"/v2/models/{name}-uint8/infer", json.dumps({"inputs": [entry]}).encode())
        assert (status, why in answer["error"]) == (400, True)


def test_an_unknown_model_is_not_found(client, port, name):
    for path in ("", "/ready", "/versions/1", "/versions/1/ready"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", f"/v2/models/other{path}")
        assert connection.getresponse().status == 404
        connection.close()
    assert post(port, "/v2/models/other/infer", json.dumps({"inputs": [good()]}).encode())[0] == 404
    with pytest.raises(InferenceServerException, match=f"{name}-tail-0"):
        client.get_model_metadata("other")


def test_limits(port, client, name, inputs):
    many = tensor("input", inputs[:40])
    with pytest.raises(
        InferenceServerException, match="31360 tensor elements; one request may hold 30000"
    ) as caught:
        client.infer(name, [many])
    assert caught.value.status() == "400"
    path = f"/v2/models/{name}/infer"
    assert post(port, path, b" " * (2**20 + 1))[0] == 413
    assert post(port, path, iter([b" " * 2**16] * 17))[0] == 413  # in chunks, so nobody says how many come
    bomb = gzip.compress(bytes(2**24))
    assert post(port, path, bomb, {"Content-Encoding": "gzip"})[0] == 413
    for encoding in ("gzip", "deflate"):
        assert post(port, path, b"no such thing", {"Content-Encoding": encoding})[0] == 400
    status, _, answer = post(port, path, b" " * (2**17 + 1))
    assert (status, "bytes of JSON" in answer["error"]) == (400, True)


class BrokenTail(Tail):
    error: Exception

    def admit(self, request):
        raise self.error


@pytest.mark.parametrize("error", [StageError("stages/stage_1.onnx: /srv/secret"), RuntimeError("/srv/secret")])
def test_what_breaks_inside_stays_inside(tail, name, error, caplog):
    broken = BrokenTail(tail.stages)
    broken.error = error
    body = json.dumps({"inputs": [good()]}).encode()
    with GrpcServer(broken, port=0) as server, HttpServer(server.service, port=0) as beside:
        with caplog.at_level(logging.ERROR, logger="offramp.server"):
            status, _, answer = post(beside.port, f"/v2/models/{name}/infer", body)
        assert (status, answer) == (500, {"error": "the server could not run this request"})
    assert "request failed" in caplog.text  # the operator learns of it


class Held:
    """Stages that compute only once `go` is set."""

    def __init__(self, stages):
        self._stages, self.go = stages, threading.Event()

    def __getattr__(self, name):
        return getattr(self._stages, name)

    def stage(self, index, tensors):
        assert self.go.wait(60)
        return self._stages.stage(index, tensors)


def test_a_full_queue_refuses_and_health_still_answers(tail, name):
    held = Held(tail.stages)
    body = json.dumps({"inputs": [good()]}).encode()
    found = []
    with GrpcServer(Tail(held), port=0, queue=1) as server, HttpServer(server.service, port=0) as beside:

        def ask():
            found.append(post(beside.port, f"/v2/models/{name}/infer", body)[0])

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        for _ in range(3000):
            if len(found) == 3:
                break
            threading.Event().wait(0.01)
        assert found == [429] * 3
        with triton.InferenceServerClient(f"127.0.0.1:{beside.port}") as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready(name)
        held.go.set()
        for thread in threads:
            thread.join(30)
        assert sorted(found) == [200, 200, 429, 429, 429]


def test_bodies_that_never_end_give_their_places_back(tail, name, monkeypatch):
    monkeypatch.setattr("offramp.serving.http._BODY_S", 1.0)
    body = json.dumps({"inputs": [good()]}).encode()
    path = f"/v2/models/{name}/infer"
    half = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:99]
    with GrpcServer(tail, port=0, queue=1) as server, HttpServer(server.service, port=0) as beside:
        peers = [socket.create_connection(("127.0.0.1", beside.port), 30) for _ in range(2)]
        try:
            for peer in peers:
                peer.sendall(half)
            for _ in range(3000):
                if beside._bodies == 2:
                    break
                threading.Event().wait(0.01)
            assert post(beside.port, path, body)[0] == 429
            with triton.InferenceServerClient(f"127.0.0.1:{beside.port}") as client:
                assert client.is_server_ready()
            for peer in peers:
                assert b" 408 " in peer.recv(100)
            assert post(beside.port, path, body)[0] == 200
        finally:
            for peer in peers:
                peer.close()
