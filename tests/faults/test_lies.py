"""A server that lies: an answer that cannot be right is none, and one that is merely odd is taken."""

import random

import numpy as np
import pytest
from liar import CODES, LIES, ODDITIES
from tiny_bundle import WIDTH
from world import wrong

from offramp.policy.fixed import FixedSplit
from offramp.runtime.breaker import CircuitBreaker
from offramp.runtime.edge import Edge
from offramp.serving.channel import GrpcChannel

DEADLINE_MS = 10_000


@pytest.fixture
def told(world):
    """An edge's results, checked, while the liar says what it is told to, and those after it."""

    def run(lie, under_way=4):
        draw = random.Random(7)
        inputs = [np.array([draw.uniform(-3, 3) for _ in range(WIDTH)], np.float32) for _ in range(6)]
        options = {"deadline_ms": DEADLINE_MS, "breaker": CircuitBreaker(failures=10_000)}
        channel = GrpcChannel(f"127.0.0.1:{world.liar.port}")
        with Edge(world.bundle, channel, FixedSplit(0, gated=False), **options) as edge:
            try:
                world.liar.lie = lie
                lied = list(edge.run(inputs, under_way=under_way))
            finally:
                world.liar.lie = None
            honest = list(edge.run(inputs, under_way=under_way))
        for x, r in zip(inputs * 2, lied + honest, strict=True):
            assert wrong(world, world.bundle, x, r, alpha=None, deadline_ms=DEADLINE_MS) is None
        return lied, honest

    return run


@pytest.mark.parametrize("lie", [*LIES, *CODES], ids=str)
def test_a_lie_is_no_answer(told, lie):
    lied, honest = told(lie)
    assert {(r.status, r.where) for r in lied} == {("degraded", "edge")}
    assert {(r.status, r.where) for r in honest} == {("ok", "server")}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_an_oddity_is_taken(told, oddity):
    lied, _ = told(oddity)
    assert {(r.status, r.where) for r in lied} == {("ok", "server")}
    assert all(0 <= r.latency_ms.server <= r.latency_ms.total for r in lied)
