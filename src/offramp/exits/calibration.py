"""Calibration of exits on held-out data: a temperature and a threshold each. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError

__all__ = ["Calibration", "calibrate_logits", "fit_temperature", "fit_threshold", "softmax"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What calibration found.

    Attributes:
        temperatures: One per exit, the last exit's last; confidence is max softmax(logits / temperature).
        thresholds: One per early exit; at or above it the exit may answer. Above 1 means never.
        accuracy: Per exit, on the held-out data.
        exit_share: Per early exit, the share of held-out samples at or above its threshold.
        max_drop: The accuracy that each gate may cost, as a fraction.
        ranges: Per cut the smallest and largest value seen, the input (cut −1) first; for the uint8 mode.
        samples: Size of the held-out data.
    """

    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    accuracy: tuple[float, ...]
    exit_share: tuple[float, ...]
    max_drop: float
    ranges: tuple[tuple[float, float], ...]
    samples: int


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Array:
    """Softmax over the last axis."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017, arXiv 1706.04599).

    The likelihood is convex in 1/T, so its slope is bisected; the result lies in [0.05, 20].

    Args:
        logits: (N, classes).
        labels: (N,) class indices.
    """
    z = np.asarray(logits, dtype=np.float64)
    true = z[np.arange(len(z)), labels].mean()

    def slope(inverse: float) -> float:
        return float((softmax(z * inverse) * z).sum(axis=1).mean() - true)

    low, high = 1 / 20, 1 / 0.05
    if slope(low) >= 0:
        return 1 / low
    if slope(high) <= 0:
        return 1 / high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


def fit_threshold(
    confidence: Array, correct: NDArray[np.bool_], final_correct: NDArray[np.bool_], max_drop: float
) -> float:
    """The lowest threshold at which answering early costs at most `max_drop` accuracy, here and above.

    Args:
        confidence: (N,) the exit's confidence.
        correct: (N,) whether the exit is right.
        final_correct: (N,) whether the last exit is right.
        max_drop: Accuracy that may be lost against sending everything on, as a fraction.

    Returns:
        A threshold in (0, 1], or above 1 if no sample may leave here.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    lost = np.cumsum(final_correct[order].astype(np.float64) - correct[order]) / len(confidence)
    # Samples of equal confidence pass together: only the last of each run is a possible threshold.
    ends = np.append(np.diff(sorted_confidence) != 0, True)
    candidates, drops = sorted_confidence[ends], lost[ends]
    too_much = np.flatnonzero(drops > max_drop + 1e-12)
    allowed = len(drops) if len(too_much) == 0 else int(too_much[0])
    return float(candidates[allowed - 1]) if allowed else float(np.nextafter(1.0, 2.0))


def calibrate_logits(
    logits: Sequence[NDArray[np.floating]],
    labels: NDArray[np.integer],
    *,
    max_drop: float = 0.005,
    ranges: Sequence[tuple[float, float]] = (),
) -> Calibration:
    """Temperatures and thresholds from held-out logits.

    Each gate is tuned on its own against the last exit; in a cascade their drops may add up.

    Args:
        logits: Per exit (N, classes), the last exit's last.
        labels: (N,) class indices.
        max_drop: Accuracy that each gate may cost against the last exit, as a fraction.
        ranges: Kept in the result.

    Raises:
        ConfigError: Fewer than 10 samples, shapes that do not agree, or `max_drop` outside [0, 1].
    """
    n = len(labels)
    if n < 10:
        raise ConfigError(f"calibration needs at least 10 held-out samples, not {n}")
    if any(len(z) != n for z in logits):
        raise ConfigError(f"logits of {[len(z) for z in logits]} samples do not go with {n} labels")
    if not 0 <= max_drop <= 1:
        raise ConfigError(f"max_drop is a fraction between 0 and 1, not {max_drop!r}")
    temperatures = tuple(fit_temperature(z, labels) for z in logits)
    correct = [z.argmax(axis=1) == labels for z in logits]
    confidence = [softmax(z, t).max(axis=1) for z, t in zip(logits[:-1], temperatures[:-1], strict=True)]
    thresholds = tuple(
        fit_threshold(c, right, correct[-1], max_drop) for c, right in zip(confidence, correct[:-1], strict=True)
    )
    return Calibration(
        temperatures=temperatures,
        thresholds=thresholds,
        accuracy=tuple(float(right.mean()) for right in correct),
        exit_share=tuple(float((c >= t).mean()) for c, t in zip(confidence, thresholds, strict=True)),
        max_drop=max_drop,
        ranges=tuple(ranges),
        samples=n,
    )
