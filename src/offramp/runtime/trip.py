"""One input on its way through the edge loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from offramp.policy.base import Observation
from offramp.runtime.gate import Belief

__all__ = ["Trip"]

Array = NDArray[np.generic]


@dataclass
class Trip:
    """One input on its way.

    Attributes:
        start: When it came.
        tensors: The cut behind `stage`; −1 is the input itself.
        beliefs: What the exits that were evaluated say.
        kept: The deepest cut passed that has an exit, so that the edge can still answer from there.
        reserved: The exit that time was kept back for while the server was asked.
        sent_cut: The cut that was sent; None if nothing was.
        error: Why an offload brought no answer.
    """

    start: float
    tensors: list[Array]
    stage: int = -1
    beliefs: dict[int, Belief] = field(default_factory=dict)
    kept: tuple[int, list[Array]] | None = None
    reserved: int = -1
    edge_ms: float = 0.0
    server_ms: float = 0.0
    link_ms: float = 0.0
    payload_bytes: int = 0
    sent_cut: int | None = None
    error: str | None = None

    @property
    def evaluated(self) -> tuple[int, ...]:
        """The exits that were evaluated on the edge."""
        return tuple(i for i in self.beliefs if i <= self.stage)

    def observation(self, answer: int | None, last: int, total_ms: float, cost: float) -> Observation:
        """What was really seen, for the policy.

        Args:
            answer: The exit that answered.
            last: The last exit.
            total_ms: Milliseconds from input to answer.
            cost: What was paid.
        """
        here = {i: belief for i, belief in self.beliefs.items() if i <= self.stage}
        return Observation(
            confidences={i: belief.confidence for i, belief in here.items()},
            labels={i: belief.label for i, belief in here.items()},
            final_confidence=self.beliefs[last].confidence if last in self.beliefs else None,
            exit=answer,
            confidence=0.0 if answer is None else self.beliefs[answer].confidence,
            offloaded=self.sent_cut is not None,
            failed=self.error is not None,
            cost=cost,
            latency_ms=total_ms,
            payload_bytes=self.payload_bytes,
        )
