"""A cascade: every exit on the way may answer, then the deepest cut is sent."""

from __future__ import annotations

from offramp.errors import ConfigError
from offramp.policy.base import Action, Context, Policy, checked_alpha

__all__ = ["ThresholdCascade"]


class ThresholdCascade(Policy):
    """Goes as deep as the edge can before the last exit, leaving at the first exit that is sure.

    Args:
        alpha: The gates' threshold; the bundle's own if left out.
        exits: The exits that may answer; all that the edge can evaluate if left out.
        split: How deep it goes at most; as deep as the edge can before the last exit if left out.

    Raises:
        ConfigError: α outside [0, 1], or a split below 0.
    """

    name = "cascade"
    constant = True

    def __init__(
        self, *, alpha: float | None = None, exits: tuple[int, ...] | None = None, split: int | None = None
    ) -> None:
        if split is not None and split < 0:
            raise ConfigError(f"a cascade's split is 0 or more, not {split}; ServerOnly sends the input")
        self.alpha, self.exits, self.split = checked_alpha(alpha), exits, split

    def choose(self, context: Context) -> Action:
        """The deepest split before the last, with its exits; the last where there is no other."""
        deepest = context.last - 1 if self.split is None else self.split
        before_last = [k for k in context.splits if 0 <= k < context.last and k <= deepest]
        split = before_last[-1] if before_last else context.splits[-1]
        wanted = context.exits if self.exits is None else self.exits
        return context.action(split, tuple(e for e in wanted if e <= split))
