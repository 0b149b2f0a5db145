"""A random arm for every input: what a learner has to beat."""

from __future__ import annotations

import random

from offramp.errors import ActionError
from offramp.policy.base import Action, Context, Policy

__all__ = ["RandomArm"]


class RandomArm(Policy):
    """Each of the papers' arms with equal probability, with its gate.

    Args:
        alpha: The gates' threshold; the bundle's own if left out.
        seed: The draw's seed.
    """

    name = "random"

    def __init__(self, *, alpha: float | None = None, seed: int = 0) -> None:
        self.alpha = alpha
        self._rng = random.Random(seed)

    def choose(self, context: Context) -> Action:
        """A random arm."""
        if not context.arms:
            raise ActionError("a random arm needs a split with an exit, or the last stage on the edge")
        k = self._rng.choice(context.arms)
        return context.action(k, context.gate(k))
