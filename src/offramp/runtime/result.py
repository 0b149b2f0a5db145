"""What the edge says of an input."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from offramp.policy.base import Action

__all__ = ["Latency", "Result", "Status", "Where"]

Status = Literal["ok", "degraded", "failed"]
Where = Literal["edge", "server"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds from input to answer, and where they went.

    Attributes:
        total: From the input's arrival to its answer, the policy's own time included.
        edge: Stages, exits and codecs on the edge.
        link: From sending to the answer, less the server's computing.
        server: Computing on the server, as it says.
        queue: Of `link`: waiting for a worker on the server, as it says.
    """

    total: float = 0.0
    edge: float = 0.0
    link: float = 0.0
    server: float = 0.0
    queue: float = 0.0


@dataclass(frozen=True)
class Result:
    """The one result of one input.

    Attributes:
        index: The input's place in the run.
        status: "ok"; "degraded" if an offload brought no answer and the edge answered as well as it could;
            "failed" without an answer.
        label: The class index.
        class_name: The class's name, where the bundle has names.
        confidence: The label's probability, after the exit's temperature.
        probabilities: (classes,).
        exit: The exit that answered.
        where: "edge" or "server".
        latency_ms: Milliseconds by part.
        payload_bytes: Bytes of the tensors that were sent, before the transport compressed them.
        reply_bytes: Bytes of the tensors that came back.
        action: What the policy chose.
        cost: What was paid.
        error: Why it is degraded or failed.
    """

    index: int
    status: Status
    label: int | None = None
    class_name: str | None = None
    confidence: float | None = None
    probabilities: tuple[float, ...] | None = None
    exit: int | None = None
    where: Where | None = None
    latency_ms: Latency = Latency()
    payload_bytes: int = 0
    reply_bytes: int = 0
    action: Action | None = None
    cost: float = 0.0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)
