"""`offramp.connect`: addresses to channels, and an edge whose server comes and goes."""

import asyncio
import contextlib
import http.server
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest

from offramp.bundle.bundle import Bundle
from offramp.connect import Edge, connect
from offramp.errors import (
    AddressError,
    BundleError,
    ConfigError,
    DigestMismatchError,
    ProtocolError,
    ServerRefusedError,
    ServerUnavailableError,
)
from offramp.policy.fixed import FixedSplit, ServerOnly
from offramp.runtime.breaker import CircuitBreaker
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail
from offramp.serving.channel import GrpcChannel
from offramp.serving.link import Link, LinkSettings
from offramp.serving.server import GrpcServer


@pytest.fixture(scope="module")
def bundle(digits_bundle):
    return Bundle.load(digits_bundle)


@pytest.fixture(scope="module")
def server(bundle):
    with GrpcServer(Tail(Stages(bundle)), port=0) as running:
        yield running


@contextlib.contextmanager
def listening(kind, handler):
    """A TCP or HTTP server of another kind, in a thread; gives its address."""
    with kind(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join()


@contextlib.contextmanager
def silent():
    """Accepts connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class QuietHttp(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError):
            while data := self.request.recv(4096):
                self.request.sendall(data)


def test_a_server_given_by_its_address_answers(server, bundle, digit_images):
    with Edge(bundle, f"127.0.0.1:{server.port}", ServerOnly(), deadline_ms=30_000) as edge:
        results = list(edge.run(digit_images[0][:5]))
    assert {(r.status, r.where) for r in results} == {("ok", "server")}


def test_a_bundle_may_be_given_by_its_path_and_a_channel_as_it_is(digits_bundle, server, digit_images):
    channel = GrpcChannel(f"127.0.0.1:{server.port}")
    with Edge(str(digits_bundle), channel, ServerOnly(), deadline_ms=30_000) as edge:
        assert edge.infer(digit_images[0][0]).where == "server"
    with pytest.raises(ServerUnavailableError):
        channel.ping_ms()  # the edge closes what it was given


def test_without_a_server_everything_stays(digits_bundle, digit_images):
    assert Edge(digits_bundle).infer(digit_images[0][0]).where == "edge"


def test_nobody_there_is_no_error_and_the_edge_goes_on_alone(bundle, digit_images):
    with Edge(bundle, f"127.0.0.1:{closed_port()}", FixedSplit(0, gated=False), deadline_ms=2000) as edge:
        results = list(edge.run(digit_images[0][:5]))
    assert [r.index for r in results] == list(range(5))
    assert {(r.status, r.where, r.exit) for r in results} == {("degraded", "edge", 2)}
    assert all(r.error for r in results)


def test_another_version_of_the_bundle(server, digits_bundle):
    other = Bundle.load(digits_bundle)
    other.digest = "0" * 64
    with pytest.raises(DigestMismatchError, match="same bundle"):
        Edge(other, f"127.0.0.1:{server.port}")


def test_a_server_of_another_bundle(server, bundle):
    renamed = Bundle(bundle.path, bundle.manifest.model_copy(update={"name": "other"}), bundle.tuning, bundle.held)
    with pytest.raises(ServerRefusedError, match="'other'"):
        connect(f"127.0.0.1:{server.port}", renamed)


@pytest.mark.parametrize(
    ("kind", "handler"),
    [(http.server.ThreadingHTTPServer, QuietHttp), (socketserver.ThreadingTCPServer, Echo)],
    ids=["http/1", "echo"],
)
def test_what_answers_but_speaks_no_grpc(bundle, kind, handler):
    with listening(kind, handler) as address, pytest.raises(ProtocolError, match="not with gRPC") as caught:
        connect(address, bundle)
    assert address in str(caught.value)


def test_a_grpc_server_without_the_service(bundle):
    with futures.ThreadPoolExecutor(1) as pool:
        other = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        port = other.add_insecure_port("127.0.0.1:0")
        other.start()
        try:
            with pytest.raises(ProtocolError):
                connect(f"127.0.0.1:{port}", bundle)
        finally:
            other.stop(None).wait()


def test_a_silent_server_counts_as_absent(bundle):
    with silent() as address:
        channel = GrpcChannel(address)
        with pytest.raises(ServerUnavailableError, match=address):
            channel.check(bundle.manifest.name, bundle.digest, timeout_s=0.2)
        channel.close()


def test_behind_a_silent_server_every_input_is_answered(bundle, digit_images):
    # The edge keeps back the time to reach its first exit; a timer that is a little late must not eat it.
    with silent() as address:
        breaker = CircuitBreaker(failures=100)
        with Edge(bundle, GrpcChannel(address), ServerOnly(), deadline_ms=80, breaker=breaker) as edge:
            edge.stage_ms[:] = [5.0] * 3
            results = list(edge.run(digit_images[0][:3]))
    assert [r.index for r in results] == [0, 1, 2]
    assert {(r.status, r.where) for r in results} == {("degraded", "edge")}


@contextlib.contextmanager
def linked(settings, port):
    """A link before a port of this machine, in a thread; gives its address."""
    ready, stop = futures.Future(), futures.Future()

    async def run():
        async with Link(settings, ("127.0.0.1", port)) as link:
            done = asyncio.Event()
            loop = asyncio.get_running_loop()
            stop.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
            ready.set_result(link.port)
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        yield f"127.0.0.1:{ready.result(30)}"
    finally:
        stop.set_result(None)
        thread.join()


@pytest.mark.parametrize("delay_s", [0.02, 0.2])
def test_a_slow_link_is_no_dead_server(server, bundle, delay_s):
    with linked(LinkSettings(delay_s=delay_s), server.port) as address:
        channel = GrpcChannel(address)
        try:
            channel.check(bundle.manifest.name, bundle.digest, timeout_s=20)
            assert channel.ping_ms(20) >= 2e3 * delay_s * 0.95
        finally:
            channel.close()


@pytest.mark.parametrize("address", ["nowhere", "http://127.0.0.1:80", "127.0.0.1:0"])
def test_what_is_no_address(bundle, address):
    with pytest.raises(AddressError):
        Edge(bundle, address)


def test_errors_before_and_after_connecting(server, bundle, tmp_path):
    with pytest.raises(BundleError):
        Edge(tmp_path / "none", f"127.0.0.1:{server.port}")
    with pytest.raises(ConfigError):
        Edge(bundle, f"127.0.0.1:{server.port}", deadline_ms=-1)


SERVE = """
import sys
from offramp.bundle.bundle import Bundle
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail
from offramp.serving.server import GrpcServer

server = GrpcServer(Tail(Stages(Bundle.load(sys.argv[1]))), port=int(sys.argv[2]))
print(server.port, flush=True)
server.wait()
"""


@pytest.fixture
def serve(digits_bundle):
    """Starts a real server process on a port; gives the process and its port."""
    started = []

    def start(port=0):
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(digits_bundle), str(port)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        line = process.stdout.readline()
        assert line.strip().isdecimal(), line
        return process, int(line)

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_server_killed_and_started_again(serve, bundle, digit_images):
    first, port = serve()
    breaker = CircuitBreaker(failures=2, reset_s=0.05)
    results = []

    def inputs():
        for i, image in enumerate(np.concatenate([digit_images[0]] * 3)):
            if i == 5:
                first.kill()
                first.wait()
            if i == 15:
                serve(port)
            if i > 15:
                if results[-1].status == "ok" and len(results) > 25:
                    return
                time.sleep(0.01)
            yield image

    with Edge(bundle, f"127.0.0.1:{port}", ServerOnly(), deadline_ms=5000, breaker=breaker) as edge:
        for result in edge.run(inputs()):
            results.append(result)  # one by one: the inputs look at what came of those before
    assert [r.index for r in results] == list(range(len(results)))
    statuses = [r.status for r in results]
    assert statuses[:5] == ["ok"] * 5
    assert statuses[5:15] == ["degraded"] * 10
    back = statuses.index("ok", 5)
    assert statuses[back:] == ["ok"] * (len(statuses) - back)
    assert {r.where for r in results if r.status == "ok"} == {"server"}
    # What the edge answered alone is what the server would have: the whole network is held here.
    assert {(r.where, r.exit) for r in results if r.status == "degraded"} == {("edge", 2)}
    assert sum(r.payload_bytes > 0 for r in results[5:15]) < 10  # the breaker spares most inputs the attempt
