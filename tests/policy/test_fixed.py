import pytest

from offramp.errors import ConfigError
from offramp.policy.base import Action, Context
from offramp.policy.cost import CostModel
from offramp.policy.fixed import EdgeOnly, FixedSplit, ServerOnly

MODES = {-1: ("float", "uint8"), 0: ("float", "uint8"), 1: ("float",)}


def context(splits=(-1, 0, 1, 2), exits=(0,)):
    return Context(
        splits=splits,
        exits=exits,
        last=2,
        thresholds=(0.5, None, None),
        modes=MODES,
        mode="uint8",
        cost=CostModel.in_layers((3, 6, 9)),
    )


@pytest.mark.parametrize(
    ("policy", "action"),
    [
        (FixedSplit(-1), Action(-1, (), "uint8")),
        (FixedSplit(0), Action(0, (0,), "uint8")),
        (FixedSplit(0, gated=False), Action(0, (), "uint8")),
        (FixedSplit(1), Action(1, (), "float")),  # a cut without an exit, and without the usual mode
        (FixedSplit(2), Action(2, (), "float")),
        (ServerOnly(), Action(-1, (), "uint8")),
        (EdgeOnly(), Action(2, (), "float")),
    ],
)
def test_with_a_server(policy, action):
    assert [policy.choose(context()) for _ in range(3)] == [action] * 3


def test_edge_only_without_a_server_or_with_few_stages_goes_as_deep_as_it_can():
    assert EdgeOnly().choose(context(splits=(2,))) == Action(2)
    assert EdgeOnly().choose(context(splits=(-1, 0, 1))) == Action(1)


def test_a_fixed_split_does_not_move_when_the_edge_cannot_do_it():
    # The edge answers with an ActionError; another split would be measured under a wrong name.
    assert FixedSplit(0).choose(context(splits=(2,))).split == 0


def test_names_tell_gated_from_not():
    names = [p.name for p in (FixedSplit(1), FixedSplit(1, gated=False), ServerOnly(), EdgeOnly())]
    assert len(set(names)) == 4
    assert "1" in names[0]


def test_alpha_is_kept():
    assert FixedSplit(0, alpha=0.25).alpha == 0.25
    assert FixedSplit(0).alpha is None


def test_a_split_below_the_input_is_refused():
    with pytest.raises(ConfigError, match="-2"):
        FixedSplit(-2)
