"""What no choice of thresholds could do better: a bound that looks at the test labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from offramp.policy.cost import CostModel
from offramp.replay.trace import Trace

__all__ = ["Reach", "reach"]

_CANDIDATES = 400


@dataclass(frozen=True)
class Reach:
    """The fixed arm that saves most.

    Attributes:
        exit: Its exit.
        threshold: Of its gate; above 1 it is closed.
        saved: The share of the final exit's cost that it saves, averaged over the levels.
        points: Points of accuracy above the final exit, likewise.
    """

    exit: int
    threshold: float
    saved: float
    points: float


def reach(levels: Iterable[Trace], cost: CostModel, lost: float) -> Reach:
    """The most that any one exit with any one threshold, the same at all levels, saves at `lost` points or less.

    This is no way to choose a threshold: it is found on the very samples that it is measured on.

    Args:
        levels: A trace per level.
        cost: What things cost.
        lost: Points of accuracy.
    """
    traces = list(levels)
    exits = traces[0].meta.exits
    final = cost.paid(exits[-1], False, (exits[-1],))
    best = Reach(exits[-1], 2.0, 0.0, 0.0)
    for column, exit_index in enumerate(exits[:-1]):
        sure = [np.asarray(t.confidence)[:, column].astype(np.float64) for t in traces]
        candidates = np.unique(np.quantile(np.concatenate(sure), np.linspace(0, 1, _CANDIDATES)))
        changes, leaves = np.zeros(len(candidates) + 1), np.zeros(len(candidates) + 1)
        for trace, confidence in zip(traces, sure, strict=True):
            right = (trace.prediction == trace.label[:, None]).astype(np.float64)
            order = np.argsort(-confidence, kind="stable")
            gained = np.concatenate([[0.0], np.cumsum((right[:, column] - right[:, -1])[order])])
            passed = np.searchsorted(-confidence[order], -candidates, side="right")
            changes[:-1] += gained[passed] / len(trace) / len(traces)
            leaves[:-1] += passed / len(trace) / len(traces)
        here, sent = (cost.paid(exit_index, offloaded, (exit_index,)) for offloaded in (False, True))
        saved = np.where(100 * changes >= -lost, 1 - (leaves * here + (1 - leaves) * sent) / final, -np.inf)
        i = int(saved.argmax())
        if saved[i] > best.saved:
            threshold = float(candidates[i]) if i < len(candidates) else 2.0
            best = Reach(exit_index, threshold, float(saved[i]), 100 * float(changes[i]))
    return best
