from collections import Counter

import pytest

from offramp.errors import ActionError
from offramp.policy.base import Action, Context
from offramp.policy.cost import CostModel
from offramp.policy.random import RandomArm


def context(splits=(-1, 0, 1, 2, 3), exits=(0, 2)):
    return Context(
        splits=splits,
        exits=exits,
        last=3,
        thresholds=(0.5, None, 0.5, None),
        modes={0: ("float", "uint8"), 2: ("float",)},
        mode="uint8",
        cost=CostModel.in_layers((1, 2, 3, 4)),
    )


def draws(policy, n=50):
    return [policy.choose(context()) for _ in range(n)]


def test_the_seed_decides():
    assert draws(RandomArm(seed=3)) == draws(RandomArm(seed=3))
    assert draws(RandomArm(seed=3)) != draws(RandomArm(seed=4))


def test_only_arms_with_their_gates_all_about_equally_often():
    counts = Counter(draws(RandomArm(seed=0), 3000))
    assert set(counts) == {Action(0, (0,), "uint8"), Action(2, (2,), "float"), Action(3, (), "float")}
    assert all(880 < n < 1120 for n in counts.values())  # 1000 ± 4.6 standard deviations


def test_without_a_server_the_last_is_the_only_arm():
    assert RandomArm().choose(context(splits=(3,))) == Action(3)


def test_an_edge_without_arms_is_an_error_of_ours():
    # Two stages held, the second cut without an exit, and no server.
    with pytest.raises(ActionError):
        RandomArm().choose(context(splits=(1,), exits=(0,)))
