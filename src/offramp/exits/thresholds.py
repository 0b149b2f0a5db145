"""One threshold for all gates of a cascade, so that leaving early costs no more than was allowed. NumPy only.

The gates share the threshold. After temperature scaling a confidence means about the same at every exit, so
an equal threshold is an equal risk at the margin, and the cascades from strict to lax form one line that was
not drawn by looking at labels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FITTING_SHARE",
    "NEVER",
    "allowed_losses",
    "answering",
    "certified_threshold",
    "empirical_threshold",
    "samples_needed",
]

Array = NDArray[np.float64]

#: A threshold that no confidence reaches.
NEVER = float(np.nextafter(1.0, 2.0))
#: One in so many held-out samples fits temperatures and candidates; the others test the candidates.
FITTING_SHARE = 5
CANDIDATES = 200


def answering(confidence: Array, threshold: float) -> NDArray[np.int64]:
    """Which exit answers each sample: the first that reaches the threshold, else the last.

    Args:
        confidence: (gates, N).
        threshold: Of every gate.

    Returns:
        (N,), from 0 to the number of gates.
    """
    opens = np.vstack([confidence >= threshold, np.ones((1, confidence.shape[1]), bool)])
    return np.asarray(opens.argmax(axis=0), np.int64)


def empirical_threshold(confidence: Array, right: NDArray[np.bool_], max_drop: float) -> float:
    """The lowest threshold at which, and above which, the cascade keeps within `max_drop` on these samples.

    Nothing follows for other samples: among many thresholds, the one that looked good is chosen.

    Args:
        confidence: (gates, N).
        right: (gates + 1, N) whether each exit is right, the last one last.
        max_drop: Accuracy that the cascade may lose against the last exit, as a fraction.

    Returns:
        A threshold in [0, 1], or `NEVER`.
    """
    candidates, lost = _lost_by_threshold(confidence, right)
    too_much = np.flatnonzero(lost / confidence.shape[1] > max_drop + 1e-12)
    allowed = len(lost) if len(too_much) == 0 else int(too_much[0])
    return float(candidates[allowed - 1]) if allowed else NEVER


def certified_threshold(
    confidence: Array, right: NDArray[np.bool_], fitting: Array, max_drop: float, delta: float
) -> float:
    """The lowest threshold that fixed-sequence testing lets pass.

    A sample is lost if the exit that answers is wrong and the last exit is right. With probability at least
    1 − `delta` over the held-out samples, the cascade loses at most `max_drop` of all inputs; its accuracy is
    then at most `max_drop` below the last exit's. Assumed: the held-out samples and the inputs to come are
    drawn independently from one distribution, and neither network nor temperatures nor `fitting` have seen
    the samples of `confidence`.

    "Learn then Test" (Angelopoulos et al. 2021, arXiv 2110.01052, fixed-sequence testing): the candidates,
    the confidences of the fitting samples, are tested from strict to lax until one fails. Each test is of the
    hypothesis "more than `max_drop` is lost", by the exact binomial tail of the samples lost, so all that
    pass are true at once with 1 − `delta`. Risk control of early exits: Jazbec et al. 2024 (arXiv 2405.20915).

    Args:
        confidence: (gates, N) of the samples to test with.
        right: (gates + 1, N) whether each exit is right, the last one last.
        fitting: (gates, M) of other samples, from which the candidates are taken.
        max_drop: A fraction.
        delta: The probability that the statement may be wrong.

    Returns:
        A threshold in [0, 1], or `NEVER`.
    """
    allowed = allowed_losses(confidence.shape[1], max_drop, delta)
    reached, lost = _lost_by_threshold(confidence, right | ~right[-1])
    shares = np.arange(1, CANDIDATES + 1) / CANDIDATES
    candidates = np.quantile(np.maximum.accumulate(fitting, axis=0), 1 - shares, method="inverted_cdf")
    found = NEVER
    for threshold in (*candidates, 0.0):
        passed = int(np.searchsorted(-reached, -threshold, side="right"))
        if (lost[passed - 1] if passed else 0) > allowed:
            break
        found = float(threshold)
    return found


def allowed_losses(samples: int, max_drop: float, delta: float) -> int:
    """The most samples that may be lost while P(Binomial(samples, max_drop) ≤ lost) ≤ delta; −1 if none may.

    The exact, uniformly most powerful test of a proportion (Clopper and Pearson 1934).
    """
    if max_drop >= 1:  # no cascade can lose more
        return samples
    if max_drop <= 0:
        return -1
    k = np.arange(samples)
    steps = np.log(samples - k) - np.log(k + 1) + math.log(max_drop) - math.log1p(-max_drop)
    tail = np.cumsum(np.exp(np.cumsum([samples * math.log1p(-max_drop), *steps])))
    return int(np.searchsorted(tail, delta, side="right")) - 1


def samples_needed(max_drop: float, delta: float) -> int | None:
    """The fewest held-out samples, those for fitting included, of which anything can be certified.

    Without a single loss, (1 − max_drop)^n ≤ delta is needed of the n that test. None if no number is enough.
    """
    if max_drop <= 0:
        return None
    testing = 1 if max_drop >= 1 else max(1, math.ceil(math.log(delta) / math.log1p(-max_drop)))
    while allowed_losses(testing, max_drop, delta) < 0:  # by a rounding at most
        testing += 1
    return testing + (testing - 1) // (FITTING_SHARE - 1)


def _lost_by_threshold(confidence: Array, right: NDArray[np.bool_]) -> tuple[Array, NDArray[np.int64]]:
    """The thresholds at which the cascade changes, falling, and how many right answers are lost at each.

    Exit e or one before it answers from the threshold max(C_0 … C_e) downwards, which changes the sample's
    count by right_{e+1} − right_e; so the counts are a running sum over all exits and samples.
    """
    reached = np.maximum.accumulate(confidence, axis=0).ravel()
    change = (right[1:].astype(np.int64) - right[:-1]).ravel()
    order = np.argsort(-reached, kind="stable")
    falling, lost = reached[order], np.cumsum(change[order])
    # What is reached at the same threshold changes together: only the last of each run counts.
    ends = np.append(np.diff(falling) != 0, True)
    return falling[ends], lost[ends]
