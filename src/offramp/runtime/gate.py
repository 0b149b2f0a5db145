"""The gate: is an exit sure enough to answer?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import Tuning
from offramp.exits.confidence import confidence_of, softmax

__all__ = ["Belief", "Gate"]


@dataclass(frozen=True)
class Belief:
    """What an exit says about one input: probabilities (classes,), the label, and how sure it is of it."""

    probabilities: NDArray[np.float64]
    label: int
    confidence: float


class Gate:
    """The bundle's temperatures, thresholds and measure of confidence at work.

    Args:
        tuning: The bundle's tuning.
    """

    def __init__(self, tuning: Tuning) -> None:
        self._temperatures = tuple(t or 1.0 for t in tuning.temperatures)
        self._thresholds = tuning.thresholds
        self._measure = tuning.confidence

    def belief(self, exit_index: int, logits: NDArray[np.floating]) -> Belief:
        """What logits (classes,) mean, after the exit's temperature."""
        probabilities = softmax(logits, self._temperatures[exit_index])
        return Belief(
            probabilities, int(probabilities.argmax()), float(confidence_of(probabilities, self._measure))
        )

    def passes(self, exit_index: int, confidence: float, alpha: float | None = None) -> bool:
        """Whether a confidence reaches alpha, or the exit's own threshold without one."""
        threshold = self._thresholds[exit_index] if alpha is None else alpha
        return threshold is not None and confidence >= threshold

    def opens(self, exit_index: int) -> bool:
        """Whether the exit's own threshold lets anybody pass: confidences end at 1."""
        threshold = self._thresholds[exit_index]
        return threshold is not None and threshold <= 1

    def sure(self, exit_index: int, logits: NDArray[np.generic]) -> NDArray[np.bool_]:
        """Which rows of logits (N, classes) reach the exit's own threshold: (N,), as `passes` says one by one."""
        threshold = self._thresholds[exit_index]
        if threshold is None:
            return np.zeros(len(logits), np.bool_)
        probabilities = softmax(logits.astype(np.float64), self._temperatures[exit_index])
        return np.asarray(confidence_of(probabilities, self._measure) >= threshold)
