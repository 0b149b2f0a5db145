"""That the compiled replay plays as the policy itself does, choice by choice."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from worlds import ALPHA, context, drawn, play, problem

from offramp.errors import ConfigError, MissingExtraError
from offramp.policy import compiled
from offramp.policy.cost import CostModel
from offramp.policy.registry import POLICIES, make_policy

KINDS = {
    "observable": {},
    "audited": {"audit": 0.2},
    "audited always": {"audit": 1.0},
    "published": {"published": True},
    "discounted": {"discount": 0.97},
    "discounted much": {"discount": 0.4},  # weights pass their limit every 251 plays
    "windowed": {"window": 30},
    "window of one": {"window": 1},
    "window longer than the run": {"window": 10_000},
    "audited, discounted": {"audit": 0.3, "discount": 0.99},
    "audited, windowed": {"audit": 0.3, "window": 50},
    "published, windowed": {"published": True, "window": 40},
    "dear and curious": {"mu": 2.5, "c": 0.3},
    "not curious": {"c": 0.0},
}
FAMILY = {
    "i-splitee": set(),
    "splitee-s": set(),
    "splitee": {"audit", "published"},
    "uee-ucb": {"audit", "published"},
}
CASES = [
    (name, kind) for name, lacks in FAMILY.items() for kind, options in KINDS.items() if not lacks & set(options)
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_scalar_and_the_compiled_form_choose_the_same_arms(name, kind):
    cost = CostModel.in_layers((3, 6, 9, 12), gamma=0.04, offload=0.3, head=0.02)
    confidence, prediction = drawn(11, 700)
    policy = make_policy(name, alpha=ALPHA, seed=4, **KINDS[kind])
    world = problem(confidence, cost=cost, prediction=prediction, heads=policy.watches)
    orders = np.stack([np.random.default_rng(run).permutation(len(world)) for run in range(3)])
    arms = policy.replay(world, orders, seed=4)
    audits = policy.audited(orders.shape, seed=4)
    assert arms.shape == orders.shape
    for run, order in enumerate(orders):
        alone = make_policy(name, alpha=ALPHA, seed=4 + run, **KINDS[kind])
        actions = play(alone, context(cost=cost), confidence[order], prediction[order])
        assert [a.split for a in actions] == arms[run].tolist()
        open_gates = [a.split < 3 and not a.exits for a in actions]
        assert open_gates == (audits[run] & (arms[run] < 3)).tolist()
    if kind not in ("window of one", "not curious"):
        assert len(np.unique(arms)) >= 3


def test_a_random_arm_is_the_same_too():
    confidence, prediction = drawn(12, 200)
    orders = np.arange(200)[None].repeat(3, axis=0)
    arms = make_policy("random").replay(problem(confidence), orders, seed=7)
    for run in range(3):
        actions = play(make_policy("random", alpha=ALPHA, seed=7 + run), context(), confidence, prediction)
        assert [a.split for a in actions] == arms[run].tolist()


def test_a_replay_leaves_the_policy_as_it_was():
    policy = make_policy("i-splitee", audit=0.5)
    before = policy.state()
    policy.replay(problem(drawn(1)[0]), np.arange(300)[None])
    assert policy.state() == before


@pytest.mark.parametrize("name", sorted(n for n in POLICIES if hasattr(POLICIES[n], "replay")))
@pytest.mark.parametrize(
    ("orders", "said"),
    [
        (np.array([[0, 1, 300]]), "0 to 299"),
        (np.array([[-1, 1, 3]]), "0 to 299"),
        (np.arange(10), "shape"),
        (np.zeros((2, 3)), "float64"),
        ([["a"]], "orders"),
    ],
)
def test_orders_that_leave_the_samples_are_refused(name, orders, said):
    with pytest.raises(ConfigError, match=said):
        make_policy(name).replay(problem(drawn(1)[0]), orders)


def test_no_plays_are_no_arms():
    assert make_policy("i-splitee").replay(problem(drawn(1)[0]), np.empty((2, 0), np.int64)).shape == (2, 0)


def test_without_numba_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(MissingExtraError, match=r"numba.*offramp\[replay\]"):
        compiled._compiled.__wrapped__()


def test_costs_are_those_of_the_problem():
    """An arm that costs nothing is played, wherever it stands."""
    confidence = np.full((500, 3), 0.9)
    for free in range(3):
        world = replace(problem(confidence), local_cost=np.where(np.arange(3) == free, 0.0, 0.5))
        arms = make_policy("splitee", alpha=ALPHA, c=0.1).replay(world, np.arange(500)[None])
        assert (arms[0, 50:] == free).mean() > 0.9
