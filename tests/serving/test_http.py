import contextlib
import json
import logging
import re
import socket
import urllib.error
import urllib.request
from http.client import HTTPConnection

import numpy as np
import pytest

from offramp.bundle.bundle import Bundle
from offramp.errors import InputError, PortError, ServerRefusedError
from offramp.observe.server_metrics import ServerMetrics
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest
from offramp.serving.channel import GrpcChannel
from offramp.serving.http import HttpServer
from offramp.serving.server import GrpcServer


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def tail(digits_bundle):
    return Tail(Stages(Bundle.load(digits_bundle)))


@pytest.fixture
def http(tail):
    """A gRPC server with metrics, and the HTTP port beside it."""
    metrics = ServerMetrics()
    with (
        GrpcServer(tail, port=0, observer=metrics) as server,
        HttpServer(server.service, metrics.registry, port=0) as beside,
    ):
        yield server, beside.port


def test_health(http):
    assert json.loads(get(http[1], "/v2/health/live")) == {"live": True}
    assert json.loads(get(http[1], "/v2/health/ready")) == {"ready": True}


def test_another_path_is_404_and_names_the_protocol(http):
    with pytest.raises(urllib.error.HTTPError) as found:
        get(http[1], "/secrets")
    with found.value as answer:
        assert answer.code == 404
        assert "/v2" in json.loads(answer.read())["error"]


def test_no_versions_are_told(http):
    for path in ("/v2/health/live", "/nowhere"):
        connection = HTTPConnection("127.0.0.1", http[1], timeout=10)
        connection.request("GET", path)
        assert connection.getresponse().headers["Server"] == "offramp"
        connection.close()


def test_another_method_is_405(http):
    with pytest.raises(urllib.error.HTTPError) as found:
        urllib.request.urlopen(f"http://127.0.0.1:{http[1]}/v2", b"{}", timeout=10)
    with found.value as answer:
        assert (answer.code, json.loads(answer.read())) == (405, {"error": "Method Not Allowed"})
        assert "GET" in answer.headers["Allow"]


def test_without_metrics_there_is_no_such_path(tail):
    with (
        GrpcServer(tail, port=0) as server,
        HttpServer(server.service, port=0) as beside,
        pytest.raises(urllib.error.HTTPError) as found,
    ):
        get(beside.port, "/metrics")
    with found.value as answer:
        assert answer.code == 404


def test_metrics_count_requests_answers_and_refusals_of_both_transports(http, tail):
    server, port = http
    name = tail.bundle.manifest.name
    channel = GrpcChannel(f"127.0.0.1:{server.port}")
    x = np.zeros((3, 1, 28, 28), np.float32)
    channel.infer(TailRequest(name, {"input": x}, final=True), 10)
    for invented in ("made-up-1", "made-up-2"):
        with pytest.raises(ServerRefusedError):
            channel.infer(TailRequest(invented, {"input": x}), 10)
    with pytest.raises((InputError, ServerRefusedError)):
        channel.infer(TailRequest(name, {"input": x[:, :, :5]}), 10)
    channel.close()
    for model in (name, "made-up-3"):
        with pytest.raises(urllib.error.HTTPError) as found:
            urllib.request.urlopen(
                f"http://127.0.0.1:{port}/v2/models/{model}/infer", b'{"inputs": []}', timeout=10
            )
        found.value.close()
    text = get(port, "/metrics")
    assert f'offramp_requests_total{{code="OK",model="{name}"}} 1.0' in text
    assert f'offramp_requests_total{{code="INVALID_ARGUMENT",model="{name}"}} 2.0' in text
    assert 'offramp_requests_total{code="NOT_FOUND",model="unknown"} 3.0' in text
    assert f'offramp_answers_total{{exit="2",model="{name}"}} 3.0' in text
    for histogram in ("compute_seconds", "queue_seconds", "batch_samples"):
        assert f'offramp_{histogram}_count{{model="{name}"}} 1.0' in text
    assert f'offramp_batch_samples_bucket{{le="2.0",model="{name}"}} 0.0' in text
    assert f'offramp_batch_samples_bucket{{le="4.0",model="{name}"}} 1.0' in text  # three samples


def test_metrics_count_what_is_too_large_and_what_is_too_slow(tail, monkeypatch, caplog):
    monkeypatch.setattr("offramp.serving.http._BODY_S", 0.2)
    caplog.set_level(logging.INFO, "offramp.server")
    name, metrics = tail.bundle.manifest.name, ServerMetrics()
    with (
        GrpcServer(tail, port=0, observer=metrics) as server,
        HttpServer(server.service, metrics.registry, port=0, max_message_mb=1) as beside,
    ):
        for model in (name, "made-up"):
            for body, status in ((b" " * (2**20 + 1), 413), (b"{", 408)):
                connection = HTTPConnection("127.0.0.1", beside.port, timeout=10)
                length = {"Content-Length": str(len(body) + (status == 408))}
                connection.request("POST", f"/v2/models/{model}/infer", body, length)
                answer = connection.getresponse()
                assert answer.status == status
                assert json.loads(answer.read())["error"]
                connection.close()
        text = get(beside.port, "/metrics")
    for code in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"):  # what gRPC calls the same
        for model in (name, "unknown"):
            assert f'offramp_requests_total{{code="{code}",model="{model}"}} 1.0' in text
    codes = [(r.code, r.client) for r in caplog.records if r.message == "request refused"]
    assert codes == [("RESOURCE_EXHAUSTED", "127.0.0.1"), ("DEADLINE_EXCEEDED", "127.0.0.1")] * 2


def test_a_port_in_use(http):
    server, port = http
    with pytest.raises(PortError, match=str(port)):
        HttpServer(server.service, port=port)
    with pytest.raises(PortError, match="70000"):
        HttpServer(server.service, port=70000)


@pytest.mark.parametrize("host", ["192.0.2.1", ".."])
def test_a_host_that_is_not_here(http, host):
    with pytest.raises(PortError, match=re.escape(f"{host}:0")):
        HttpServer(http[0].service, host=host, port=0)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_over_ipv6(tail, host):
    with (
        GrpcServer(tail, host=host, port=0) as server,
        contextlib.closing(GrpcChannel(f"[::1]:{server.port}")) as channel,
        HttpServer(server.service, host=host, port=0) as beside,
        urllib.request.urlopen(f"http://[::1]:{beside.port}/v2/health/live", timeout=10) as answer,
    ):
        channel.check(tail.bundle.manifest.name, tail.bundle.digest, 30)
        assert answer.status == 200


def test_what_is_no_http_is_refused_and_fills_no_log(http, caplog):
    for nonsense in (
        b"\0" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", http[1]), 10) as peer:
            peer.sendall(nonsense)
            assert b" 400 " in peer.recv(100)
    assert caplog.text == ""
    assert json.loads(get(http[1], "/v2/health/live")) == {"live": True}


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HT", b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_connection_that_says_nothing_more_is_closed(tail, monkeypatch, sent):
    monkeypatch.setattr("offramp.serving.http._IDLE_S", 0.3)
    with (
        GrpcServer(tail, port=0) as server,
        HttpServer(server.service, port=0) as beside,
        socket.create_connection(("127.0.0.1", beside.port), 20) as peer,
    ):
        peer.sendall(sent)
        while peer.recv(4096):
            pass
