"""A random arm for every input: what a learner has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ActionError
from offramp.policy.base import Action, Context, Policy, checked_alpha
from offramp.policy.draws import uniform, uniforms
from offramp.policy.memory import DrawMemory, recalled
from offramp.policy.problem import Problem

__all__ = ["RandomArm"]


class RandomArm(Policy):
    """Each of the papers' arms with equal probability, with its gate.

    Args:
        alpha: The gates' threshold; the bundle's own if left out.
        seed: The draw's seed.

    Raises:
        ConfigError: α outside [0, 1].
    """

    name = "random"

    def __init__(self, *, alpha: float | None = None, seed: int = 0) -> None:
        self.alpha, self.seed, self.step = checked_alpha(alpha), seed, 0

    def choose(self, context: Context) -> Action:
        """A random arm."""
        if not context.arms:
            raise ActionError("a random arm needs a split with an exit, or the last stage on the edge")
        k = context.arms[int(uniform(self.seed, self.step) * len(context.arms))]
        self.step += 1
        return context.action(k, context.gate(k))

    def replay(self, problem: Problem, orders: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
        """The arms that are played on recorded samples; run r draws as the policy with the seed `seed + r`.

        Args:
            problem: What there is to see, and what it costs.
            orders: (runs, samples): in which order each run sees the samples.
            seed: The first run's.

        Returns:
            (runs, samples) indices into the problem's arms.

        Raises:
            ConfigError: Orders that are no (runs, samples) indices of samples.
        """
        return (uniforms(seed, *problem.checked(orders).shape) * len(problem.arms)).astype(np.int64)

    def state(self) -> dict[str, Any]:
        """Where its draws have come to, as JSON values."""
        return DrawMemory(policy=self.name, seed=self.seed, step=self.step).model_dump(mode="json")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave.

        Raises:
            PolicyStateError: No state, or another policy's.
        """
        memory = recalled(DrawMemory, state, self.name, {})
        self.seed, self.step = memory.seed, memory.step
