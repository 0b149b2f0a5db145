"""An unmodified edge, and NVIDIA's own client, against replicas behind Ray Serve's gRPC server.

Ray listens on more than loopback: these tests run in a network of their own, where nobody else is.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from other_version import other_version
from tritonclient.utils import InferenceServerException
from turns import Turns, both
from under_traffic import ServeProcess, Traffic, until

import offramp as off
from offramp.bundle.preprocessing import preprocess
from offramp.errors import AccessError, DigestMismatchError, ServerRefusedError
from offramp.policy.registry import make_policy
from offramp.runtime.tail import TailRequest
from offramp.serving.channel import GrpcChannel

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("OFFRAMP_RAY", ROOT / ".venv-ray/bin/python"))
TOKEN = "0123456789abcdef0123456789abcdef"


def alone():
    """Whether no way leads out of this network."""
    routes = Path("/proc/net/route")
    return routes.exists() and len(routes.read_text().splitlines()) <= 1


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"Ray is not at {PYTHON}; `make test-ray` installs it"),
    pytest.mark.skipif(
        not alone(), reason="Ray listens on more than loopback; `make test-ray` gives it a network of its own"
    ),
]


def children(pid):
    """Every process below this one that is still there, as (id, command line)."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found, more = {pid}, True
    while more:
        more = {child for child, parent in parents.items() if parent in found} - found
        found |= more
    return [(child, names[child]) for child in found - {pid}]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(home, **variables):
    """Ours, but for Ray's settings; Ray keeps tokens and logs in a folder of the tests."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RAY_"))}
    own = {"PYTHONPATH": str(ROOT / "src"), "HOME": str(home), "RAY_TMPDIR": str(home)}
    return {**kept, **own, **variables}


class Server(ServeProcess):
    """`offramp serve --engine ray`, with the processes that it starts."""

    def __init__(self, home, *arguments, **variables):
        port = free_port()
        options = ("--engine", "ray", "--host", "0.0.0.0", "--grpc-port", port)
        super().__init__(*arguments, *options, python=PYTHON, env=environment(home, **variables))
        self.port = port

    @property
    def address(self):
        """It listens everywhere."""
        return f"127.0.0.1:{self.port}"

    def replicas(self):
        """The ids of the processes that hold the network."""
        return {pid for pid, name in children(self.process.pid) if "ServeReplica" in name}

    def end(self, number=signal.SIGTERM, seconds=30):
        """Asks it to end; gives the exit code, and whom it left behind for longer than some seconds."""
        mine = children(self.process.pid)
        self.tell(number)
        try:
            code = self.process.wait(90)
        finally:
            self.process.kill()
            self.process.wait()
            for _ in range(10 * seconds):
                left = [(pid, name) for pid, name in mine if Path(f"/proc/{pid}/cmdline").exists()]
                if not left:
                    break
                time.sleep(0.1)
            for pid, _ in left:
                os.kill(pid, signal.SIGKILL)
            self.close()
        return code, left


@contextmanager
def served(home, *arguments, **variables):
    server = Server(home, *arguments, **variables)
    try:
        server.said("listening on")
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


@pytest.fixture(scope="module")
def bundle(digits_bundle):
    return off.Bundle.load(digits_bundle)


@pytest.fixture(scope="module")
def home():
    """A short path: Ray's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def folder(digits_bundle, tmp_path_factory):
    """A folder that holds the bundle, and may be changed."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(digits_bundle, models / "digits")
    return models


@pytest.fixture(scope="module")
def server(folder, home):
    limits = ("--max-elements", 2_000_000, "--max-message-mb", 16)
    with served(home, folder, "--replicas", "2", *limits) as running:
        yield running


@pytest.fixture
def ours(bundle):
    with off.GrpcServer(off.Tail(off.Stages(bundle)), port=0) as running:
        yield f"127.0.0.1:{running.port}"


@pytest.fixture(scope="module")
def x(bundle, digit_images):
    return preprocess(digit_images[0], bundle.manifest.preprocessing)


@pytest.fixture(scope="module")
def requests(bundle, x):
    """Fifty requests, and what alone is answered to each."""
    tail = off.Tail(off.Stages(bundle))
    asked = [TailRequest(bundle.manifest.name, {"input": x[i : i + 1]}, bundle.digest, True) for i in range(50)]
    return [(request, tail.infer(request)) for request in asked]


# --- the same service ------------------------------------------------------------------------------------


def test_every_split_in_every_mode_answers_the_edge(bundle, server, ours, digit_images):
    actions = len(Turns(bundle.manifest).actions)
    images = digit_images[0][: 2 * actions]
    for theirs, mine in both(bundle, (server.address, ours), lambda: Turns(bundle.manifest), images):
        assert (theirs.status, theirs.where, theirs.exit) == ("ok", "server", mine.exit)
        assert theirs.payload_bytes == mine.payload_bytes
        np.testing.assert_allclose(theirs.probabilities, mine.probabilities, atol=1e-5)


def test_a_learner_with_gates(bundle, server, ours, digit_images):
    """Exits answer what they can, the server the rest, and the policy learns from both the same."""
    pairs = both(bundle, (server.address, ours), lambda: off.ISplitEE(alpha=0.9), digit_images[0][:200])
    assert {theirs.where for theirs, _ in pairs} == {"edge", "server"}
    for theirs, mine in pairs:
        assert theirs.status == "ok"
        assert (theirs.where, theirs.exit, theirs.label) == (mine.where, mine.exit, mine.label)


def test_nvidias_own_client(bundle, server, x):
    name = bundle.manifest.name
    tail = off.Tail(off.Stages(bundle))
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(name)
        assert not client.is_model_ready("nobody")
        assert client.get_server_metadata().name == "offramp"
        assert list(client.get_model_metadata(name).versions) == [bundle.digest]
        index = {(m.name, m.version, m.state) for m in client.get_model_repository_index().models}
        assert (name, bundle.digest, "READY") in index
        sent = triton.InferInput("input", [4, 1, 28, 28], "FP32").set_data_from_numpy(x[:4])
        answer = client.infer(name, [sent], parameters={"final": True}, request_id="seven")
        assert answer.get_response().id == "seven"
        expected = tail.infer(TailRequest(name, {"input": x[:4]}, None, True))
        np.testing.assert_allclose(answer.as_numpy("logits"), expected.logits, rtol=1e-5, atol=1e-5)
        with pytest.raises(InferenceServerException) as refused:
            client.load_model(name)
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_message_larger_than_grpcs_own_limit(bundle, server, x):
    many = np.repeat(x[:1], 2000, axis=0)
    assert many.nbytes > 4 * 2**20
    channel = GrpcChannel(server.address)
    reply = channel.infer(TailRequest(bundle.manifest.name, {"input": many}, bundle.digest, True), 60)
    assert reply.logits.shape == (2000, 10)
    channel.close()


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"model": "nobody"}, "NOT_FOUND", "no model 'nobody'"),
        ({"digest": "f" * 64}, "FAILED_PRECONDITION", "give both the same bundle"),
        ({"version": "f" * 64}, "FAILED_PRECONDITION", "give both the same bundle"),
        ({"shape": [1, 784]}, "INVALID_ARGUMENT", "input"),
        ({"outputs": ["heat"]}, "INVALID_ARGUMENT", "no output heat"),
        ({"count": 3_000}, "INVALID_ARGUMENT", "one request may hold 2000000"),
        ({"count": 6_000}, "RESOURCE_EXHAUSTED", "16 MiB"),
    ],
)
def test_refusals_keep_their_codes_and_texts(bundle, server, x, changes, code, word):
    count = changes.get("count", 1)
    values = np.repeat(x[:1], count, axis=0)
    values = values.reshape(changes.get("shape", values.shape))
    sent = triton.InferInput("input", list(values.shape), "FP32").set_data_from_numpy(values)
    outputs = [triton.InferRequestedOutput(name) for name in changes.get("outputs", ())]
    parameters = {"digest": changes["digest"]} if "digest" in changes else None
    with (
        triton.InferenceServerClient(server.address) as client,
        pytest.raises(InferenceServerException, match=word) as refused,
    ):
        client.infer(
            changes.get("model", bundle.manifest.name),
            [sent],
            model_version=changes.get("version", ""),
            outputs=outputs or None,
            parameters=parameters,
        )
    assert refused.value.status() == f"StatusCode.{code}"
    assert "Traceback" not in str(refused.value)


def test_an_edge_with_another_bundle_is_refused(bundle, server):
    manifest = bundle.manifest.model_copy(update={"name": "elsewhere"})
    with pytest.raises(ServerRefusedError, match="elsewhere"):
        off.Edge(off.Bundle(bundle.path, manifest, bundle.tuning, bundle.held), server.address)


# --- replicas that come and go ---------------------------------------------------------------------------


def test_a_replica_is_killed_and_the_edge_goes_on(bundle, server, ours, digit_images):
    before = until(lambda: found if len(found := server.replicas()) == 2 else None)
    images, killed = np.concatenate([digit_images[0]] * 4)[:1200], []
    with off.Edge(bundle, server.address, make_policy("split-0-all", seed=0), deadline_ms=5_000) as edge:
        results = []
        for result in edge.run(images):
            results.append(result)
            if len(results) == 200:
                killed.append(min(before))
                os.kill(killed[0], signal.SIGKILL)
            if len(results) > 300 and (len(server.replicas()) == 2 and killed[0] not in server.replicas()):
                break
            time.sleep(0.005)
    assert [result.index for result in results] == list(range(len(results)))
    assert {result.status for result in results} <= {"ok", "degraded"}
    with off.Edge(bundle, ours, make_policy("split-0-all", seed=0), deadline_ms=5_000) as edge:
        for result, mine in zip(results, edge.run(images[: len(results)]), strict=True):
            if result.status == "ok":
                assert (result.where, result.exit, result.label) == (mine.where, mine.exit, mine.label)
    assert sum(result.status == "ok" for result in results) > len(results) / 2
    after = until(lambda: found if len(found := server.replicas()) == 2 else None)
    assert len(after & before) == 1


def test_a_new_version_beside_the_old_one(bundle, server, folder, requests):
    """Last of those that share this server: it holds two versions afterwards."""
    newer = other_version(bundle.path, folder / "newer")
    before = server.replicas()
    with Traffic(server.address, requests, digests=(bundle.digest,)) as traffic:
        server.tell(signal.SIGHUP)
        server.said("has read the bundles again")
    assert traffic.errors == []
    assert not server.replicas() & before
    channel = GrpcChannel(server.address)
    for digest in (bundle.digest, newer.digest) * 8:  # whichever replica is asked
        channel.check(bundle.manifest.name, digest, 30)
    with pytest.raises(DigestMismatchError):
        channel.check(bundle.manifest.name, "f" * 64, 30)
    (folder / "newer" / "manifest.json").write_text("torn")
    server.tell(signal.SIGHUP)
    assert "manifest.json" in server.said("error:")
    channel.check(bundle.manifest.name, newer.digest, 30)
    channel.close()


def test_tokens_more_replicas_under_load_and_an_end_that_cuts_nobody_off(bundle, digits_bundle, requests, home):
    with served(home, digits_bundle, "--replicas", "1..2", OFFRAMP_TOKEN=TOKEN) as server:
        channel = GrpcChannel(server.address)
        assert channel.ping_ms() > 0
        with pytest.raises(AccessError, match="valid token"):
            channel.check(bundle.manifest.name, bundle.digest)
        channel.close()
        assert len(server.replicas()) == 1
        known = {"digests": (bundle.digest,), "credentials": off.Credentials(token=TOKEN)}
        with Traffic(server.address, requests, clients=16, **known) as traffic:
            until(lambda: len(server.replicas()) == 2, 90)
            before = traffic.answers
            until(lambda: traffic.answers > before + 100)
            assert traffic.errors == []
            code, left = server.end()
    assert (code, left) == (0, [])
    assert [line for line in server.lines if "stopping" in line]
    # Whoever was under way was answered: what comes later meets no application, then no port.
    cut_off = [e for e in traffic.errors if not re.search("Application|failed to connect", str(e))]
    assert cut_off == []


def test_no_token_is_written_anywhere(home):
    """After the test above: neither in Ray's logs nor in what it keeps."""
    files = [file for file in home.rglob("*") if file.is_file()]
    assert [file for file in files if "serve" in str(file)]
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]


# --- a cluster that was there before ---------------------------------------------------------------------


@pytest.fixture
def cluster(home):
    """`ray start`, which asks for a token; gives its address and that token."""
    token, address = "f" * 64, f"127.0.0.1:{free_port()}"
    command = [PYTHON.with_name("ray"), "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=false"]
    command += ["--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}", "--disable-usage-stats"]
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    process = subprocess.Popen(
        command,
        env=environment(home, **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: process.poll() is None and reaches(address))
        yield process, address, variables
    finally:
        mine = children(process.pid)
        process.terminate()
        process.wait(30)
        for pid, _ in mine:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)


def reaches(address):
    host, port = address.split(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


def test_a_cluster_is_joined_and_left_as_it_was(bundle, digits_bundle, home, cluster, x):
    process, address, variables = cluster
    request = TailRequest(bundle.manifest.name, {"input": x[:1]}, bundle.digest, True)
    with served(home, digits_bundle, "--ray-address", address, **variables) as server:
        channel = GrpcChannel(server.address)
        assert channel.infer(request, 30).logits.shape == (1, 10)
        channel.close()
        code, text = refused(home, digits_bundle, "--ray-address", address, **variables)
        assert code == 1
        assert "runs on this cluster already, with offramp" in text
        assert server.end()[0] == 0
    assert process.poll() is None
    # Ray Serve has gone with it: there is room for the next one, found by the environment.
    with served(home, digits_bundle, RAY_ADDRESS=address, **variables) as server:
        channel = GrpcChannel(server.address)
        assert channel.infer(request, 30).logits.shape == (1, 10)
        channel.close()
        assert server.end(signal.SIGINT)[0] == 0
    assert process.poll() is None


# --- what cannot be --------------------------------------------------------------------------------------


def refused(home, *arguments, **variables):
    done = subprocess.run(
        [PYTHON, "-m", "offramp", "serve", *map(str, arguments), "--engine", "ray", "--host", "0.0.0.0"],
        env=environment(home, **variables),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stderr


def test_no_such_cluster(digits_bundle, home):
    code, text = refused(home, digits_bundle, RAY_ADDRESS="127.0.0.1:9")
    assert code == 1
    assert "no Ray cluster at 127.0.0.1:9" in text


def test_more_replicas_than_processors(digits_bundle, home):
    code, text = refused(home, digits_bundle, "--replicas", "1000")
    assert code == 2
    assert "1000 replicas" in text


def test_an_edge_copy(bundle, home, tmp_path):
    bundle.edge_copy(tmp_path / "edge", 1)
    code, text = refused(home, tmp_path / "edge")
    assert code == 1
    assert "1 of 3 stages" in text


def test_replicas_that_cannot_start_say_why(digits_bundle, home):
    code, text = refused(home, digits_bundle, "--provider", "abacus")
    assert code == 1
    assert "available: " in text


def test_asked_to_end_before_it_serves(digits_bundle, home):
    server = Server(home, digits_bundle)
    until(lambda: children(server.process.pid))
    time.sleep(2)
    code, left = server.end(seconds=90)  # agents that Ray has just begun see after a minute that they are alone
    assert code != 0
    assert left == []
    assert not [line for line in server.lines if "Traceback" in line], server.lines


def test_a_port_in_use(digits_bundle, home):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        code, text = refused(home, digits_bundle, "--grpc-port", taken.getsockname()[1])
    assert code == 1
    assert "port" in text
