import pytest

from offramp.errors import ConfigError
from offramp.policy.base import Action, Context
from offramp.policy.cascade import ThresholdCascade
from offramp.policy.cost import CostModel


def context(splits, exits=(0, 2), last=3):
    return Context(
        splits=splits,
        exits=exits,
        last=last,
        thresholds=(0.5,) * last + (None,),
        modes=dict.fromkeys(range(-1, last), ("float", "uint8")),
        mode="uint8",
        cost=CostModel.in_layers((1, 2, 3, 4)),
    )


@pytest.mark.parametrize(
    ("splits", "exits", "action"),
    [
        ((-1, 0, 1, 2, 3), (0, 2), Action(2, (0, 2), "uint8")),
        ((-1, 0, 1), (0,), Action(1, (0,), "uint8")),  # two stages held, the second cut without an exit
        ((-1, 0), (0,), Action(0, (0,), "uint8")),
        ((3,), (0, 2), Action(3, (0, 2), "float")),  # no server: the exits still save the rest
        ((1,), (0,), Action(1, (0,), "uint8")),  # no server, two stages held
    ],
)
def test_as_deep_as_possible_before_the_last(splits, exits, action):
    assert ThresholdCascade().choose(context(splits, exits)) == action


def test_chosen_exits_only_and_none_beyond_the_split():
    policy = ThresholdCascade(exits=(0, 2))
    assert policy.choose(context((-1, 0, 1), exits=(0,))).exits == (0,)
    assert ThresholdCascade(exits=(2,)).choose(context((-1, 0, 1, 2, 3))).exits == (2,)
    assert ThresholdCascade(exits=()).choose(context((-1, 0, 1, 2, 3))).exits == ()


def test_alpha_is_kept():
    assert ThresholdCascade(alpha=0.9).alpha == 0.9


def test_no_deeper_than_told():
    everything = context((-1, 0, 1, 2, 3))
    assert ThresholdCascade(split=1).choose(everything) == Action(1, (0,), "uint8")
    assert ThresholdCascade(split=9).choose(everything).split == 2
    assert ThresholdCascade(split=1).choose(context((3,))).split == 3  # without a server there is no other
    with pytest.raises(ConfigError, match="0 or more, not -1"):
        ThresholdCascade(split=-1)
