"""The simplest threshold that tells slow cases from fast ones, found by trying all, and how often it is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rule", "best_rule"]


@dataclass(frozen=True)
class Rule:
    """Slow where any of some figures is below its threshold.

    Attributes:
        below: Threshold by figure.
        cases: How many cases it was judged by.
        slow: How many of them are slow.
        missed: Slow cases that it does not name.
        false: Fast cases that it names.
    """

    below: Mapping[str, float]
    cases: int
    slow: int
    missed: int
    false: int

    @property
    def wrong(self) -> float:
        """The share of all cases that it gets wrong."""
        return (self.missed + self.false) / self.cases

    def __str__(self) -> str:
        said = " or ".join(f"{name} < {bound:,.0f}" for name, bound in self.below.items())
        return (
            f"slower where {said}: wrong in {100 * self.wrong:.1f} % of {self.cases} cases "
            f"({self.missed} of {self.slow} slow ones missed, {self.false} false alarms)"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "below": dict(self.below), "wrong": self.wrong}


def best_rule(figures: Mapping[str, Sequence[float]], slow: Sequence[bool], *, terms: int) -> Rule:
    """The rule with the fewest wrong cases; among equals the first.

    Args:
        figures: What a rule may look at, by name, one value per case.
        slow: Whether each case is slow.
        terms: How many figures the rule combines.
    """
    truth = np.asarray(slow)
    found: Rule | None = None
    for names in itertools.combinations(figures, terms):
        named: list[list[tuple[float, NDArray[np.bool_]]]] = []
        for name in names:
            values = np.asarray(figures[name])
            named.append([(float(bound), values < bound) for bound in np.unique(values)])
        for choice in itertools.product(*named):
            said = np.logical_or.reduce([flags for _, flags in choice])
            missed, false = int((truth & ~said).sum()), int((said & ~truth).sum())
            if found is None or missed + false < found.missed + found.false:
                below = {name: bound for name, (bound, _) in zip(names, choice, strict=True)}
                found = Rule(below, len(truth), int(truth.sum()), missed, false)
    assert found is not None  # at least one figure with one value
    return found
