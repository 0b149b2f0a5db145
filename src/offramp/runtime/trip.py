"""One input on its way through the edge loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from offramp.policy.base import Action, Observation
from offramp.runtime.gate import Belief
from offramp.runtime.result import Result
from offramp.runtime.tail import TailReply, TailRequest

__all__ = ["Trip", "TripTracer"]

Array = NDArray[np.generic]


@dataclass
class Trip:
    """One input on its way.

    Attributes:
        start: When it came.
        tensors: The cut behind `stage`; −1 is the input itself.
        index: The input's place in the run.
        action: What the policy chose.
        answer: The exit that answered on the edge before anything was sent; None if none did.
        beliefs: What the exits that were evaluated say.
        kept: The deepest cut passed that has an exit, so that the edge can still answer from there.
        reserved: The exit that time was kept back for while the server was asked.
        sent_cut: The cut that was sent; None if nothing was.
        request: What is to be sent; None if nothing is.
        encode_ms: Of `edge_ms`, what packing the cut took.
        packed_at: When the request was ready, on the edge's clock.
        give_up_at: When the edge no longer waits for the answer.
        reply: What the server answered.
        refusal: What was raised instead.
        back_at: When either was there.
        waited_ms: How long that took since sending.
        queue_ms: How much of it the request waited for a worker, as the server says.
        trace: What a tracer remembers of it.
        error: Why an offload brought no answer.
    """

    start: float
    tensors: list[Array]
    index: int
    action: Action
    answer: int | None = None
    stage: int = -1
    beliefs: dict[int, Belief] = field(default_factory=dict)
    kept: tuple[int, list[Array]] | None = None
    reserved: int = -1
    edge_ms: float = 0.0
    encode_ms: float = 0.0
    server_ms: float = 0.0
    queue_ms: float = 0.0
    link_ms: float = 0.0
    payload_bytes: int = 0
    reply_bytes: int = 0
    sent_cut: int | None = None
    request: TailRequest | None = None
    packed_at: float = 0.0
    give_up_at: float = 0.0
    reply: TailReply | None = None
    refusal: Exception | None = None
    back_at: float = 0.0
    waited_ms: float = 0.0
    error: str | None = None
    trace: object | None = None

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


class TripTracer(Protocol):
    """Follows inputs through the edge; called in the thread that runs it."""

    def sends(self, trip: Trip) -> tuple[tuple[str, str], ...]:
        """A request is about to go: the headers that travel with it, so that the server's trace joins this one."""

    def answered(self, trip: Trip | None, result: Result) -> str | None:
        """An input has its result, and a trip unless it could not be run; gives the trace's id, if any."""
