"""What a server's answer says, once it is clear that it can be one."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import Manifest
from offramp.errors import ProtocolError
from offramp.runtime.tail import TailReply

__all__ = ["Answered", "read_reply"]


class Answered(NamedTuple):
    """An answer for one sample.

    Attributes:
        exit: Which exit answered.
        logits: (classes,).
        server_ms: Computing time, as the server says; 0 if it does not.
        queue_ms: Time in its queue, as it says.
        nbytes: Bytes of the tensors that came.
    """

    exit: int
    logits: NDArray[np.float32]
    server_ms: float
    queue_ms: float
    nbytes: int


def read_reply(reply: TailReply, manifest: Manifest, stage: int, waited_ms: float) -> Answered:
    """What a reply to the cut behind `stage` says; no time is longer than the edge waited.

    Raises:
        ProtocolError: Logits of another shape or not finite, or an exit that cannot have answered.
    """
    logits, exits = reply.logits, reply.exits
    last = manifest.last
    exit_index = last if exits is None or len(exits) == 0 else int(exits[0])
    shape = (1, *manifest.final_exit().logits.shape)
    possible = stage < exit_index <= last and manifest.exits[exit_index] is not None
    if logits.shape != shape or not np.isfinite(logits).all() or not possible:
        raise ProtocolError(
            f"the server answered with logits of shape {logits.shape} from exit {exit_index}; expected "
            f"finite ones of shape {shape} from an exit after {stage}"
        )
    server_ms = _within(reply.server_ms, waited_ms)
    nbytes = logits.nbytes + (0 if exits is None else exits.nbytes)
    return Answered(exit_index, logits[0], server_ms, _within(reply.queue_ms, waited_ms - server_ms), nbytes)


def _within(said: float | None, most: float) -> float:
    return min(max(said, 0.0), most) if said is not None and math.isfinite(said) else 0.0
