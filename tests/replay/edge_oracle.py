"""The edge loop on one recorded sample, in its plainest form: step by step, as DESIGN says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from offramp.policy.base import Action, Observation
from offramp.replay.trace import Trace


@dataclass
class Walk:
    """What happened to one sample."""

    stage: int = -1
    answer: int = -1
    sent: bool = False
    seen: dict[int, int] = field(default_factory=dict)  # exit → column, of exits run on the edge


def walk(trace: Trace, sample: int, action: Action, thresholds: dict[int, float], alpha: float | None) -> Walk:
    """Stages in order; each exit in `action.exits` may answer; else the server's, else the last one."""
    exits, last = trace.meta.exits, trace.meta.exits[-1]

    def sure(e: int, threshold: float) -> bool:
        if trace.confidence is None:
            return threshold == 0
        return float(trace.confidence[sample, exits.index(e)]) >= threshold

    done = Walk()
    for stage in range(action.split + 1):
        done.stage = stage
        if stage == last:
            done.seen[stage] = exits.index(stage)
            done.answer = stage
            return done
        if stage in action.exits or stage in action.watch:
            done.seen[stage] = exits.index(stage)
            if stage in action.exits and sure(stage, thresholds[stage] if alpha is None else alpha):
                done.answer = stage
                return done
    done.sent, done.answer = True, last
    if any(e > action.split for e in action.exits):
        for e in exits:
            if action.split < e < last and sure(e, thresholds[e]):
                done.answer = e
                break
    return done


def observed(trace: Trace, sample: int, done: Walk, cost: Any) -> Observation:
    """What the edge's policy is told."""
    assert trace.confidence is not None
    exits, last = trace.meta.exits, trace.meta.exits[-1]
    row = [float(c) for c in trace.confidence[sample]]
    sizes = trace.meta.cut_bytes.get("float")
    return Observation(
        confidences={e: row[c] for e, c in done.seen.items()},
        labels={e: int(trace.prediction[sample, c]) for e, c in done.seen.items()},
        final_confidence=row[-1] if done.answer == last else None,
        exit=done.answer,
        confidence=row[exits.index(done.answer)],
        offloaded=done.sent,
        cost=cost.paid(done.stage, done.sent, done.seen),
        payload_bytes=sizes[done.stage + 1] if done.sent and sizes else 0,
    )
