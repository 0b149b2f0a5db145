"""Hostile requests over both transports, from a seed: no crash, no hang, the right codes, nothing of the inside.

`python -m pytest -m slow -rP tests/serving/test_hostile.py` sends 10,000 and prints what was answered.
"""

import contextlib
import http.client
import json
import random
import re
import select
import socket
import threading
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import pytest
from mutation import NASTY, mutated_bytes, mutated_json
from tritonclient.grpc import service_pb2 as pb

from offramp.bundle.bundle import Bundle
from offramp.observe.server_metrics import ServerMetrics
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest
from offramp.serving.http import HttpServer
from offramp.serving.server import GrpcServer

SERVICE = "/inference.GRPCInferenceService/"
PIXELS = 28 * 28
X = np.linspace(0, 1, PIXELS, dtype=np.float32).reshape(1, 1, 28, 28)
#: A hang shows as one of the others.
FINE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"}
#: 501: a way of transfer that no HTTP server has to know.
FINE_HTTP = {200, 400, 404, 405, 408, 411, 413, 414, 415, 417, 431, 501}
INSIDE = re.compile(r"Traceback|File \"|\.py\b|site-packages|onnxruntime|/tmp/|/home/|/root/|0x[0-9a-f]{8}")
TEXTS = [value for value in NASTY if isinstance(value, str)]
NUMBERS = [-1, 0, 1, 2, 28, 2**31, 2**62, -(2**63), 2**63 - 1]


@pytest.fixture(scope="module")
def tail(digits_bundle):
    return Tail(Stages(Bundle.load(digits_bundle)))


class Target:
    """A server with both ports, and the answer that it must still give afterwards."""

    def __init__(self, tail):
        self.tail, self.name = tail, tail.bundle.manifest.name
        self._grpc = GrpcServer(tail, port=0, workers=2, max_message_mb=1, max_elements=100_000)
        self._http = HttpServer(self._grpc.service, ServerMetrics().registry, port=0, max_message_mb=1)
        self.port = self._http.port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self._grpc.port}")
        self.expected = tail.infer(TailRequest(self.name, {"input": X})).logits

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        self._http.__exit__(None, None, None)
        self._grpc.close()

    def message(self, model=None):
        found = pb.ModelInferRequest(model_name=self.name if model is None else model, id="1")
        found.inputs.add(name="input", datatype="FP32", shape=X.shape)
        found.raw_input_contents.append(X.tobytes())
        return found

    def call(self, method, content):
        """The code and text of a gRPC answer, and its bytes."""
        try:
            response = self.channel.unary_unary(SERVICE + method)(content, timeout=20)
        except grpc.RpcError as error:
            return error.code().name, error.details() or "", b""
        return "OK", "", response

    def send(self, content):
        """The status and body that HTTP answers to raw bytes; 0 if it only hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), 20) as peer:
            peer.settimeout(20)
            answer = b""
            with contextlib.suppress(ConnectionError):
                peer.sendall(content)
                select.select([peer], [], [], 0.1)
                peer.shutdown(socket.SHUT_WR)  # it may wait for more, or keep the connection
                while part := peer.recv(65536):
                    answer += part
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        found = re.match(rb"HTTP/\d\.\d (\d{3}) ", answer)
        assert found or not answer, answer[:200]
        return int(found[1]) if found else 0, answer.decode("utf-8", "replace")

    def still_answers(self):
        code, text, response = self.call("ModelInfer", self.message().SerializeToString())
        assert code == "OK", text
        assert pb.ModelInferResponse.FromString(response).raw_output_contents[0] == self.expected.tobytes()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("POST", f"/v2/models/{self.name}/infer", json.dumps({"inputs": [ENTRY]}))
        logits = json.loads(connection.getresponse().read())["outputs"][0]["data"]
        connection.close()
        assert np.array(logits, np.float32).tobytes() == self.expected.tobytes()


ENTRY = {"name": "input", "datatype": "FP32", "shape": list(X.shape), "data": X.ravel().tolist()}
METHODS = {
    "ModelInfer": None,
    "ServerLive": pb.ServerLiveRequest(),
    "ServerReady": pb.ServerReadyRequest(),
    "ServerMetadata": pb.ServerMetadataRequest(),
    "ModelReady": pb.ModelReadyRequest(name="digits", version="1"),
    "ModelMetadata": pb.ModelMetadataRequest(name="digits", version="1"),
    "RepositoryIndex": pb.RepositoryIndexRequest(ready=True),
    "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name="digits"),
    "ModelStatistics": pb.ModelStatisticsRequest(name="digits"),
    "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest(name="a", key="/b", byte_size=8),
}


def shaken(draw, message):
    """A ModelInferRequest with a few of its fields made wrong, but a message still."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        entry = draw.choice(message.inputs) if message.inputs else message.inputs.add()
        match draw.randrange(12):
            case 0:
                message.model_name = draw.choice(TEXTS)
            case 1:
                message.model_version = draw.choice(TEXTS)
            case 2:
                entry.name = draw.choice(TEXTS)
            case 3:
                entry.datatype = draw.choice((*TEXTS, "FP64", "INT64", "UINT8", "BOOL", "BYTES"))
            case 4:
                entry.shape.append(draw.choice(NUMBERS))
            case 5 if entry.shape:
                entry.shape[draw.randrange(len(entry.shape))] = draw.choice(NUMBERS)
            case 6:
                entry.shape.extend([draw.choice((1, 2, 2**62))] * draw.choice((10, 100, 10_000)))
            case 7:
                message.raw_input_contents.append(draw.randbytes(draw.choice((0, 1, 3136))))
            case 8 if message.raw_input_contents:
                del message.raw_input_contents[-1]
                entry.contents.fp32_contents.extend(
                    [draw.choice((0.5, 1e39, float("nan")))] * draw.choice((1, 784))
                )
            case 9:
                message.parameters[draw.choice(("digest", "final", ""))].string_param = draw.choice(TEXTS)
            case 10:
                message.outputs.add(name=draw.choice((*TEXTS, "logits")))
            case 11 if message.raw_input_contents:
                message.raw_input_contents[0] = draw.choice((b"\xff", b"\x80\x7f")) * draw.choice((1, 1568, 3136))
    return message


def attack_grpc(target, seed):
    draw = random.Random(seed)
    method = draw.choice(("ModelInfer", "ModelInfer", "ModelInfer", *METHODS))
    valid = METHODS[method] or target.message(draw.choice([*target.tail.models, None]))
    match draw.randrange(4):
        case 0:
            content = draw.randbytes(draw.choice((0, 1, 7, 100, 5000)))
        case 1:
            content = mutated_bytes(draw, valid.SerializeToString())
        case 2 | 3 if method == "ModelInfer":
            content = shaken(draw, valid).SerializeToString()
        case _:
            content = valid.SerializeToString() * draw.choice((1, 2, 400))
    code, text, _ = target.call(method, content)
    assert code in FINE, (seed, method, code, text)
    assert not INSIDE.search(text), (seed, text)
    assert str(target.tail.bundle.path) not in text
    return code


MODEL = "/v2/models/{}"
PATHS = ("/v2", "/v2/health/live", MODEL, f"{MODEL}/ready", f"{MODEL}/versions/1/infer", "/metrics")
NAMES = ("%00", "%ff", "..%2f..", "%ed%a0%80", "a" * 9000)
FIELDS = ("Content-Encoding", "Transfer-Encoding", "Expect", "Content-Length", "Range")
VALUES = ("gzip", "deflate", "br", "zstd", "chunked", "chunked, gzip", "100-continue", "-1", "9" * 11, "é")


def attack_http(target, seed):
    draw = random.Random(seed)
    infer = f"/v2/models/{target.name}/infer"
    if draw.randrange(4):
        method, path = "POST", draw.choice((infer, infer, infer, "/v2/repository/index"))
    else:
        method = draw.choice(("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "TRACE", "FOO"))
        path = draw.choice(PATHS).format(draw.choice((target.name, *NAMES)))
    asked = {"inputs": [dict(ENTRY)], "parameters": {"final": True}, "outputs": [{"name": "logits"}]}
    raw = b""
    if draw.randrange(2):
        del asked["inputs"][0]["data"]
        raw = X.tobytes()
        asked["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}
    kind = draw.randrange(4)
    text = json.dumps(mutated_json(draw, asked) if kind == 0 else asked).encode()
    length, body = len(text), text + raw
    if kind == 1:
        body = mutated_bytes(draw, body)
    headers = {"Host": "x", "Content-Length": len(body), "Connection": "close"}
    if raw or not draw.randrange(8):
        headers["Inference-Header-Content-Length"] = length
    if not draw.randrange(6):
        headers[draw.choice(FIELDS)] = draw.choice(VALUES)
    if not draw.randrange(8):
        headers["Inference-Header-Content-Length"] = draw.choice(
            (-1, 0, 1, length - 1, length + 1, 2**63, "x", "")
        )
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    content = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body
    if kind == 2 and not draw.randrange(2):
        content = mutated_bytes(draw, content[: 400 + len(body)])
    status, answer = target.send(content)
    assert status in FINE_HTTP | {0}, (seed, status, answer[:500])
    assert not INSIDE.search(answer), (seed, answer[:500])
    assert str(target.tail.bundle.path) not in answer
    return status


def resident_mb():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def test_hostile_requests_over_grpc(tail):
    with Target(tail) as target:
        codes = Counter(attack_grpc(target, seed) for seed in range(400))
        target.still_answers()
    assert len(codes) >= 4, codes


def test_hostile_requests_over_http(tail):
    with Target(tail) as target:
        codes = Counter(attack_http(target, seed) for seed in range(400))
        target.still_answers()
    assert len(codes) >= 4, codes
    assert codes[0] < 160, codes  # else too little of it arrives to be worth the name


def test_a_shape_whose_product_takes_hours_is_refused_at_once(tail):
    with Target(tail) as target:
        message = target.message()
        message.inputs[0].shape.extend([2**62] * 100_000)
        code, text, _ = target.call("ModelInfer", message.SerializeToString())
        assert (code, "dimensions" in text) == ("INVALID_ARGUMENT", True)


def test_what_unpacks_to_more_than_the_limit_is_refused(tail):
    message = pb.ModelInferRequest(model_name="x")
    message.raw_input_contents.append(bytes(2**24))
    with Target(tail) as target:
        method = target.channel.unary_unary(f"{SERVICE}ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            method(message.SerializeToString(), timeout=20, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        target.still_answers()


def test_clients_that_stall_keep_nobody_from_answers(tail):
    """Half a request from each of so many that they would fill every place of the queue."""
    peers = []
    with Target(tail) as target:
        try:
            for _ in range(60):
                peer = socket.create_connection(("127.0.0.1", target.port), 10)
                peer.sendall(b"POST /v2/models/x/infer HTTP/1.1\r\nHost: x\r\n")  # its headers never end
                peers.append(peer)
            target.still_answers()
        finally:
            for peer in peers:
                peer.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_hostile_requests(tail):
    with Target(tail) as target:
        codes, threads, memory = Counter(), [], []
        for part in range(10):
            for seed in range(1000 * part, 1000 * part + 500):
                codes[attack_grpc(target, seed)] += 1
                codes[attack_http(target, 10_000 + seed)] += 1
            target.still_answers()
            threads.append(threading.active_count())
            memory.append(resident_mb())
        print(f"10,000 requests: {dict(codes.most_common())}")
        print(f"resident MB after each thousand: {[round(mb) for mb in memory]}; threads {threads}")
        assert max(threads) <= 150  # as many as may be under way, on either port
        assert memory[-1] < 1.05 * memory[2]
