"""An unmodified edge against MLServer, an Open Inference Protocol server that is not ours."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from turns import Turns, both

import offramp as off
from offramp.errors import ServerRefusedError, ServerUnavailableError
from offramp.runtime.tail import tail_models
from offramp.serving.channel import GrpcChannel

RUNTIME = Path(__file__).parent / "mlserver"
PYTHON = Path(os.environ.get("OFFRAMP_MLSERVER", Path(__file__).parents[2] / ".venv-mlserver/bin/python"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(), reason=f"MLServer is not at {PYTHON}; `make test-mlserver` installs it"
    ),
]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def bundle(digits_bundle):
    return off.Bundle.load(digits_bundle)


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    """MLServer with every tail of the digits, in a process of its own environment; gives its gRPC address."""
    home = tmp_path_factory.mktemp("mlserver")
    http, grpc = free_ports(2)
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "grpc_max_message_length": 64 * 2**20,
    }
    (home / "settings.json").write_text(json.dumps(settings))
    for model in tail_models(bundle.manifest):
        (home / model.name).mkdir()
        extra = {"bundle": str(bundle.path), "cut": model.cut, "mode": model.mode}
        described = {"name": model.name, "implementation": "tails.Tail", "parameters": {"extra": extra}}
        (home / model.name / "model-settings.json").write_text(json.dumps(described))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [PYTHON.with_name("mlserver"), "start", home],
            cwd=home,
            env={**environment, "PYTHONPATH": str(RUNTIME)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(process, f"127.0.0.1:{grpc}", tail_models(bundle.manifest)[-1].name, home / "log")
        yield f"127.0.0.1:{grpc}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process, address, model, log, seconds=60.0):
    channel, end = GrpcChannel(address), time.monotonic() + seconds
    while True:
        try:
            channel.check(model, "0" * 64)
        except (ServerUnavailableError, ServerRefusedError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        else:
            channel.close()
            return


@pytest.fixture
def ours(bundle):
    with off.GrpcServer(off.Tail(off.Stages(bundle)), port=0) as running:
        yield f"127.0.0.1:{running.port}"


@pytest.mark.timeout(300)
def test_every_tail_answers_the_edge(bundle, server, ours, digit_images):
    actions = len(Turns(bundle.manifest).actions)
    pairs = both(bundle, (server, ours), lambda: Turns(bundle.manifest), digit_images[0][: 2 * actions])
    for theirs, mine in pairs:
        assert (theirs.status, theirs.where, theirs.exit) == ("ok", "server", bundle.manifest.last)
        assert theirs.payload_bytes == mine.payload_bytes
        if mine.exit == theirs.exit:  # ours may leave early, MLServer knows no exits
            np.testing.assert_allclose(theirs.probabilities, mine.probabilities, atol=1e-5)
    assert sum(mine.exit == bundle.manifest.last for _, mine in pairs) > len(pairs) / 4


@pytest.mark.timeout(300)
def test_a_learner_with_gates(bundle, server, ours, digit_images):
    """The usual way: exits answer what they can, the server the rest, and the policy learns from both the same."""
    pairs = both(bundle, (server, ours), lambda: off.ISplitEE(alpha=0.9), digit_images[0][:200])
    assert {theirs.where for theirs, _ in pairs} == {"edge", "server"}
    for theirs, mine in pairs:
        assert theirs.status == "ok"
        assert (theirs.where, theirs.exit, theirs.label) == (mine.where, mine.exit, mine.label)


@pytest.mark.timeout(300)
def test_a_bundle_that_it_does_not_hold(bundle, server):
    manifest = bundle.manifest.model_copy(update={"name": "elsewhere"})
    other = off.Bundle(bundle.path, manifest, bundle.tuning, bundle.held)
    with pytest.raises(ServerRefusedError, match="elsewhere"):
        off.Edge(other, server)
