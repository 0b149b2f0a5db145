"""Verdicts: that they hold, and that they fail."""

from __future__ import annotations

import pytest

from offramp.reproduce.bars import BARS, Standing, compared, said, signed, verdicts

GOOD = Standing(saved=0.70, points=-1.0, regret=40.0)
RANDOM = Standing(saved=0.2, points=0.0, regret=100.0)
ARMS = {"split-0": Standing(0.71, -1.5, 0.0), "split-1": Standing(0.60, 0.0, 80.0)}


def holding(learner: Standing, arms: dict[str, Standing] = ARMS, random: Standing = RANDOM) -> dict[str, bool]:
    found = {v.bar: v.holds for v in verdicts(learner, arms, random)}
    assert list(found) == list(BARS)
    return found


def test_a_good_learner_reaches_every_bar() -> None:
    assert all(holding(GOOD).values())


@pytest.mark.parametrize(
    ("learner", "fails"),
    [
        (Standing(0.649, -1.0, 40.0), {"cost"}),
        (Standing(0.65, -2.0, 49.9), {"not dominated"}),
        (Standing(0.70, -2.01, 40.0), {"accuracy", "not dominated"}),
        (Standing(0.70, -1.0, 50.0), {"regret"}),
        (Standing(0.549, -5.0, 40.0), {"cost", "accuracy", "not dominated", "paper"}),
        (Standing(0.72, -5.01, 40.0), {"accuracy", "paper"}),
        (Standing(0.71, -1.5, 0.0), set()),  # as an arm: that dominates nobody
    ],
)
def test_each_bar_can_be_missed(learner: Standing, fails: set[str]) -> None:
    assert {bar for bar, holds in holding(learner).items() if not holds} == fails


def test_who_dominates_is_named_with_the_margin() -> None:
    above = {**ARMS, "split-2": Standing(0.7025, -0.996, 5.0)}
    found = {v.bar: v for v in verdicts(GOOD, above, RANDOM)}["not dominated"]
    assert not found.holds
    assert found.figures == "by split-2: 0.25 % of the final exit's cost cheaper, 0.004 points better"
    assert not holding(GOOD, random=Standing(0.2, 0.0, 0.0))["regret"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Standing(0.70, -1.0, 0.0), "AS GOOD OR BETTER"),
        (Standing(0.80, 0.0, 0.0), "AS GOOD OR BETTER"),
        (Standing(0.691, -1.49, 0.0), "AS GOOD OR BETTER"),
        (Standing(0.90, -1.51, 0.0), "cheaper and less accurate"),
        (Standing(0.68, 0.0, 0.0), "dearer and more accurate"),
        (Standing(0.68, -1.0, 0.0), "worse"),
    ],
)
def test_what_a_rival_is(other: Standing, told: str) -> None:
    assert compared(GOOD, other) == told


def test_costs_that_stand_alike_are_told_together() -> None:
    stands = [("γ", "holds", "-70 %"), ("2γ", "DOES NOT HOLD", "-60 %"), ("3γ", "holds", "-66 %")]
    assert said("cost", stands) == "cost: holds at o = γ (-70 %), 3γ (-66 %); DOES NOT HOLD at o = 2γ (-60 %)"


def test_nothing_is_minus_zero() -> None:
    assert [signed(v, 2) for v in (-0.001, 0.0, 0.004, -1.234, 2.0)] == ["0.00", "0.00", "0.00", "-1.23", "+2.00"]
