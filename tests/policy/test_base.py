import dataclasses

import pytest

from offramp.errors import ActionError
from offramp.policy.base import Action, Context, Observation, Policy
from offramp.policy.cost import CostModel


class AlwaysInput(Policy):
    def __init__(self, alpha=None):
        self.alpha = alpha

    def choose(self, context):
        return Action(-1)


def context(splits, exits, last, *, modes=None, mode="float", thresholds=None):
    return Context(
        splits=splits,
        exits=exits,
        last=last,
        thresholds=thresholds or (0.5,) * last + (None,),
        modes=modes or {},
        mode=mode,
        cost=CostModel.in_layers(tuple(range(1, last + 2))),
    )


@pytest.mark.parametrize(
    ("splits", "exits", "last", "arms"),
    [
        ((-1, 0, 1, 2), (0, 1), 2, (0, 1, 2)),
        ((-1, 0, 1, 2), (1,), 2, (1, 2)),  # a cut without an exit is no arm
        ((-1, 0, 1), (0, 1), 2, (0, 1)),  # the last stage is not held
        ((2,), (0, 1), 2, (2,)),  # no server: only the deepest split
        ((1,), (0,), 2, ()),
    ],
)
def test_arms_are_the_splits_with_an_exit_and_the_last(splits, exits, last, arms):
    assert context(splits, exits, last).arms == arms


def test_the_gate_of_a_split_is_its_exit_or_nothing():
    c = context((-1, 0, 1, 2), (1,), 2)
    assert [c.gate(k) for k in c.splits] == [(), (), (1,), ()]


def test_the_usual_mode_is_taken_where_the_cut_has_it():
    c = context((-1, 0, 1), (0,), 2, modes={-1: ("float",), 0: ("float", "uint8")}, mode="uint8")
    assert [c.mode_at(k) for k in (-1, 0, 1, 2)] == ["float", "uint8", "float", "float"]


@pytest.mark.parametrize(
    ("link_mbps", "expected"),
    [(None, [False] * 4), (3.9, [False, True, True, False]), (4.0, [False, False, True, False])],
)
def test_cuts_are_compressed_where_that_pays_at_the_link_s_rate(link_mbps, expected):
    modes = {-1: ("float",), 0: ("float", "uint8"), 1: ("float",)}
    found = dataclasses.replace(
        context((-1, 0, 1, 2), (0,), 2, modes=modes, mode="uint8"),
        gzip_below_mbps={"cut_0.uint8": 4.0, "cut_0.float": 90.0, "cut_1.float": 50.0},
        link_mbps=link_mbps,
    )
    assert [found.action(k).gzip for k in (-1, 0, 1, 2)] == expected
    assert found.action(0, (0,), (0,)) == Action(0, (0,), "uint8", (0,), gzip=expected[1])


def test_a_policys_alpha_goes_before_the_bundles_threshold():
    c = context((0, 1), (0,), 1, thresholds=(0.7, None))
    assert AlwaysInput(alpha=0.0).threshold(c, 0) == 0.0
    assert AlwaysInput().threshold(c, 0) == 0.7


def test_no_alpha_and_no_threshold_is_an_error_that_says_what_to_do():
    c = context((0, 1, 2), (0,), 2, thresholds=(0.7, None, None))
    with pytest.raises(ActionError, match=r"exit 1 has no threshold.*alpha"):
        AlwaysInput().threshold(c, 1)


def test_a_policy_that_does_not_learn_needs_no_update():
    policy = AlwaysInput()
    before = dict(vars(policy))
    policy.update(Action(-1), Observation(confidence=0.5))
    assert vars(policy) == before


def test_a_policy_must_choose():
    class Chooseless(Policy):
        pass

    with pytest.raises(TypeError):
        Chooseless()


def test_actions_and_observations_cannot_change():
    with pytest.raises(AttributeError):
        Action(0).split = 1
    with pytest.raises(AttributeError):
        Observation().cost = 1.0
