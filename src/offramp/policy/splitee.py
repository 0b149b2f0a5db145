"""I-SplitEE: upper confidence bounds over splits, with what shallower exits showed on the way."""

from __future__ import annotations

import math

from offramp.errors import ActionError, ConfigError
from offramp.policy.base import Action, Context, Observation, Policy

__all__ = ["ISplitEE"]


class ISplitEE(Policy):
    """Learns online, without labels, at which exit to split (Bajpai et al. 2024, arXiv 2401.10541).

    Arm k runs up to exit k. Sure there (C_k ≥ α), it answers: reward C_k − μ·γ·ℓ_k. Otherwise it offloads:
    reward C_L − μ·(γ·ℓ_k + o). The last arm never offloads: reward C_L − μ·γ·ℓ_L. The arm with the largest
    mean reward + c·sqrt(ln(t + 1) / N) is played, each arm once first.

    Side observations: playing arm k shows the confidences of all exits before it, so their own rewards are
    learned too. An arm that would have offloaded needs C_L, which nobody sees on an input that was answered
    at exit k; it then learns nothing from that input. (The published replay uses C_L there all the same.)
    So shallower arms are learned somewhat more from inputs on which they are sure.

    An offload that brings no answer is beyond the paper: the arm is rewarded with the confidence of the
    answer that was given instead, less the cost that was paid.

    Args:
        alpha: α, the gates' threshold; None takes the bundle's own.
        mu: μ, the weight of cost.
        c: The weight of exploration.

    Raises:
        ConfigError: α outside [0, 1], or negative weights.
    """

    name = "i-splitee"

    def __init__(self, *, alpha: float | None = 0.5, mu: float = 1.0, c: float = 1.0) -> None:
        if alpha is not None and not 0 <= alpha <= 1:
            raise ConfigError(f"alpha is a confidence between 0 and 1, not {alpha}")
        if not mu >= 0 or not c >= 0:
            raise ConfigError(f"mu and c must be at least 0, not {mu} and {c}")
        self.alpha, self.mu, self.c = alpha, mu, c
        self.arms: tuple[int, ...] = ()
        self.plays = 0
        self.counts: dict[int, int] = {}
        self.means: dict[int, float] = {}
        self._context: Context | None = None

    def choose(self, context: Context) -> Action:
        """The arm with the largest index; of equal ones the shallowest."""
        if context is not self._context:
            self._begin(context)
        k = max(self.arms, key=self._index)
        # Heads on the way are run for their confidence alone.
        watch = tuple(i for i in self.arms if i < k)
        return context.action(k, context.gate(k), watch)

    def update(self, action: Action, observation: Observation) -> None:
        """Learns the reward of the arm played, and of every shallower arm whose reward was seen."""
        self.plays += 1
        for arm in self.arms:
            if arm <= action.split:
                reward = self._reward(arm, action, observation)
                if reward is not None:
                    self.counts[arm] += 1
                    self.means[arm] += (reward - self.means[arm]) / self.counts[arm]

    def _begin(self, context: Context) -> None:
        if not context.arms:
            raise ActionError("I-SplitEE needs a split with an exit, or the last stage on the edge")
        if self.arms and context.arms != self.arms:
            raise ActionError(f"this I-SplitEE has learned about arms {self.arms}; this edge has {context.arms}")
        self._context, self.arms = context, context.arms
        for arm in self.arms:
            self.counts.setdefault(arm, 0)
            self.means.setdefault(arm, 0.0)

    def _index(self, arm: int) -> float:
        n = self.counts[arm]
        if n == 0:
            return math.inf
        return self.means[arm] + self.c * math.sqrt(math.log(self.plays + 1) / n)

    def _reward(self, arm: int, action: Action, seen: Observation) -> float | None:
        """The reward that the arm earned or would have earned; None if that was not seen."""
        context = self._context
        assert context is not None
        if arm == action.split and seen.failed:
            return seen.confidence - self.mu * seen.cost
        if arm == context.last:
            confidence = seen.final_confidence
            return None if confidence is None else confidence - self.mu * context.cost.paid(arm, False)
        own = seen.confidences.get(arm)
        if own is None:
            return None
        if own >= self.threshold(context, arm):
            return own - self.mu * context.cost.paid(arm, False)
        if seen.final_confidence is None:
            return None
        return seen.final_confidence - self.mu * context.cost.paid(arm, True)
