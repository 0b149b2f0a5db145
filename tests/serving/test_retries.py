"""Which requests are sent a second time: those whose connection broke, once, and no others."""

import contextlib
import socket
import struct
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc as rpc

from offramp.errors import DeadlineError, OfframpError, ServerUnavailableError
from offramp.runtime.tail import TailRequest
from offramp.serving.channel import GrpcChannel
from offramp.serving.wire import grpc_options, response_message

LOGITS = np.array([[1.0, 2.0]], np.float32)


class Counted(rpc.GRPCInferenceServiceServicer):
    """Answers, or refuses with a code, after a while; counts what it is asked."""

    def __init__(self):
        self.code, self.wait_s, self.inferences, self.metadata = None, 0.0, 0, 0

    def ModelInfer(self, request, context):  # noqa: N802
        self.inferences += 1
        time.sleep(self.wait_s)
        if self.code is not None:
            context.abort(self.code, "because")
        return response_message(request.model_name, "1", "", {"logits": LOGITS}, 0.0)

    def ModelMetadata(self, request, context):  # noqa: N802
        self.metadata += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "because")


@pytest.fixture(scope="module")
def served():
    """A service, and the port where it is."""
    service = Counted()
    with futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0), *grpc_options(64)])
        rpc.add_GRPCInferenceServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield service, port
        server.stop(None).wait()


@pytest.fixture
def service(served):
    found = served[0]
    found.code, found.wait_s, found.inferences, found.metadata = None, 0.0, 0, 0
    return found


@pytest.fixture
def channel(served, service):
    opened = GrpcChannel(f"127.0.0.1:{served[1]}")
    yield opened
    opened.close()


class Cutting:
    """Passes connections on to a port; resets each of the first `cuts` once the client has sent so many bytes."""

    def __init__(self, port, cuts, after):
        self._port, self._cuts, self._after, self.connections = port, cuts, after, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = [self._listener]
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def close(self):
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _spawn(self, target, *arguments):
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._open += [near, far]
                self.connections += 1
                self._spawn(self._up, near, far, self.connections <= self._cuts)
                self._spawn(self._down, near, far)

    def _up(self, near, far, cut):
        sent = 0
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                sent += len(data)
                if cut and sent > self._after:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    far.shutdown(socket.SHUT_RDWR)
                    near.close()  # lingering for no time, so that the client sees a reset
                    return
                far.sendall(data)

    def _down(self, near, far):
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)


@pytest.fixture
def cutting(served, service):
    """Gives a channel over a link that breaks, and the link."""
    with contextlib.ExitStack() as stack:

        def start(cuts, after):
            link = Cutting(served[1], cuts, after)
            stack.callback(link.close)
            opened = GrpcChannel(f"127.0.0.1:{link.port}")
            stack.callback(opened.close)
            return opened, link

        yield start


def request(values):
    return TailRequest("m", {"x": np.zeros((1, values), np.float32)})


@pytest.mark.parametrize(("values", "after"), [(2, 300), (300_000, 100_000)], ids=["small", "over 1 MB"])
def test_a_connection_that_breaks_costs_no_answer(cutting, values, after):
    channel, link = cutting(1, after)
    assert np.array_equal(channel.infer(request(values), 30).logits, LOGITS)
    assert link.connections == 2


def test_one_that_breaks_twice_does(cutting, service):
    channel, link = cutting(2, 300)
    with pytest.raises(ServerUnavailableError):
        channel.infer(request(2), 30)
    assert link.connections == 2
    assert service.inferences == 0
    assert np.array_equal(channel.infer(request(2), 30).logits, LOGITS)  # the channel mends itself


def test_a_server_that_is_unavailable_is_asked_twice(channel, service):
    service.code = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(ServerUnavailableError):
        channel.infer(request(2), 30)
    assert service.inferences == 2


@pytest.mark.parametrize(
    "code",
    [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)],
)
def test_whoever_refuses_is_asked_once(channel, service, code):
    service.code = code
    with pytest.raises(OfframpError):
        channel.infer(request(2), 30)
    assert service.inferences == 1


def test_who_is_late_is_asked_once(channel, service):
    channel.infer(request(2), 30)
    service.wait_s, service.inferences = 0.5, 0
    with pytest.raises(DeadlineError):
        channel.infer(request(2), 0.15)
    assert service.inferences == 1


def test_a_deadline_holds_for_both_attempts(channel, service):
    channel.infer(request(2), 30)
    service.code, service.wait_s, service.inferences = grpc.StatusCode.UNAVAILABLE, 0.8, 0
    with pytest.raises(DeadlineError):
        channel.infer(request(2), 1.4)
    assert service.inferences == 2


def test_other_questions_are_asked_once(channel, service):
    with pytest.raises(ServerUnavailableError):
        channel.check("m", "0" * 64, timeout_s=30)
    assert service.metadata == 1
