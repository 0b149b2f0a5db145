"""TLS, mutual TLS, tokens and rates on real sockets, over both transports, with clients of other makes too."""

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.utils import InferenceServerException

from offramp.cli.credentials import server_access
from offramp.connect import Edge, connect
from offramp.errors import AccessError, ConfigError, ProtocolError, ServerBusyError
from offramp.observe.server_metrics import ServerMetrics
from offramp.policy.fixed import ServerOnly
from offramp.runtime.tail import TailRequest
from offramp.serving.access import Access
from offramp.serving.channel import GrpcChannel
from offramp.serving.http import HttpServer
from offramp.serving.process import running
from offramp.serving.server import GrpcServer
from offramp.serving.tls import Credentials, ServerTls

TOKEN = "a-token-of-enough-characters"
X = np.zeros((1, 1, 28, 28), np.float32)


class Both:
    """A server on both ports."""

    def __init__(self, tail, **settings):
        self._grpc = GrpcServer(tail, port=0, **settings)
        self._http = HttpServer(self._grpc.service, ServerMetrics().registry, port=0, **settings)
        self.address, self.http_port = f"127.0.0.1:{self._grpc.port}", self._http.port

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._http.__exit__(None, None, None)
        self._grpc.close()


@pytest.fixture(scope="module")
def encrypted(tail, certificates):
    with Both(tail, tls=ServerTls(certificates.server, certificates.server_key)) as both:
        yield both


@pytest.fixture(scope="module")
def mutual(tail, certificates):
    tls = ServerTls(certificates.server, certificates.server_key, certificates.ca)
    with Both(tail, tls=tls) as both:
        yield both


@pytest.fixture(scope="module")
def guarded(tail):
    with Both(tail, access=Access([TOKEN])) as both:
        yield both


def infer(address, name, credentials):
    channel = GrpcChannel(address, credentials=credentials)
    try:
        return channel.infer(TailRequest(name, {"input": X}), 30)
    finally:
        channel.close()


def tls_context(certificates, edge=None):
    context = ssl.create_default_context(cafile=certificates.ca)
    if edge is not None:
        context.load_cert_chain(getattr(certificates, edge), getattr(certificates, f"{edge}_key"))
    return context


def request(port, path, *, method="GET", body=None, headers=None, context=None):
    connection = (
        http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        if context is None
        else http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    )
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


# --- TLS ------------------------------------------------------------------------------------------------


def test_tls_on_both_ports(encrypted, certificates, tail, name):
    bundle = tail.bundle
    with Edge(
        bundle,
        encrypted.address,
        ServerOnly(),
        credentials=Credentials(ca=certificates.ca),
        deadline_ms=30_000,
    ) as edge:
        (result,) = edge.run([np.zeros((28, 28), np.uint8)])
    assert (result.status, result.where) == ("ok", "server")
    assert request(encrypted.http_port, "/v2", context=tls_context(certificates))[0] == 200


def test_clients_of_another_make_over_tls(encrypted, mutual, certificates, tail, name):
    local = tail.infer(TailRequest(name, {"input": X})).logits
    for both, edge in ((encrypted, None), (mutual, certificates)):
        pair = {} if edge is None else {"private_key": str(edge.edge_key), "certificate_chain": str(edge.edge)}
        with triton.InferenceServerClient(
            both.address, ssl=True, root_certificates=str(certificates.ca), **pair
        ) as client:
            x = triton.InferInput("input", [1, 1, 28, 28], "FP32").set_data_from_numpy(X)
            assert client.infer(name, [x]).as_numpy("logits").tobytes() == local.tobytes()
        options = {"ca_certs": str(certificates.ca)}
        if edge is not None:
            options |= {"keyfile": str(edge.edge_key), "certfile": str(edge.edge)}
        with triton_http.InferenceServerClient(
            f"127.0.0.1:{both.http_port}", ssl=True, ssl_options=options
        ) as client:
            x = triton_http.InferInput("input", [1, 1, 28, 28], "FP32").set_data_from_numpy(X)
            assert client.infer(name, [x]).as_numpy("logits").tobytes() == local.tobytes()


def test_an_edge_that_does_not_trust_the_server_says_so(encrypted, certificates, tail):
    with pytest.raises(AccessError, match=r"self-signed certificate|unable to get local issuer"):
        connect(encrypted.address, tail.bundle, Credentials(ca=certificates.other_ca))


@pytest.mark.parametrize(
    ("shown", "why"), [("late", "expired"), ("elsewhere", r"IP address mismatch|not valid for")]
)
def test_a_certificate_that_is_late_or_of_another_host(tail, certificates, shown, why):
    tls = ServerTls(getattr(certificates, shown), getattr(certificates, f"{shown}_key"))
    with GrpcServer(tail, port=0, tls=tls) as server, pytest.raises(AccessError, match=why):
        connect(f"127.0.0.1:{server.port}", tail.bundle, Credentials(ca=certificates.ca))


def test_plain_and_tls_do_not_mix(encrypted, guarded, certificates, tail):
    with pytest.raises(ProtocolError, match="wants TLS"):
        connect(encrypted.address, tail.bundle)
    with pytest.raises(AccessError, match="no connection over TLS"):
        connect(guarded.address, tail.bundle, Credentials(ca=certificates.ca))
    # HTTP without TLS to the port that speaks it: no answer, and the server goes on.
    with pytest.raises((http.client.HTTPException, OSError)):
        request(encrypted.http_port, "/v2/health/live")
    assert request(encrypted.http_port, "/v2/health/live", context=tls_context(certificates))[0] == 200


def test_old_versions_of_tls_are_refused(encrypted, certificates):
    for address in (encrypted.address, f"127.0.0.1:{encrypted.http_port}"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificates.ca)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as peer, pytest.raises((ssl.SSLError, OSError)):
            context.wrap_socket(peer, server_hostname=host)


def test_whoever_says_nothing_during_the_handshake_stops_nobody(encrypted, certificates):
    peers = [socket.create_connection(("127.0.0.1", encrypted.http_port), 10) for _ in range(20)]
    try:
        for peer in peers[::2]:
            peer.sendall(b"\x16\x03\x01")
        assert request(encrypted.http_port, "/v2/health/live", context=tls_context(certificates))[0] == 200
    finally:
        for peer in peers:
            peer.close()


# --- mutual TLS -----------------------------------------------------------------------------------------


def test_a_certificate_of_ours_lets_in(mutual, certificates, tail, name):
    credentials = Credentials(certificates.ca, certificates.edge, certificates.edge_key)
    connect(mutual.address, tail.bundle, credentials).close()
    assert infer(mutual.address, name, credentials).logits.shape == (1, 10)
    assert request(mutual.http_port, "/v2", context=tls_context(certificates, "edge"))[0] == 200


@pytest.mark.parametrize("edge", [None, "stranger"])
def test_without_one_nothing_answers_not_even_health(mutual, certificates, tail, edge):
    pair = () if edge is None else (getattr(certificates, edge), getattr(certificates, f"{edge}_key"))
    credentials = Credentials(certificates.ca, *pair)
    with pytest.raises(AccessError, match="another certificate"):
        connect(mutual.address, tail.bundle, credentials)
    for path in ("/v2/health/live", "/v2/health/ready", "/v2", "/metrics"):
        with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
            request(mutual.http_port, path, context=tls_context(certificates, edge))


# --- tokens ---------------------------------------------------------------------------------------------

HEADERS = [None, "Bearer wrong-token-of-enough-characters", TOKEN, f"Basic {TOKEN}", "Bearer "]


def test_the_token_lets_in(guarded, tail, name):
    credentials = Credentials(token=TOKEN)
    connect(guarded.address, tail.bundle, credentials).close()
    assert infer(guarded.address, name, credentials).logits.shape == (1, 10)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for path in ("/v2", "/metrics", f"/v2/models/{name}", f"/v2/models/{name}/ready"):
        assert request(guarded.http_port, path, headers=bearer)[0] == 200
    x = triton_http.InferInput("input", [1, 1, 28, 28], "FP32").set_data_from_numpy(X)
    with triton_http.InferenceServerClient(f"127.0.0.1:{guarded.http_port}") as client:
        assert client.infer(name, [x], headers=bearer).as_numpy("logits").shape == (1, 10)
        with pytest.raises(InferenceServerException) as caught:
            client.infer(name, [x])
        assert caught.value.status() == "401"


@pytest.mark.parametrize("header", HEADERS)
def test_without_it_grpc_answers_nothing_but_health(guarded, name, header):
    metadata = None if header is None else [("authorization", header)]
    with grpc.insecure_channel(guarded.address) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(pb.ServerLiveRequest(), metadata=metadata).live
        assert stub.ServerReady(pb.ServerReadyRequest(), metadata=metadata).ready
        asked = {
            "ModelReady": pb.ModelReadyRequest(name=name),
            "ServerMetadata": pb.ServerMetadataRequest(),
            "ModelMetadata": pb.ModelMetadataRequest(name=name),
            "RepositoryIndex": pb.RepositoryIndexRequest(),
            "ModelInfer": pb.ModelInferRequest(model_name=name),
        }
        for method, message in asked.items():
            with pytest.raises(grpc.RpcError) as caught:
                getattr(stub, method)(message, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, method
            assert name not in caught.value.details()
        # What cannot be read is not looked at either.
        raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            raw(b"\xff" * 100, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("header", HEADERS)
def test_without_it_http_answers_nothing_but_health(guarded, name, header):
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert request(guarded.http_port, path, headers=headers)[0] == 200
    for method, path in (
        ("GET", "/v2"),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
        ("GET", "/v2/health/live/"),
        ("GET", "/v2/health/../models"),
        ("GET", "//v2/health/live"),
        ("POST", "/v2/health/live"),
        ("GET", f"/v2/models/{name}"),
        ("GET", f"/v2/models/{name}/ready"),
        ("GET", f"/v2/models/{name}/versions/1"),
        ("POST", f"/v2/models/{name}/infer"),
        ("POST", "/v2/repository/index"),
    ):
        status, found, body = request(guarded.http_port, path, method=method, headers=headers)
        assert status == 401, path
        assert found["WWW-Authenticate"] == "Bearer"
        assert "token" in json.loads(body)["error"]
        assert name not in body.decode()


@pytest.mark.parametrize("token", [None, "wrong-token-of-enough-characters"])
def test_an_edge_without_the_token_says_so_at_once(guarded, tail, token):
    with pytest.raises(AccessError, match="token"):
        connect(guarded.address, tail.bundle, Credentials(token=token))


def test_methods_that_we_lack_are_unimplemented(guarded):
    with grpc.insecure_channel(guarded.address) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        for method, message in (
            ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="x")),
            ("ModelStatistics", pb.ModelStatisticsRequest()),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                getattr(stub, method)(message)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- rates ----------------------------------------------------------------------------------------------


def test_a_rate_counts_over_both_transports_and_never_for_health(tail, name):
    with Both(tail, access=Access(rate=5, clock=lambda: 100.0)) as both:
        for _ in range(3):
            infer(both.address, name, None)
        assert [request(both.http_port, "/v2")[0] for _ in range(4)] == [200, 200, 429, 429]
        with pytest.raises(ServerBusyError, match="at most 5 a second"):
            infer(both.address, name, None)
        status, headers, body = request(both.http_port, "/v2")
        assert (status, headers["Retry-After"]) == (429, "1")
        assert "at most 5" in json.loads(body)["error"]
        assert request(both.http_port, "/v2/health/live")[0] == 200
        with triton.InferenceServerClient(both.address) as client:
            assert client.is_server_live()


# --- files and settings ---------------------------------------------------------------------------------


def test_files_that_cannot_be_used(certificates, tmp_path):
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nothing")
    c = certificates
    for cert, key, ca in (
        (tmp_path / "none", c.server_key, None),
        (c.server, tmp_path / "none", None),
        (nonsense, c.server_key, None),
        (c.server, nonsense, None),
        (c.server, c.edge_key, None),
        (c.locked, c.locked_key, None),
        (c.server, c.server_key, nonsense),
        (c.server, c.server_key, tmp_path / "none"),
    ):
        with pytest.raises(ConfigError, match=str(tmp_path) if "none" in f"{cert}{key}{ca}" else "PEM"):
            ServerTls(cert, key, ca)
    for ca, cert, key in (
        (nonsense, None, None),
        (tmp_path / "none", None, None),
        (c.ca, c.edge, None),
        (c.ca, None, c.edge_key),
        (c.ca, c.edge, c.server_key),
        (None, c.edge, c.edge_key),
    ):
        with pytest.raises(ConfigError):
            Credentials(ca, cert, key)


def test_a_token_is_never_sent_readable_to_another_machine():
    for host in ("127.0.0.1", "[::1]", "localhost"):
        GrpcChannel(f"{host}:8001", credentials=Credentials(token=TOKEN)).close()
    for host in ("192.0.2.1", "[2001:db8::1]", "example.org", "localhost.example.org"):
        with pytest.raises(ConfigError, match="TLS"):
            GrpcChannel(f"{host}:8001", credentials=Credentials(token=TOKEN))
    assert TOKEN not in repr(Credentials(token=TOKEN))


# --- the command line -----------------------------------------------------------------------------------


def offramp(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "offramp", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_serve_and_run_with_everything(digits_bundle, certificates, tmp_path):
    c, tokens, images = certificates, tmp_path / "tokens", tmp_path / "images.npy"
    tokens.write_text(f"{TOKEN}\nthe-token-of-yesterday\n")
    np.save(images, np.zeros((2, 28, 28), np.uint8))
    serve = ["serve", digits_bundle, "--grpc-port", 0, "--tls-cert", c.server, "--tls-key", c.server_key]
    serve += ["--client-ca", c.ca, "--token-file", tokens, "--rate", 1000, "--max-elements", 10_000]
    edge = ["--ca", c.ca, "--cert", c.edge, "--key", c.edge_key]
    with running(list(map(str, serve))) as address:
        run = ["run", digits_bundle, images, "--policy", "server-only", "--server", address]
        run += ["--deadline-ms", "30000"]
        done = offramp(*run, *edge, OFFRAMP_TOKEN="the-token-of-yesterday")
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["where"] for line in done.stdout.splitlines()] == ["server"] * 2
        for wrong, why in (([*edge], "token"), (["--ca", c.ca], "TLS"), ([], "TLS")):
            done = offramp(*run, *wrong, OFFRAMP_TOKEN="no-such-token-of-ours")
            assert done.returncode == 1, done.stderr
            assert why in done.stderr
            assert "Traceback" not in done.stderr
        done = offramp(*run, *edge, "--token-file", tokens)
        assert done.returncode == 2
        assert "2 tokens" in done.stderr


def test_a_token_in_the_environment_is_no_token_of_servers_that_we_start(digits_bundle, tail, monkeypatch):
    monkeypatch.setenv("OFFRAMP_TOKEN", TOKEN)
    with running(["serve", str(digits_bundle), "--grpc-port", "0"]) as address:
        connect(address, tail.bundle).close()
    access = server_access("127.0.0.1", None, None, None)
    access.check("127.0.0.1", f"Bearer {TOKEN}")
    with pytest.raises(AccessError):
        access.check("127.0.0.1", None)


def test_tokens_without_tls_for_other_machines_are_warned_of(certificates, monkeypatch):
    monkeypatch.setenv("OFFRAMP_TOKEN", TOKEN)
    with pytest.warns(UserWarning, match="readable") as caught:
        server_access("0.0.0.0", None, None, None)
    assert TOKEN not in str(caught[0].message)
    server_access("0.0.0.0", ServerTls(certificates.server, certificates.server_key), None, None)
    monkeypatch.delenv("OFFRAMP_TOKEN")
    assert server_access("0.0.0.0", None, None, None) is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--tls-cert", "{server}"], "--tls-key"),
        (["--client-ca", "{ca}"], "--tls-cert"),
        (["--tls-cert", "{server}", "--tls-key", "{edge_key}"], "PEM"),
        (["--token-file", "{ca}"], "one token per line"),
        (["--rate", "0"], "above 0"),
    ],
)
def test_wrong_options_are_misuse(digits_bundle, certificates, wrong, why):
    options = [option.format(**vars(certificates)) for option in wrong]
    done = offramp("serve", digits_bundle, "--grpc-port", 0, *options)
    assert done.returncode == 2, done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr
