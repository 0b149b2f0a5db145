import socket
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from offramp.bundle.bundle import Bundle
from offramp.bundle.preprocessing import preprocess
from offramp.errors import (
    AccessError,
    AddressError,
    DeadlineError,
    DigestMismatchError,
    ProtocolError,
    ServerBusyError,
    ServerRefusedError,
    ServerUnavailableError,
)
from offramp.policy.base import Action, Policy
from offramp.runtime.edge import Edge
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest
from offramp.serving.channel import GrpcChannel, parse_address
from offramp.serving.server import GrpcServer
from offramp.serving.wire import response_message

REQUEST = TailRequest("m", {"x": np.zeros((1, 2), np.float32)})


class Always(Policy):
    def __init__(self, action):
        self.action = action

    def choose(self, context):
        return self.action


@pytest.fixture(scope="module")
def tail(digits_bundle):
    return Tail(Stages(Bundle.load(digits_bundle)))


@pytest.fixture(scope="module")
def server(tail):
    with GrpcServer(tail, port=0) as running:
        yield running


@pytest.fixture
def channel(server):
    opened = GrpcChannel(f"127.0.0.1:{server.port}")
    yield opened
    opened.close()


class Service(rpc.GRPCInferenceServiceServicer):
    """A server of another make: says what it is told to, or refuses with a code."""

    def __init__(self, answer=None, code=None, details="because", versions=("1",)):
        self.answer, self.code, self.details, self.versions = answer, code, details, versions
        self.seen = []

    def ModelInfer(self, request, context):  # noqa: N802
        self.seen.append(request)
        if self.code is not None:
            context.abort(self.code, self.details)
        return self.answer(request)

    def ModelMetadata(self, request, context):  # noqa: N802
        if self.code is not None:
            context.abort(self.code, self.details)
        return pb.ModelMetadataResponse(name=request.name, versions=self.versions)


@pytest.fixture
def serving():
    """Serves a service, or nothing at all, and gives a channel to it."""
    opened = []

    def start(service):
        pool = futures.ThreadPoolExecutor(2)
        running = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        if service is not None:
            rpc.add_GRPCInferenceServiceServicer_to_server(service, running)
        port = running.add_insecure_port("127.0.0.1:0")
        running.start()
        channel = GrpcChannel(f"127.0.0.1:{port}")
        opened.append((channel, running, pool))
        return channel

    yield start
    for channel, running, pool in opened:
        channel.close()
        running.stop(None).wait()
        pool.shutdown()


def answering(tensors, **parameters):
    def answer(request):
        message = response_message(request.model_name, "1", "", tensors, 0.0)
        message.ClearField("parameters")
        for key, value in parameters.items():
            message.parameters[key].double_param = value
        return message

    return answer


LOGITS = np.array([[1.0, 2.0]], np.float32)


# --- addresses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:8001", ("127.0.0.1", 8001)),
        ("localhost:1", ("localhost", 1)),
        ("edge-server.local:65535", ("edge-server.local", 65535)),
        ("[::1]:8001", ("::1", 8001)),
        (" host:80 ", ("host", 80)),
        ("my_server:80", ("my_server", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("host.:80", ("host.", 80)),
    ],
)
def test_addresses(address, parsed):
    assert parse_address(address) == parsed


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":8001",
        "host:0",
        "host:65536",
        "host:-1",
        "host:80x",
        "host:1.5",
        "http://host:80",
        "a/b:80",
        "..:80",
        "edge..example:80",
        f"{'a' * 64}:80",
        "a\0b:80",
    ],
)
def test_what_is_no_address(address):
    with pytest.raises(AddressError, match="HOST:PORT") as caught:
        parse_address(address)
    assert repr(address) in str(caught.value)
    with pytest.raises(AddressError):
        GrpcChannel(address)


# --- our own server -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [-1, 0, 1])
def test_over_the_wire_the_answer_is_the_local_one_bit_for_bit(server, tail, digit_images, split):
    bundle = tail.bundle
    action = Action(split, mode="float")
    with Edge(bundle, GrpcChannel(f"127.0.0.1:{server.port}"), Always(action), deadline_ms=30_000) as edge:
        local, here = Edge(bundle, tail, Always(action)), Edge(bundle)
        for image in digit_images[0][:6]:
            result = edge.infer(image)
            assert (result.status, result.where, result.exit) == ("ok", "server", 2)
            assert result.probabilities == local.infer(image).probabilities == here.infer(image).probabilities
            assert 0 < result.latency_ms.server < result.latency_ms.total


def test_the_server_may_leave_early_for_the_edge(server, tail, digit_images):
    action = Action(-1, exits=(0, 1), mode="uint8")
    with Edge(tail.bundle, GrpcChannel(f"127.0.0.1:{server.port}"), Always(action), deadline_ms=30_000) as edge:
        results = list(edge.run(digit_images[0][:60]))
    assert {r.status for r in results} == {"ok"}
    assert {r.where for r in results} == {"server"}
    assert min(r.exit for r in results) < 2
    assert {r.payload_bytes for r in results} == {28 * 28}


def test_an_answer_holds_exits_and_time(channel, tail, digit_images):
    x = preprocess(digit_images[0][:3], tail.bundle.manifest.preprocessing)
    reply = channel.infer(TailRequest(tail.bundle.manifest.name, {"input": x}, tail.bundle.digest, final=True), 30)
    assert (reply.logits.shape, reply.logits.dtype) == ((3, 10), np.float32)
    assert (reply.exits.tolist(), reply.exits.dtype) == ([2, 2, 2], np.int64)
    assert reply.server_ms > 0


def test_check_is_silent_when_all_is_well(channel, tail):
    channel.check(tail.bundle.manifest.name, tail.bundle.digest, timeout_s=10)


def test_check_finds_another_version(channel, tail):
    with pytest.raises(DigestMismatchError, match=tail.bundle.digest[:12]):
        channel.check(tail.bundle.manifest.name, "0" * 64, timeout_s=10)


def test_check_finds_a_bundle_missing(channel):
    with pytest.raises(ServerRefusedError, match="other"):
        channel.check("other", "0" * 64, timeout_s=10)


def test_ping(channel):
    assert 0 < channel.ping_ms(10) < 10_000


def test_errors_of_our_server(channel, tail):
    name = tail.bundle.manifest.name
    good = {"input": np.zeros((1, 1, 28, 28), np.float32)}
    with pytest.raises(ServerRefusedError, match="no model"):
        channel.infer(TailRequest("other", good), 10)
    with pytest.raises(ServerRefusedError, match="NaN"):
        channel.infer(TailRequest(name, {"input": good["input"] * np.nan}), 10)
    with pytest.raises(DigestMismatchError):
        channel.infer(TailRequest(name, good, digest="0" * 64), 10)
    assert channel.infer(TailRequest(name, good), 10).logits.shape == (1, 10)


# --- servers of other makes -----------------------------------------------------------------------------


def test_what_goes_over_the_wire(serving):
    service = Service(answering({"logits": LOGITS}))
    channel = serving(service)
    channel.infer(TailRequest("m", REQUEST.tensors, digest="d" * 64, final=True), 10)
    channel.infer(REQUEST, 10)
    full, bare = service.seen
    assert full.model_name == "m"
    assert full.parameters["digest"].string_param == "d" * 64
    assert full.parameters["final"].bool_param is True
    assert list(full.raw_input_contents) == [bytes(8)]
    assert not bare.parameters


def test_a_server_that_gives_only_logits_will_do(serving):
    reply = serving(Service(answering({"logits": LOGITS}))).infer(REQUEST, 10)
    assert np.array_equal(reply.logits, LOGITS)
    assert reply.exits is None
    assert reply.server_ms is None


def test_more_outputs_than_ours_do_not_hurt(serving):
    tensors = {"other": np.zeros(3, np.uint8), "logits": LOGITS, "exit": np.array([[1]], np.int64)}
    reply = serving(Service(answering(tensors, server_ms=1.5))).infer(REQUEST, 10)
    assert (reply.exits.tolist(), reply.server_ms) == ([1], 1.5)


@pytest.mark.parametrize(
    "tensors", [{}, {"output": LOGITS}, {"logits": np.zeros((1, 2), np.int64)}], ids=["none", "name", "dtype"]
)
def test_an_answer_without_logits_is_a_protocol_error(serving, tensors):
    with pytest.raises(ProtocolError, match="FP32 logits"):
        serving(Service(answering(tensors))).infer(REQUEST, 10)


@pytest.mark.parametrize("exits", [np.array([np.nan], np.float32), np.array([2.5], np.float32), np.array([True])])
def test_an_exit_that_is_no_number_of_one_is_a_protocol_error(serving, exits):
    with pytest.raises(ProtocolError, match="INT64"):
        serving(Service(answering({"logits": LOGITS, "exit": exits}))).infer(REQUEST, 10)


def test_an_answer_that_cannot_be_read_is_a_protocol_error(serving):
    def answer(request):
        message = answering({"logits": LOGITS})(request)
        message.raw_output_contents[0] = b"123"
        return message

    with pytest.raises(ProtocolError, match="cannot be read"):
        serving(Service(answer)).infer(REQUEST, 10)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, ServerUnavailableError),
        (grpc.StatusCode.CANCELLED, ServerUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ServerBusyError),
        (grpc.StatusCode.FAILED_PRECONDITION, DigestMismatchError),
        (grpc.StatusCode.UNIMPLEMENTED, ProtocolError),
        (grpc.StatusCode.NOT_FOUND, ServerRefusedError),
        (grpc.StatusCode.INVALID_ARGUMENT, ServerRefusedError),
        (grpc.StatusCode.INTERNAL, ServerRefusedError),
        (grpc.StatusCode.PERMISSION_DENIED, AccessError),
        (grpc.StatusCode.UNAUTHENTICATED, AccessError),
    ],
)
def test_every_status_code_is_an_error_of_ours(serving, code, error):
    with pytest.raises(error) as caught:
        serving(Service(code=code)).infer(REQUEST, 10)
    assert type(caught.value) is error
    assert "127.0.0.1:" in str(caught.value)


@pytest.mark.parametrize("versions", [(), ("1",), ("1", "2"), ("0" * 64, "f" * 64)])
def test_versions_of_other_makes_are_no_digests(serving, versions):
    serving(Service(versions=versions)).check("m", "f" * 64, timeout_s=10)


def test_a_grpc_server_without_the_service_is_a_protocol_error(serving):
    channel = serving(None)
    with pytest.raises(ProtocolError):
        channel.check("m", "f" * 64, timeout_s=10)
    with pytest.raises(ProtocolError):
        channel.infer(REQUEST, 10)
    with pytest.raises(ProtocolError):
        channel.ping_ms(10)


def test_a_slow_server_is_a_deadline_error(serving):
    go = threading.Event()

    def answer(request):
        assert go.wait(30)
        return pb.ModelInferResponse()

    channel = serving(Service(answer))
    try:
        with pytest.raises(DeadlineError, match="150 ms"):
            channel.infer(REQUEST, 0.15)
    finally:
        go.set()


def test_a_closed_channel_is_unavailable(serving):
    channel = serving(Service(answering({"logits": LOGITS})))
    channel.close()
    with pytest.raises(ServerUnavailableError):
        channel.infer(REQUEST, 10)


def test_one_channel_serves_several_threads(serving):
    def answer(request):
        (raw,) = request.raw_input_contents
        return answering({"logits": np.frombuffer(raw, np.float32).reshape(1, 2)})(request)

    channel = serving(Service(answer))
    wrong = []

    def ask(i):
        for j in range(10):
            x = np.array([[i, j]], np.float32)
            if not np.array_equal(channel.infer(TailRequest("m", {"x": x}), 30).logits, x):
                wrong.append((i, j))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Counting:
    """Passes one TCP connection on to a port and counts what the client sends."""

    def __init__(self, port):
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._server = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        self._client, _ = self._listener.accept()
        threading.Thread(target=self._pass_on, args=(self._server, self._client), daemon=True).start()
        self._pass_on(self._client, self._server, count=True)

    def _pass_on(self, source, target, count=False):
        try:
            while data := source.recv(65536):
                self.sent += len(data) if count else 0
                target.sendall(data)
        except OSError:
            pass

    def close(self):
        for one in (self._listener, self._server, self._client):
            one.close()


@pytest.mark.parametrize("gzip", [False, True])
def test_what_an_action_compresses_takes_fewer_bytes_and_has_the_same_answer(server, tail, digit_images, gzip):
    counting = Counting(server.port)
    action = Action(-1, gzip=gzip)  # digits are black for the most part
    with Edge(tail.bundle, GrpcChannel(f"127.0.0.1:{counting.port}"), Always(action), deadline_ms=10_000) as edge:
        results = list(edge.run(digit_images[0][:20]))
    counting.close()
    with Edge(tail.bundle, tail, Always(Action(-1)), deadline_ms=10_000) as edge:
        expected = list(edge.run(digit_images[0][:20]))
    assert [r.status for r in results] == ["ok"] * 20
    assert [r.probabilities for r in results] == [r.probabilities for r in expected]
    payload = sum(r.payload_bytes for r in results)
    assert payload == 20 * 28 * 28 * 4
    assert counting.sent < payload / 3 if gzip else counting.sent > payload
