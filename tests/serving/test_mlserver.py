"""An unmodified edge against MLServer, an Open Inference Protocol server that is not ours."""

from __future__ import annotations

import numpy as np
import pytest
from turns import Turns, both

import offramp as off
from benchmarks.serving.mlserver import PYTHON, mlserver
from offramp.errors import ServerRefusedError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(), reason=f"MLServer is not at {PYTHON}; `make test-mlserver` installs it"
    ),
]


@pytest.fixture(scope="module")
def bundle(digits_bundle):
    return off.Bundle.load(digits_bundle)


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    with mlserver(bundle, tmp_path_factory.mktemp("mlserver")) as address:
        yield address


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
