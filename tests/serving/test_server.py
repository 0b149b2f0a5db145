import logging
import socket
import threading

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.utils import InferenceServerException

from offramp.bundle.preprocessing import preprocess
from offramp.errors import ConfigError, DeadlineError, PortError, ServerBusyError, StageError
from offramp.runtime.tail import Tail, TailRequest
from offramp.serving.channel import GrpcChannel
from offramp.serving.server import GrpcServer


@pytest.fixture(scope="module")
def inputs(tail, digit_images):
    return preprocess(digit_images[0], tail.bundle.manifest.preprocessing)


@pytest.fixture(scope="module")
def server(tail):
    with GrpcServer(tail, port=0, workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    """NVIDIA's own client, as it comes."""
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as found:
        yield found


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield rpc.GRPCInferenceServiceStub(channel)


def tensor(name, values):
    found = triton.InferInput(name, values.shape, {"float32": "FP32", "uint8": "UINT8"}[values.dtype.name])
    found.set_data_from_numpy(values)
    return found


def sent(tail, x, cut, mode):
    tensors = [x]
    for i in range(cut + 1):
        tensors, _ = tail.stages.stage(i, tensors)
    (packed,), _ = tail.stages.encode(cut, mode, tensors)
    (spec,) = tail.stages.wire(cut, mode)
    return spec.name, packed


# --- an unmodified client of another make ---------------------------------------------------------------


def test_health_and_metadata(client, tail, name):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(f"{name}-tail-1-uint8")
    assert not client.is_model_ready(f"{name}-tail-2")
    found = client.get_server_metadata()
    assert (found.name, bool(found.version)) == ("offramp", True)


def test_model_metadata_holds_the_digest_and_the_tensors(client, tail, name):
    found = client.get_model_metadata(f"{name}-tail-0-uint8")
    assert list(found.versions) == [tail.bundle.digest]
    (spec,) = tail.stages.wire(0, "uint8")
    assert [(t.name, t.datatype, list(t.shape)) for t in found.inputs] == [(spec.name, "UINT8", [-1, *spec.shape])]
    assert [(t.name, t.datatype, list(t.shape)) for t in found.outputs] == [
        ("logits", "FP32", [-1, 10]),
        ("exit", "INT64", [-1]),
    ]


@pytest.mark.parametrize(
    ("cut", "mode", "suffix"),
    [(-1, "float", ""), (-1, "uint8", "-uint8"), (0, "float", "-tail-0"), (0, "uint8", "-tail-0-uint8")],
)
def test_infer_gives_the_local_answer_bit_for_bit(client, tail, name, inputs, cut, mode, suffix):
    for x in inputs[:4]:
        tensor_name, packed = sent(tail, x[None], cut, mode)
        answer = client.infer(name + suffix, [tensor(tensor_name, packed)], request_id="mine")
        local = tail.infer(TailRequest(name + suffix, {tensor_name: packed}))
        assert answer.as_numpy("logits").tobytes() == local.logits.tobytes()
        assert answer.as_numpy("exit").tolist() == local.exits.tolist()
        response = answer.get_response()
        assert (response.id, response.model_version) == ("mine", tail.bundle.digest)
        assert response.parameters["server_ms"].double_param > 0


def test_final_forces_the_last_exit(client, name, inputs):
    early = client.infer(name, [tensor("input", inputs[:200])])
    final = client.infer(name, [tensor("input", inputs[:200])], parameters={"final": True})
    assert early.as_numpy("exit").min() < 2
    assert set(final.as_numpy("exit").tolist()) == {2}


def test_a_message_beyond_grpcs_four_mebibytes(client, tail, name, inputs):
    _, cut = sent(tail, inputs[:800], 0, "float")
    batch = np.concatenate([cut] * (1 + 5 * 2**20 // cut.nbytes))
    assert batch.nbytes > 4 * 2**20
    answer = client.infer(f"{name}-tail-0", [tensor("cut_0", batch)], parameters={"final": True})
    logits = answer.as_numpy("logits")
    assert logits.shape == (len(batch), 10)
    alone = tail.infer(TailRequest(f"{name}-tail-0", {"cut_0": batch[:1]}, final=True))
    np.testing.assert_allclose(logits[0], alone.logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [["exit"], ["exit", "logits"]])
def test_outputs_may_be_chosen(client, name, inputs, wanted):
    outputs = [triton.InferRequestedOutput(o) for o in wanted]
    response = client.infer(name, [tensor("input", inputs[:2])], outputs=outputs).get_response()
    assert [o.name for o in response.outputs] == wanted


def test_typed_contents_are_taken_too(stub, tail, name, inputs):
    message = pb.ModelInferRequest(model_name=name)
    entry = message.inputs.add(name="input", datatype="FP32", shape=[1, 1, 28, 28])
    entry.contents.fp32_contents.extend(inputs[0].ravel().tolist())
    answer = stub.ModelInfer(message)
    local = tail.infer(TailRequest(name, {"input": inputs[:1]}))
    assert answer.raw_output_contents[0] == local.logits.tobytes()


# --- refusals -------------------------------------------------------------------------------------------


def said(code, message, tail):
    """The error's text holds nothing of the server's inside."""
    assert str(tail.bundle.path) not in message
    for inside in ("Traceback", ".py", "site-packages", "/srv", "/tmp", "onnxruntime"):
        assert inside not in message, message
    assert isinstance(code, grpc.StatusCode)


def refused(stub, message, tail):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message)
    code, details = caught.value.code(), caught.value.details()
    said(code, details, tail)
    return code, details


def message_of(model, tensors, digest=None):
    message = pb.ModelInferRequest(model_name=model)
    for tensor_name, (datatype, shape, raw) in tensors.items():
        message.inputs.add(name=tensor_name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw)
    if digest is not None:
        message.parameters["digest"].string_param = digest
    return message


PIXELS = 28 * 28
GOOD = ("FP32", [1, 1, 28, 28], bytes(4 * PIXELS))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({}, "nothing"),
        ({"other": GOOD}, "other"),
        ({"input": GOOD, "other": GOOD}, "other"),
        ({"input": ("FP32", [1, 28, 28], bytes(4 * PIXELS))}, "(1, 28, 28)"),
        ({"input": ("UINT8", [1, 1, 28, 28], bytes(PIXELS))}, "uint8"),
        ({"input": ("FP64", [1, 1, 28, 28], bytes(8 * PIXELS))}, "FP64"),
        ({"input": ("FP32", [1, 1, 28, 28], bytes(4))}, "got 4"),
        ({"input": ("FP32", [-1, 1, 28, 28], bytes(4))}, "-1"),
        ({"input": ("FP32", [0, 1, 28, 28], b"")}, "at least one"),
        ({"input": ("FP32", [1, 1, 28, 28], np.full(PIXELS, np.nan, "<f4").tobytes())}, "NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_invalid_arguments(stub, tail, name, tensors, why):
    code, details = refused(stub, message_of(name, tensors), tail)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert why in details


def test_typed_values_beyond_their_type_are_invalid_arguments(stub, tail, name):
    message = pb.ModelInferRequest(model_name=f"{name}-uint8")
    entry = message.inputs.add(name="input_uint8", datatype="UINT8", shape=[1, 1, 28, 28])
    entry.contents.uint_contents.extend([256] * PIXELS)
    assert refused(stub, message, tail)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_output_is_an_invalid_argument(stub, tail, name):
    message = message_of(name, {"input": GOOD})
    message.outputs.add(name="labels")
    code, details = refused(stub, message, tail)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "labels" in details


def test_an_unknown_model_is_not_found(stub, client, tail, name):
    code, details = refused(stub, message_of("other", {"input": GOOD}), tail)
    assert code is grpc.StatusCode.NOT_FOUND
    assert f"{name}-tail-0" in details
    with pytest.raises(InferenceServerException) as caught:
        client.get_model_metadata("other")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_another_digest_is_a_failed_precondition(stub, tail, name):
    code, details = refused(stub, message_of(name, {"input": GOOD}, digest="f" * 64), tail)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert tail.bundle.digest[:12] in details
    assert stub.ModelInfer(message_of(name, {"input": GOOD}, digest=tail.bundle.digest)).outputs


def test_the_server_still_answers_after_refusals(stub, name):
    assert len(stub.ModelInfer(message_of(name, {"input": GOOD})).outputs) == 2


class BrokenTail(Tail):
    error: Exception

    def admit(self, request):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        StageError("stages/stage_1.onnx failed: /srv/secret"),
        RuntimeError("/srv/secret"),
        KeyError("/srv/secret"),
    ],
)
def test_what_breaks_inside_stays_inside(tail, name, error, caplog):
    broken = BrokenTail(tail.stages)
    broken.error = error
    with GrpcServer(broken, port=0) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        with caplog.at_level(logging.ERROR, logger="offramp.server"):
            code, details = refused(stub, message_of(name, {"input": GOOD}), tail)
        assert code is grpc.StatusCode.INTERNAL
        assert "secret" not in details
        assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert "request failed" in caplog.text  # the operator learns of it


# --- limits ---------------------------------------------------------------------------------------------


class WaitingStages:
    """Stages that compute only once `go` is set, and count how many batches they hold."""

    def __init__(self, stages):
        self._stages, self.go, self.most, self._inside = stages, threading.Event(), 0, 0
        self._lock = threading.Lock()

    def __getattr__(self, name):
        return getattr(self._stages, name)

    def stage(self, index, tensors):
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        try:
            assert self.go.wait(60)
            return self._stages.stage(index, tensors)
        finally:
            with self._lock:
                self._inside -= 1


def fill(channel, request, at_most=50):
    """Sends requests that nobody answers until one is refused; gives how many were not."""
    for admitted in range(at_most):
        try:
            channel.infer(request, timeout_s=0.2)
        except DeadlineError:
            continue
        except ServerBusyError as error:
            return admitted, str(error)
    raise AssertionError(f"{at_most} requests and none refused")


@pytest.mark.parametrize(("workers", "queue"), [(1, 2), (2, 0)])
def test_a_full_queue_refuses_and_health_still_answers(tail, name, inputs, workers, queue):
    waiting = WaitingStages(tail.stages)
    request = TailRequest(name, {"input": inputs[:1]})
    with GrpcServer(Tail(waiting), port=0, workers=workers, queue=queue) as server:
        channel = GrpcChannel(f"127.0.0.1:{server.port}")
        try:
            admitted, refusal = fill(channel, request)
            assert admitted == workers + queue
            assert "queue is full" in refusal
            with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
                assert client.is_server_live(client_timeout=10)
                assert client.is_server_ready(client_timeout=10)
                assert client.is_model_ready(name, client_timeout=10)
                assert client.get_model_metadata(name, client_timeout=10).name == name
            assert waiting.most == workers
            waiting.go.set()
            for _ in range(100):  # the work given up by its clients is finished first
                try:
                    assert channel.infer(request, timeout_s=10).logits.shape == (1, 10)
                    break
                except ServerBusyError:
                    threading.Event().wait(0.02)
            else:
                raise AssertionError("still busy")
        finally:
            waiting.go.set()
            channel.close()


def test_many_clients_at_once_get_their_own_answers(server, tail, name, inputs):
    channel = GrpcChannel(f"127.0.0.1:{server.port}")
    answers = {}

    def ask(i):
        answers[i] = channel.infer(TailRequest(name, {"input": inputs[i : i + 1]}, final=True), 30).logits

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    channel.close()
    for i in range(12):
        local = tail.infer(TailRequest(name, {"input": inputs[i : i + 1]}, final=True))
        np.testing.assert_allclose(answers[i], local.logits, rtol=1e-5, atol=1e-5)  # some ran together


def test_a_message_beyond_the_limit_is_refused(tail, name, inputs):
    with GrpcServer(tail, port=0, max_message_mb=1) as server:
        channel = GrpcChannel(f"127.0.0.1:{server.port}")
        with pytest.raises(ServerBusyError):  # RESOURCE_EXHAUSTED is gRPC's own word for it
            channel.infer(TailRequest(name, {"input": inputs[:400]}), 30)
        channel.close()


def test_a_port_in_use(tail, server):
    with pytest.raises(PortError, match=str(server.port)):
        GrpcServer(tail, port=server.port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortError, match="in use"):
            GrpcServer(tail, port=other.getsockname()[1])


def test_a_host_that_is_not_here(tail):
    with pytest.raises(PortError, match=r"192\.0\.2\.1"):
        GrpcServer(tail, host="192.0.2.1", port=0)


@pytest.mark.parametrize("port", [70000, -1])
def test_a_number_that_is_no_port(tail, port):
    with pytest.raises((PortError, ConfigError), match=str(port)):
        GrpcServer(tail, port=port).close()


@pytest.mark.parametrize(
    "bad", [{"workers": 0}, {"workers": -1}, {"queue": -1}, {"max_elements": 0}, {"max_batch": 0}]
)
def test_bad_settings(tail, bad):
    before = threading.active_count()
    with pytest.raises(ConfigError):
        GrpcServer(tail, port=0, **{"workers": 2, **bad})
    assert threading.active_count() == before


def test_a_port_that_is_taken_leaves_no_worker_behind(tail):
    with GrpcServer(tail, port=0, workers=2) as server:
        before = threading.active_count()
        with pytest.raises(PortError, match=str(server.port)):
            GrpcServer(tail, port=server.port, workers=2)
        assert threading.active_count() == before


def test_a_closed_server_frees_its_port(tail, name):
    with GrpcServer(tail, port=0) as server:
        port = server.port
    with GrpcServer(tail, port=port) as again:
        assert again.port == port


def test_wait_returns_once_closed(tail):
    server = GrpcServer(tail, port=0)
    waiter = threading.Thread(target=server.wait)
    waiter.start()
    server.close()
    waiter.join(10)
    assert not waiter.is_alive()
