import math

import pytest

from offramp.errors import ConfigError
from offramp.policy.cost import CostModel

#: I-SplitEE's MobileNetV2: exits after layers 3, 6, …, 18 and the final one (PAPERS.md §3)
DEPTHS = (*(3 * (n + 1) for n in range(6)), 19)
PAPER = CostModel.in_layers(DEPTHS)


def test_the_papers_numbers_at_its_defaults():
    assert PAPER.paid(0, True) == pytest.approx(0.8)
    assert PAPER.paid(6, False) == pytest.approx(1.9)
    assert PAPER.paid(-1, True) == pytest.approx(0.5)


def test_offloading_everything_at_the_first_arm_already_saves_57_9_percent():
    assert 1 - PAPER.paid(0, True) / PAPER.paid(6, False) == pytest.approx(0.579, abs=5e-4)


@pytest.mark.parametrize("stage", range(7))
def test_cost_is_depth_times_gamma_and_offloading_adds_o(stage):
    model = CostModel.in_layers(DEPTHS, gamma=0.25, offload=2.0)
    assert model.paid(stage, False) == pytest.approx(0.25 * DEPTHS[stage])
    sent = 2.0 if stage < 6 else 0.0  # the last stage sends nothing
    assert model.paid(stage, True) == pytest.approx(0.25 * DEPTHS[stage] + sent)


def test_nothing_run_and_nothing_sent_is_free():
    assert PAPER.paid(-1, False) == 0.0


def test_splitee_s_two_costs_are_one_model():
    """λ(.8(i−1)+1) with one head and λ·i with all of them, at layer i from 1 of 12 (PAPERS.md §4)."""
    lam = 0.1
    model = CostModel.in_layers(tuple(range(1, 13)), gamma=0.8 * lam, head=0.2 * lam, offload=3 * lam)
    for i in range(1, 13):
        assert model.paid(i - 1, False, (i - 1,)) == pytest.approx(lam * (0.8 * (i - 1) + 1))
        assert model.paid(i - 1, False, range(i)) == pytest.approx(lam * i)
        if i < 12:
            assert model.paid(i - 1, True, range(i)) == pytest.approx(lam * i + 3 * lam)


def test_i_splitees_heads_are_free():
    assert PAPER.paid(3, False, range(4)) == PAPER.paid(3, False)


@pytest.mark.parametrize("name", ["gamma", "offload", "head"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_negative_costs_are_refused(name, value):
    with pytest.raises(ConfigError, match="at least 0"):
        CostModel.in_layers((1, 2), **{name: value})
