"""What the SplitEE family shares: arms that answer where they are sure, and offload where they are not."""

from __future__ import annotations

import math
from typing import Any

from offramp.policy.base import Context, Observation, checked_alpha
from offramp.policy.ucb import UpperConfidence

__all__ = ["SplitLearner"]

#: What stands for the confidence of an exit where there is none.
_UNSURE = -1.0


class SplitLearner(UpperConfidence):
    """Arm k runs up to exit k, and answers there or offloads (Bajpai et al., arXiv 2309.09195 and 2401.10541).

    Sure (C_k ≥ α), it answers: reward C_k − μ·γ·ℓ_k. Otherwise it offloads: reward C_L − μ·(γ·ℓ_k + o). The
    last arm never offloads: reward C_L − μ·γ·ℓ_L. What an arm costs is what the edge's `CostModel` says that it
    pays, the heads that it runs included.

    The papers' arms have an exit each. With `send_input`, sending the input is one more arm, −1: it runs nothing,
    always offloads, and its reward is C_L − μ·o.

    An offload that brings no answer is beyond the papers: the arm is rewarded with the confidence of the
    answer that was given instead, less the cost that was paid.

    Args:
        alpha: α, the gates' threshold; None takes the bundle's own.
        send_input: Whether sending the input is an arm too, where there is a server.
        options: As `UpperConfidence` takes them.

    Raises:
        ConfigError: α outside [0, 1], or what `UpperConfidence` refuses.
    """

    def __init__(self, *, alpha: float | None, send_input: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.alpha, self.send_input = checked_alpha(alpha), send_input
        self._last = -1
        #: Per arm its threshold, μ times the cost of answering on the edge, and of offloading.
        self._gates: tuple[tuple[float, float, float], ...] = ()

    def _begin(self, context: Context) -> None:
        super()._begin(context)
        self._last = context.last
        # The last exit answers however sure it is, and the input has no exit.
        always = {context.last: -math.inf, -1: math.inf}
        thresholds = (always[k] if k in always else self.threshold(context, k) for k in self.arms)
        self._gates = tuple((alpha, *pay) for alpha, pay in zip(thresholds, self._pays, strict=True))

    def _settings(self) -> dict[str, float | int | bool | None]:
        return {**super()._settings(), "alpha": self.alpha, "send_input": self.send_input}

    def _arms_of(self, context: Context) -> tuple[int, ...]:
        return (-1, *context.arms) if self.send_input and -1 in context.splits else context.arms

    def _final(self, seen: Observation) -> float | None:
        """C_L where it was seen: only an answer of the last exit shows its confidence."""
        return seen.final_confidence if seen.exit == self._last else None

    def _reward(self, k: int, seen: Observation) -> float | None:
        """The reward of the arm played, by its place; None where its exit was not evaluated."""
        own = seen.confidences.get(self.arms[k]) if self.arms[k] >= 0 else _UNSURE
        threshold, here, offloaded = self._gates[k]
        if own is not None and own >= threshold:
            return own - here
        if seen.failed:
            return seen.confidence - self.mu * seen.cost
        final = self._final(seen)
        return None if own is None or final is None else final - offloaded
