"""A cascade: every exit on the way may answer, then the deepest cut is sent."""

from __future__ import annotations

from offramp.policy.base import Action, Context, Policy

__all__ = ["ThresholdCascade"]


class ThresholdCascade(Policy):
    """Goes as deep as the edge can before the last exit, leaving at the first exit that is sure.

    Args:
        alpha: The gates' threshold; the bundle's own if left out.
        exits: The exits that may answer; all that the edge can evaluate if left out.
    """

    name = "cascade"

    def __init__(self, *, alpha: float | None = None, exits: tuple[int, ...] | None = None) -> None:
        self.alpha, self.exits = alpha, exits

    def choose(self, context: Context) -> Action:
        """The deepest split before the last, with its exits; the last where there is no other."""
        before_last = [k for k in context.splits if 0 <= k < context.last]
        split = before_last[-1] if before_last else context.splits[-1]
        wanted = context.exits if self.exits is None else self.exits
        return context.action(split, tuple(e for e in wanted if e <= split))
