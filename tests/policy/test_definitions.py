"""The learners against their definitions, written out: every reward kept, every mean summed anew."""

import math

import numpy as np
import pytest
from worlds import ALPHA, COST, context, drawn, play, problem

from offramp.policy.cost import CostModel
from offramp.policy.registry import make_policy


def oracle(world, *, side, published=False, discount=1.0, window=None, c=1.0):
    """PAPERS.md §3 and 4: mean reward + c·sqrt(ln(t + 1)/N), each arm once first; the arms in the samples' order.

    What is forgotten is as Garivier and Moulines define it: weights γ^(t − s), or the last plays alone.
    """
    arms = range(len(world.arms))
    last = len(world.arms) - 1
    plays = []  # per play, arm → reward
    chosen = []
    for confidence, sure in zip(world.confidence, world.sure, strict=True):
        kept = plays if window is None else plays[-window:]
        weights = [discount ** (len(kept) - 1 - s) for s in range(len(kept))]
        t = sum(weights)
        index = {}
        for i in arms:
            known = [(w, rewards[i]) for w, rewards in zip(weights, kept, strict=True) if i in rewards]
            n = sum(w for w, _ in known)
            mean = sum(w * r for w, r in known) / n if known else math.inf
            index[i] = mean + c * math.sqrt(math.log(t + 1) / n) if known else math.inf
        k = max(arms, key=index.get)
        chosen.append(k)
        rewards = {}
        for i in range(0 if side else k, k + 1):
            if sure[i]:
                rewards[i] = confidence[i] - world.local_cost[i]
            elif i == k or not sure[k] or k == last or published:
                rewards[i] = confidence[last] - world.offload_cost[i]
        plays.append(rewards)
    return chosen


FORGETTING = {"keeps all": {}, "discount": {"discount": 0.9}, "window": {"window": 20}}


@pytest.mark.parametrize("forgetting", FORGETTING.values(), ids=FORGETTING)
@pytest.mark.parametrize(
    ("name", "options"),
    [("splitee", {}), ("i-splitee", {}), ("splitee-s", {}), ("splitee-s", {"published": True})],
)
def test_they_play_as_defined(name, options, forgetting):
    cost = CostModel.in_layers((1, 2, 3, 4), gamma=0.08, head=0.02, offload=0.3)
    confidence, prediction = drawn(21, 250)
    side = name != "splitee"
    expected = oracle(problem(confidence, cost=cost, heads=side), side=side, **options, **forgetting)
    policy = make_policy(name, alpha=ALPHA, **options, **forgetting)
    actions = play(policy, context(cost=cost), confidence, prediction)
    assert [a.split for a in actions] == expected
    assert len(set(expected)) == 4


def test_splitee_runs_one_head_and_splitee_s_all_of_them():
    confidence, prediction = drawn(22, 4)
    one = play(make_policy("splitee", alpha=ALPHA), context(), confidence, prediction)
    every = play(make_policy("splitee-s", alpha=ALPHA), context(), confidence, prediction)
    assert [a.watch for a in one] == [()] * 4
    assert [a.watch for a in every] == [(), (0,), (0, 1), (0, 1, 2)]
    assert [a.exits for a in one] == [a.exits for a in every] == [(0,), (1,), (2,), ()]


@pytest.mark.parametrize("name", ["splitee", "splitee-s"])
def test_a_failed_offload_earns_what_was_answered_less_what_was_paid(name):
    policy = make_policy(name, alpha=ALPHA)
    play(policy, context(), np.array([[0.4, 0.9, 0.9, 0.9]]), np.zeros((1, 4), int), failing=[0])
    assert policy.means[0] == pytest.approx(0.4 - COST.paid(0, True))


def test_under_a_discount_what_is_left_is_a_geometric_sum():
    policy = make_policy("splitee-s", alpha=0.0, discount=0.5)
    play(policy, context(), *drawn(23, 1500))
    assert policy.plays == pytest.approx(2.0)
    assert policy.counts[0] == pytest.approx(2.0)  # arm 0 is seen at every play
    assert all(math.isfinite(mean) for mean in policy.means.values())
