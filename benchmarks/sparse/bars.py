"""Bars: what a figure must reach, whether it does, and by how much it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Bar", "missed_text"]


@dataclass(frozen=True)
class Bar:
    """A figure against what it must reach.

    Attributes:
        figure: What was measured.
        bound: What it must be.
        most: Whether the bound is the most that it may be; the least otherwise.
    """

    figure: float
    bound: float
    most: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure reaches the bound."""
        return self.figure <= self.bound if self.most else self.figure >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.bound:.4g} {'met' if self.met else 'MISSED'}"

    def to_dict(self) -> dict[str, Any]:
        """Bound and verdict as JSON values."""
        return {"bound": self.bound, "most": self.most, "figure": self.figure, "met": self.met}


def missed_text(bars: Sequence[tuple[str, Bar | None]]) -> str:
    """One line about all bars: how many there are, which are missed and by how much.

    Args:
        bars: What was measured, in words, and its bar if it has one.
    """
    real = [(what, bar) for what, bar in bars if bar is not None]
    missed = [(what, bar) for what, bar in real if not bar.met]
    if not real:
        return "no bars at these sizes"
    if not missed:
        return f"all {len(real)} bars met"
    listed = "; ".join(
        f"{what}: {bar.figure:.3g} against {bar.bound:.3g}, {100 * abs(1 - bar.figure / bar.bound):.0f} % off"
        for what, bar in missed
    )
    return f"{len(missed)} of {len(real)} bars missed: {listed}"
