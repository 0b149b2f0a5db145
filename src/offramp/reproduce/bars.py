"""What was aimed at, and whether a learner reached it: verdicts in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["BARS", "LOST", "SAVED", "Standing", "Verdict", "compared", "said", "signed", "verdicts"]

#: The aims: share of the final exit's cost saved, points of accuracy lost, share of random's regret.
SAVED, LOST, REGRET = 0.65, 2.0, 0.5
#: What the paper claims (arXiv 2401.10541).
PAPER_SAVED, PAPER_LOST = 0.55, 5.0
#: How many points of accuracy, and what share of the final exit's cost, a rival may be behind and be as good.
BEHIND_POINTS, BEHIND_SAVED = 0.5, 0.01
#: Each bar in words.
BARS = {
    "cost": f"{SAVED:.0%} of the final exit's cost saved or more",
    "accuracy": f"at most {LOST:g} points less accurate than the final exit",
    "not dominated": "not dominated by a fixed arm",
    "regret": f"final regret under {REGRET:.0%} of random's",
    "paper": f"the paper's claim, {PAPER_SAVED:.0%} saved or more at {PAPER_LOST:g} points lost or less",
}


@dataclass(frozen=True)
class Standing:
    """Where a policy stands, averaged over the levels.

    Attributes:
        saved: The share of the final exit's cost that it saves.
        points: Points of accuracy above the final exit.
        regret: Final regret against each level's best fixed arm.
    """

    saved: float
    points: float
    regret: float


@dataclass(frozen=True)
class Verdict:
    """Whether a bar was reached, and the figures that say so.

    Attributes:
        bar: Which of `BARS`.
        holds: Whether it was reached.
        figures: In words.
    """

    bar: str
    holds: bool
    figures: str


def verdicts(learner: Standing, arms: Mapping[str, Standing], random: Standing) -> list[Verdict]:
    """Whether a learner reached each bar.

    An arm dominates it if it saves as much and is as accurate, and is better in one of them.

    Args:
        learner: The learner.
        arms: Every fixed arm, by name.
        random: The random arm.
    """
    above = [
        f"by {name}: {100 * (arm.saved - learner.saved):.2f} % of the final exit's cost cheaper, "
        f"{arm.points - learner.points:.3f} points better"
        for name, arm in arms.items()
        if arm.saved >= learner.saved
        and arm.points >= learner.points
        and (arm.saved > learner.saved or arm.points > learner.points)
    ]
    share = learner.regret / random.regret if random.regret > 0 else float("inf")
    cost, points = f"{signed(-100 * learner.saved, 1)} %", signed(learner.points, 2)
    return [
        Verdict("cost", learner.saved >= SAVED, cost),
        Verdict("accuracy", learner.points >= -LOST, points),
        Verdict("not dominated", not above, ", ".join(above) or "by none"),
        Verdict("regret", share < REGRET, f"{learner.regret:.0f}, {share:.1%}"),
        Verdict(
            "paper", learner.saved >= PAPER_SAVED and learner.points >= -PAPER_LOST, f"{cost} at {points} points"
        ),
    ]


def compared(learner: Standing, other: Standing) -> str:
    """What a simple policy is beside a learner: as good (within half a point and 1 % of cost) or not."""
    if other.saved >= learner.saved - BEHIND_SAVED and other.points >= learner.points - BEHIND_POINTS:
        return "AS GOOD OR BETTER"
    if other.saved >= learner.saved:
        return "cheaper and less accurate"
    return "dearer and more accurate" if other.points > learner.points else "worse"


def said(what: str, verdict_by_cost: Sequence[tuple[str, str, str]]) -> str:
    """One sentence that says of every cost how it stands, those that stand alike together.

    Args:
        what: How the sentence begins.
        verdict_by_cost: Per cost its label, how it stands, and the figures.
    """
    groups: dict[str, list[str]] = {}
    for label, stands, figures in verdict_by_cost:
        groups.setdefault(stands, []).append(f"{label} ({figures})")
    return f"{what}: " + "; ".join(f"{stands} at o = {', '.join(where)}" for stands, where in groups.items())


def signed(value: float, digits: int) -> str:
    """A number with its sign, and none where it is rounded to 0."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
