"""A server's life: versions that come and go under traffic, clients that give up, draining, signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack

import numpy as np
import pytest
import tritonclient.grpc as triton
from other_version import other_version
from typer.testing import CliRunner
from under_traffic import ServeProcess, Traffic, until

from offramp.bundle.bundle import Bundle
from offramp.bundle.preprocessing import preprocess
from offramp.cli import app
from offramp.errors import DeadlineError, DigestMismatchError, ServerRefusedError, ServerUnavailableError
from offramp.runtime.repository import Repository
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest, tail_name
from offramp.runtime.warming import warm_tail
from offramp.serving.channel import GrpcChannel
from offramp.serving.http import HttpServer
from offramp.serving.server import GrpcServer


class Held:
    """Stages that compute only once `go` is set."""

    def __init__(self, stages):
        self._stages, self.go, self.inside, self.runs = stages, threading.Event(), threading.Event(), []

    def __getattr__(self, name):
        return getattr(self._stages, name)

    def stage(self, index, tensors):
        self.runs.append((index, len(tensors[0])))
        self.inside.set()
        assert self.go.wait(60)
        return self._stages.stage(index, tensors)


@pytest.fixture(scope="module")
def folders(digits_bundle, tmp_path_factory):
    return [digits_bundle, other_version(digits_bundle, tmp_path_factory.mktemp("versions") / "newer").path]


@pytest.fixture(scope="module")
def tails(folders):
    found = [Tail(Stages(Bundle.load(folder))) for folder in folders]
    assert found[0].bundle.digest != found[1].bundle.digest
    return found


@pytest.fixture(scope="module")
def name(tails):
    return tails[0].bundle.manifest.name


@pytest.fixture(scope="module")
def requests(tails, name, digit_images):
    """Forty requests at every cut, and what alone is answered to each."""
    x = [preprocess(digit_images[0][:40], tails[0].bundle.manifest.preprocessing)]
    found = []
    for cut in range(-1, tails[0].bundle.manifest.last):
        for k in range(40):
            sent = {s.name: t[k : k + 1] for s, t in zip(tails[0].stages.wire(cut, "float"), x, strict=True)}
            request = TailRequest(tail_name(name, cut, "float"), sent, final=bool(k % 2))
            found.append((request, tails[0].infer(request)))
        x, _ = tails[0].stages.stage(cut + 1, x)
    return found


def ask(address, request, timeout_s=30):
    channel = GrpcChannel(address)
    try:
        return channel.infer(request, timeout_s)
    finally:
        channel.close()


# --- several versions -----------------------------------------------------------------------------------


def test_two_digests_at_once_the_request_chooses(tails, name, requests):
    old, new = (tail.bundle.digest for tail in tails)
    request, expected = requests[0]
    with GrpcServer(Repository(tails), port=0) as server:
        address = f"127.0.0.1:{server.port}"
        with triton.InferenceServerClient(address) as client:
            x = triton.InferInput("input", [1, 1, 28, 28], "FP32").set_data_from_numpy(request.tensors["input"])
            for version, answers in (("", new), (old, old), (new, new)):
                answer = client.infer(name, [x], model_version=version)
                assert answer.get_response().model_version == answers
                np.testing.assert_allclose(answer.as_numpy("logits"), expected.logits, rtol=1e-5, atol=1e-5)
            answer = client.infer(name, [x], parameters={"digest": old})
            assert answer.get_response().model_version == old
            assert list(client.get_model_metadata(name).versions) == [new, old]
            assert list(client.get_model_metadata(name, old).versions) == [old]
            assert client.is_model_ready(name, old)
            assert not client.is_model_ready(name, "f" * 64)
            # Only the old version has this mode.
            assert list(client.get_model_metadata(f"{name}-tail-0-uint2").versions) == [old]
            index = {(m.name, m.version, m.state) for m in client.get_model_repository_index().models}
            assert {(name, old, "READY"), (name, new, "READY")} <= index
        channel = GrpcChannel(address)
        for digest in (old, new):
            channel.check(name, digest, 30)
        with pytest.raises(DigestMismatchError):
            channel.check(name, "f" * 64, 30)
        channel.close()
        with pytest.raises(DigestMismatchError):
            ask(address, request._replace(digest="f" * 64))


def test_versions_come_and_go_under_traffic(tails, name, requests):
    repository = Repository([tails[0]])
    with GrpcServer(repository, port=0, workers=2) as server:
        address = f"127.0.0.1:{server.port}"
        with Traffic(address, requests, digests=(None, tails[0].bundle.digest)) as traffic:
            for served in ([tails[0], tails[1]], [tails[1], tails[0]], [tails[0]]) * 5:
                repository.replace(served)
                traffic.more(20)
        assert traffic.errors == []
        repository.replace([tails[1]])
        ask(address, requests[0][0])
        with pytest.raises(DigestMismatchError):
            ask(address, requests[0][0]._replace(digest=tails[0].bundle.digest))
        repository.replace([])
        with pytest.raises(ServerRefusedError):
            ask(address, requests[0][0])


def test_64_clients_each_get_their_own_answers(tails, requests):
    with (
        GrpcServer(tails[0], port=0, workers=2) as server,
        Traffic(f"127.0.0.1:{server.port}", requests, clients=64) as traffic,
    ):
        traffic.more(1500)
    assert traffic.errors == []


# --- clients that give up -------------------------------------------------------------------------------


def test_whoever_gave_up_is_not_computed(tails, name, requests):
    held = Held(tails[0].stages)
    with GrpcServer(Tail(held), port=0) as server:
        address, (request, expected) = f"127.0.0.1:{server.port}", requests[1]
        first = threading.Thread(target=ask, args=(address, request))
        first.start()
        assert held.inside.wait(30)
        with pytest.raises(DeadlineError):
            ask(address, request, 0.2)
        with triton.InferenceServerClient(address) as client:
            x = triton.InferInput("input", [1, 1, 28, 28], "FP32").set_data_from_numpy(request.tensors["input"])
            said = threading.Event()
            call = client.async_infer(name, [x], callback=lambda result, error: said.set())
            until(lambda: server._batcher.under_way == 3)
            call.cancel()
            assert said.wait(30)
            # The server learns of it a little later.
            until(lambda: not any(w.wanted() for line in server._batcher._waiting.values() for w in line))
            held.go.set()
            first.join(30)
            until(lambda: server._batcher.under_way == 0)
        assert held.runs == [(i, 1) for i in range(3)]  # the first one's
        np.testing.assert_allclose(ask(address, request).logits, expected.logits, rtol=1e-5, atol=1e-5)


# --- the end --------------------------------------------------------------------------------------------


def test_draining_answers_what_is_under_way_and_takes_no_more(tails, name, requests):
    held = Held(tails[0].stages)
    request, expected = requests[0]
    answers, ended = [], []
    with (
        GrpcServer(Tail(held), port=0) as server,
        HttpServer(server.service, port=0) as http,
    ):
        address = f"127.0.0.1:{server.port}"
        under_way = [threading.Thread(target=lambda: answers.append(ask(address, request))) for _ in range(3)]
        for thread in under_way:
            thread.start()
        until(lambda: server._batcher.under_way == 3)
        assert server.ready
        drain = threading.Thread(target=lambda: ended.append(server.drain(60)))
        drain.start()
        until(lambda: not server.ready)
        with triton.InferenceServerClient(address) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert not client.is_model_ready(name)
            assert {m.state for m in client.get_model_repository_index().models} == {"UNAVAILABLE"}
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{http.port}/v2/health/ready", timeout=10)
        with refused.value as answer:
            assert (answer.code, json.loads(answer.read())) == (503, {"ready": False})
        with pytest.raises(ServerUnavailableError, match="about to stop"):
            ask(address, request)
        assert ended == []
        held.go.set()
        for thread in (*under_way, drain):
            thread.join(30)
    assert ended == [True]
    assert len(answers) == 3
    for reply in answers:
        np.testing.assert_allclose(reply.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_closing_in_the_middle_of_a_batch_leaves_no_thread_behind(tails, requests):
    held = Held(tails[0].stages)
    request, errors = requests[40][0], []  # at cut 0

    def one():
        try:
            ask(address, request)
        except ServerUnavailableError as error:
            errors.append(error)

    server = GrpcServer(Tail(held), port=0)
    address = f"127.0.0.1:{server.port}"
    clients = [threading.Thread(target=one) for _ in range(4)]
    for thread in clients:
        thread.start()
    until(lambda: server._batcher.under_way == 4)
    closing = threading.Thread(target=server.close, args=(0.05,))
    closing.start()
    for thread in clients:
        thread.join(30)
    assert len(errors) == 4
    held.go.set()
    closing.join(30)
    assert not closing.is_alive()
    assert server._batcher.under_way == 0


def test_a_drain_that_takes_too_long_says_so(tails, requests):
    held = Held(tails[0].stages)
    with GrpcServer(Tail(held), port=0) as server:
        thread = threading.Thread(target=ask, args=(f"127.0.0.1:{server.port}", requests[0][0]))
        thread.start()
        assert held.inside.wait(30)
        assert server.drain(0.05) is False
        held.go.set()
        thread.join(30)


# --- signals --------------------------------------------------------------------------------------------


@pytest.fixture
def process():
    with ExitStack() as started:
        yield lambda *arguments: started.enter_context(ServeProcess(*arguments, "--grpc-port", "0"))


def test_sigterm_under_traffic_cuts_nobody_off(process, digits_bundle, requests):
    server = process(digits_bundle)
    with Traffic(server.address, requests, clients=16) as traffic:
        traffic.more(300)
        server.tell(signal.SIGTERM)
        assert server.end() == 0
    assert traffic.answers >= 300
    assert all(isinstance(error, ServerUnavailableError) for error in traffic.errors), traffic.errors[:3]
    assert "stopping" in server.lines[-1]


def test_an_output_that_nobody_reads_any_more_ends_no_server(digits_bundle, requests):
    """A Ctrl-C ends `offramp serve … | tee log` from both sides: who is under way is answered all the same."""
    command = [sys.executable, "-m", "offramp", "serve", str(digits_bundle), "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            address = server.stdout.readline().partition("listening on ")[2].partition(",")[0]
            server.stdout.close()
            with Traffic(address, requests) as traffic:
                server.send_signal(signal.SIGHUP)
                traffic.more(100)
                server.send_signal(signal.SIGTERM)
                assert server.wait(30) == 0
        finally:
            server.kill()
    assert traffic.answers >= 100
    assert all(isinstance(error, ServerUnavailableError) for error in traffic.errors), traffic.errors[:3]


def test_sighup_exchanges_bundles_under_traffic(process, folders, name, requests, tmp_path, tails):
    old, new = (tail.bundle.digest for tail in tails)
    models = tmp_path / "models"
    shutil.copytree(folders[0], models / "digits")
    server = process(models)
    with Traffic(server.address, requests, digests=(None, old)) as traffic:
        traffic.more(50)
        shutil.rmtree(models / "digits")
        shutil.copytree(folders[1], models / "digits")
        server.tell(signal.SIGHUP)
        assert server.said("loaded").endswith(f"loaded {name} {new[:12]}")
        assert ask(server.address, requests[0][0]._replace(digest=new)).logits.shape == (1, 10)
        traffic.more(50)
        (models / "digits" / "manifest.json").write_text("torn")
        server.tell(signal.SIGHUP)
        assert "manifest.json" in server.said("not read again")
        server.said("nothing changed")
        traffic.more(50)
    assert traffic.errors == []
    channel = GrpcChannel(server.address)
    for digest in (old, new):
        channel.check(name, digest, 30)
    shutil.rmtree(models / "digits")
    shutil.copytree(folders[0], models / "again")
    server.tell(signal.SIGHUP)
    assert f"unloaded {name} {new[:12]}" in server.said("unloaded")
    channel.check(name, old, 30)
    with pytest.raises(DigestMismatchError):
        channel.check(name, new, 30)
    channel.close()
    server.tell(signal.SIGTERM)
    assert server.end() == 0


def test_a_sighup_at_the_wrong_moment_ends_nothing(monkeypatch, digits_bundle):
    """Who tells the server to read again while it still loads, or drains, meant no harm."""
    moments, drained = [], GrpcServer.drain
    before = signal.signal(signal.SIGHUP, lambda number, frame: moments.append("it would have ended"))

    def load(bundle, **settings):
        os.kill(os.getpid(), signal.SIGHUP)
        return warm_tail(bundle, **settings)

    def reread(folders):
        moments.append("read again")
        os.kill(os.getpid(), signal.SIGTERM)

    def drain(server):
        os.kill(os.getpid(), signal.SIGHUP)
        return drained(server)

    monkeypatch.setattr("offramp.runtime.warming.warm_tail", load)
    monkeypatch.setattr("offramp.cli.serving._reread", reread)
    monkeypatch.setattr(GrpcServer, "drain", drain)
    try:
        done = CliRunner().invoke(app, ["serve", str(digits_bundle), "--grpc-port", "0"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.exit_code == 0, done.output
    assert moments == ["read again"]
