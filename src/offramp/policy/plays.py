"""The learners' plays over recorded samples, in loops that Numba compiles.

It is `UpperConfidence` with `ISplitEE.update` once more, operation for operation, so that both choose the same.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEAVIEST", "plays"]

#: A play's weight under a discount, above which everything is divided by it.
HEAVIEST = 1e100


def plays(  # noqa: PLR0912, PLR0915 - Numba compiles one function, and calls none that is not compiled
    confidence: NDArray[np.float64],
    sure: NDArray[np.bool_],
    pay_here: NDArray[np.float64],
    pay_offloaded: NDArray[np.float64],
    orders: NDArray[np.int64],
    audited: NDArray[np.bool_],
    side: bool,
    deepest_first: bool,
    published: bool,
    audit: float,
    c: float,
    discount: float,
    window: int,
) -> NDArray[np.int64]:
    """The index of the arm played, per run and play.

    Args:
        confidence: (samples, arms).
        sure: (samples, arms); the last arm's are all true.
        pay_here: (arms,) μ times the cost of answering at the edge.
        pay_offloaded: (arms,) μ times the cost of offloading.
        orders: (runs, plays) indices of samples, in range: nothing checks them here.
        audited: (runs, plays) whether the gate is open.
        side: Whether shallower arms are learned too.
        deepest_first: Whether the first plays begin with the deepest arm.
        published: Whether C_L of every sample is known.
        audit: ε.
        c: The weight of exploration.
        discount: 1 forgets nothing.
        window: 0 counts all plays.
    """
    runs, steps = orders.shape
    arms = confidence.shape[1]
    last = arms - 1
    chosen = np.empty((runs, steps), np.int64)
    # t depends on the step alone, so the logarithms are those of every run.
    logs = np.empty(steps)
    t = 0.0
    for step in range(steps):
        logs[step] = math.log(t + 1.0)
        t = discount * t + 1.0 if window == 0 else float(min(step + 1, window))
    counts, sums, means, scales = np.empty(arms), np.empty(arms), np.empty(arms), np.empty(arms)
    recent = np.empty((max(window, 1), arms))
    for run in range(runs):
        counts[:] = 0.0
        sums[:] = 0.0
        means[:] = math.inf
        scales[:] = 0.0
        weight = 1.0
        for step in range(steps):
            # --- choose ---
            width = math.sqrt(logs[step] * weight)
            k = 0
            best = -math.inf
            for i in range(arms):
                index = means[i] + scales[i] * width
                if index > best or (deepest_first and index == math.inf):
                    best, k = index, i
            chosen[run, step] = k
            # --- forget ---
            sample = orders[run, step]
            slot = 0
            if window > 0:
                slot = step % window
                for i in range(arms if step >= window else 0):
                    if not math.isnan(recent[slot, i]):
                        counts[i] -= 1.0
                        sums[i] = sums[i] - recent[slot, i] if counts[i] else 0.0
                        means[i] = sums[i] / counts[i] if counts[i] else math.inf
                        scales[i] = c / math.sqrt(counts[i]) if counts[i] else 0.0
                recent[slot, :] = math.nan
            elif discount < 1.0:
                weight /= discount
                if weight > HEAVIEST:
                    for i in range(arms):
                        counts[i] /= weight
                        sums[i] /= weight
                        means[i] = sums[i] / counts[i] if counts[i] else math.inf
                        scales[i] = c / math.sqrt(counts[i]) if counts[i] else 0.0
                    weight = 1.0
            # --- learn ---
            final = confidence[sample, last]
            gate = confidence[sample, k]
            estimate = final
            if k < last and sure[sample, k] and not published:
                if audit == 0.0:
                    estimate = math.nan
                elif audited[run, step]:
                    estimate = gate + (final - gate) / audit
                else:
                    estimate = gate
            for i in range(0 if side else k, k + 1):
                if sure[sample, i]:
                    value = confidence[sample, i] - pay_here[i]
                elif i == k:
                    value = final - pay_offloaded[i]
                else:
                    value = estimate - pay_offloaded[i]
                if not math.isnan(value):
                    counts[i] += weight
                    sums[i] += weight * value
                    means[i] = sums[i] / counts[i]
                    scales[i] = c / math.sqrt(counts[i])
                    if window > 0:
                        recent[slot, i] = value
    return chosen
