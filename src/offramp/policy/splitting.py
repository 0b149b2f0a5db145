"""What the SplitEE family shares: arms that answer where they are sure, and offload where they are not."""

from __future__ import annotations

from typing import Any

from offramp.errors import ConfigError
from offramp.policy.base import Context, Observation
from offramp.policy.ucb import UpperConfidence

__all__ = ["SplitLearner"]


class SplitLearner(UpperConfidence):
    """Arm k runs up to exit k, and answers there or offloads (Bajpai et al., arXiv 2309.09195 and 2401.10541).

    Sure (C_k ≥ α), it answers: reward C_k − μ·γ·ℓ_k. Otherwise it offloads: reward C_L − μ·(γ·ℓ_k + o). The
    last arm never offloads: reward C_L − μ·γ·ℓ_L. What an arm costs is what the edge's `CostModel` says that it
    pays, the heads that it runs included.

    An offload that brings no answer is beyond the papers: the arm is rewarded with the confidence of the
    answer that was given instead, less the cost that was paid.

    Args:
        alpha: α, the gates' threshold; None takes the bundle's own.
        options: As `UpperConfidence` takes them.

    Raises:
        ConfigError: α outside [0, 1], or what `UpperConfidence` refuses.
    """

    def __init__(self, *, alpha: float | None, **options: Any) -> None:
        super().__init__(**options)
        if alpha is not None and not 0 <= alpha <= 1:
            raise ConfigError(f"alpha is a confidence between 0 and 1, not {alpha}")
        self.alpha = alpha
        self._last = -1
        #: Of the arms before the last.
        self._thresholds: tuple[float, ...] = ()

    def _begin(self, context: Context) -> None:
        super()._begin(context)
        self._last = context.last
        self._thresholds = tuple(self.threshold(context, arm) for arm in self.arms if arm != context.last)

    def _settings(self) -> dict[str, float | int | bool | None]:
        return {**super()._settings(), "alpha": self.alpha}

    def _final(self, seen: Observation) -> float | None:
        """C_L where it was seen: only an answer of the last exit shows its confidence."""
        return seen.final_confidence if seen.exit == self._last else None

    def _reward(self, k: int, seen: Observation) -> float | None:
        """The reward of the arm played, by its place; None where its exit was not evaluated."""
        if k == len(self._thresholds):
            final = self._final(seen)
            return None if final is None else final - self._pay_here[k]
        own = seen.confidences.get(self.arms[k])
        if own is not None and own >= self._thresholds[k]:
            return own - self._pay_here[k]
        if seen.failed:
            return seen.confidence - self.mu * seen.cost
        final = self._final(seen)
        return None if own is None or final is None else final - self._pay_offloaded[k]
