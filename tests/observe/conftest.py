import urllib.request
from contextlib import contextmanager

import pytest

from offramp.connect import Edge
from offramp.policy.base import Action, Policy
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail
from offramp.serving.server import GrpcServer


class Script(Policy):
    """The actions given, in turn."""

    name = "script"

    def __init__(self, *actions):
        self._actions, self._turn = actions, 0

    def choose(self, context):
        self._turn += 1
        return self._actions[(self._turn - 1) % len(self._actions)]


@pytest.fixture
def script():
    return lambda *actions: Script(*(Action(*action) for action in actions))


@pytest.fixture
def scrape():
    """The text of `/metrics` on a port of this machine."""

    def get(port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    return get


@pytest.fixture
def joined(tiny):
    """An edge and its server: `with joined(policy, server={…}, edge={…}) as (edge, server)`."""

    @contextmanager
    def make(policy, *, server=None, edge=None):
        with (
            GrpcServer(Tail(Stages(tiny)), port=0, **(server or {})) as far,
            Edge(tiny, f"127.0.0.1:{far.port}", policy, **{"deadline_ms": 60_000, **(edge or {})}) as near,
        ):
            yield near, far

    return make
