"""gRPC's own health protocol, asked with its own stub and by gRPC's own channels."""

import json
import queue
import threading
import time

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from offramp.runtime.repository import Repository
from offramp.serving.access import Access
from offramp.serving.server import GrpcServer

SERVICE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING, UNKNOWN = (
    getattr(HealthCheckResponse, name) for name in ("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
)


@pytest.fixture
def server():
    with GrpcServer(Repository(), port=0) as running:
        yield running


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as opened:
        yield opened


@pytest.fixture
def health(channel):
    stub = HealthStub(channel)
    return lambda service="": stub.Check(HealthCheckRequest(service=service), timeout=10).status


@pytest.mark.parametrize("service", ["", SERVICE], ids=["overall", "the protocol"])
def test_a_server_is_serving_until_it_is_drained(server, health, service):
    assert health(service) == SERVING
    server.drain(1)
    assert health(service) == NOT_SERVING


def test_an_unknown_service_is_not_found(health):
    with pytest.raises(grpc.RpcError) as caught:
        health("inference.Other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_needs_no_token_and_nothing_else_answers_without_one():
    with (
        GrpcServer(Repository(), port=0, access=Access(["0123456789abcdef"], rate=1)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = HealthStub(channel)
        for _ in range(5):
            assert stub.Check(HealthCheckRequest(), timeout=10).status == SERVING
        assert next(stub.Watch(HealthCheckRequest(), timeout=10)).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/ServerMetadata")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def watched(channel, service=""):
    """A watch, and a queue of what it says."""
    said = queue.SimpleQueue()
    watch = HealthStub(channel).Watch(HealthCheckRequest(service=service), timeout=30)

    def read():
        try:
            for response in watch:
                said.put(response.status)
        except grpc.RpcError as error:
            said.put(error.code())

    thread = threading.Thread(target=read)
    thread.start()
    return watch, thread, lambda: said.get(timeout=20)


def test_who_watches_is_told_at_once_and_of_the_end(server, channel):
    _, thread, says = watched(channel, SERVICE)
    assert says() == SERVING
    server.drain(1)
    assert says() == NOT_SERVING
    server.close(0)
    assert says() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    thread.join(20)


def test_a_service_that_nobody_knows_may_be_watched(channel):
    watch, thread, says = watched(channel, "inference.Other")
    assert says() == UNKNOWN
    watch.cancel()
    assert says() is grpc.StatusCode.CANCELLED
    thread.join(20)


def test_many_who_watch_take_no_thread_and_are_forgotten_once_gone():
    with (
        GrpcServer(Repository(), port=0, queue=0) as server,  # three threads for everything
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = HealthStub(channel)
        watches = [stub.Watch(HealthCheckRequest(service=f"invented {i}"), timeout=30) for i in range(50)]
        assert {next(watch).status for watch in watches} == {UNKNOWN}
        assert stub.Check(HealthCheckRequest(), timeout=10).status == SERVING
        kept = server._health._servicer._send_response_callbacks
        assert list(kept) == ["unknown"]  # a name each would stay
        for watch in watches:
            watch.cancel()
        end = time.monotonic() + 20
        while kept["unknown"]:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("method", ["Check", "Watch"])
@pytest.mark.parametrize("content", [b"\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"])
def test_what_is_no_request_is_refused_with_a_text(channel, method, content, caplog):
    kind = channel.unary_unary if method == "Check" else channel.unary_stream
    with pytest.raises(grpc.RpcError) as caught:
        list(kind(f"/grpc.health.v1.Health/{method}")(content, timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "this is no HealthCheckRequest"
    assert not caplog.records


def test_a_channel_of_grpcs_that_checks_health_leaves_a_server_that_drains(server):
    """Client-side health checking: the channel itself watches, and counts a server that drains as not there."""
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": SERVICE}}
    states = queue.SimpleQueue()
    options = [("grpc.service_config", json.dumps(config))]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        channel.subscribe(states.put, try_to_connect=True)
        seen = []
        while grpc.ChannelConnectivity.READY not in seen:
            seen.append(states.get(timeout=20))
        server.drain(1)
        while grpc.ChannelConnectivity.TRANSIENT_FAILURE not in seen:
            seen.append(states.get(timeout=20))
