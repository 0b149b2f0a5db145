"""How sure an exit is: softmax, the measures made from it, and how far they are off. NumPy only."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError

__all__ = ["CONFIDENCES", "Confidence", "calibration_error", "check_confidence", "confidence_of", "softmax"]

Array = NDArray[np.float64]

Confidence = Literal["max_softmax", "entropy", "margin"]
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Array:
    """Softmax over the last axis."""
    z = np.asarray(logits, dtype=np.float64) / temperature
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def check_confidence(name: str) -> Confidence:
    """A measure by its name.

    Raises:
        ConfigError: An unknown name.
    """
    for known in CONFIDENCES:
        if name == known:
            return known
    raise ConfigError(f"there is no confidence {name!r}; known: {', '.join(CONFIDENCES)}")


def confidence_of(probabilities: Array, measure: Confidence = "max_softmax") -> Array:
    """The confidence in probabilities, in [0, 1]: 0 is never surer than 1.

    `max_softmax` is the largest probability; `entropy` is 1 − H / log(classes), as BranchyNet's exits measure
    it (Teerapittayanon et al. 2016, arXiv 1709.01686), turned round and scaled; `margin` is the largest less
    the second largest.

    Args:
        probabilities: (…, classes).
        measure: Which one.

    Returns:
        (…).
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if measure == "max_softmax" or p.shape[-1] == 1:
        return np.asarray(p.max(axis=-1))
    if measure == "margin":
        top = np.partition(p, -2, axis=-1)
        return np.asarray(top[..., -1] - top[..., -2])
    surprise = p * np.log(np.where(p > 0, p, 1.0))  # 0·log 0 is 0
    return np.asarray(np.clip(1 + surprise.sum(axis=-1) / np.log(p.shape[-1]), 0.0, 1.0))


def calibration_error(probabilities: Array, labels: NDArray[np.integer], *, bins: int = 15) -> float:
    """The expected calibration error: Σ_b n_b/N · |accuracy_b − mean confidence_b| over bins of equal width.

    Naeini et al. 2015 (AAAI 29), with the 15 bins and the largest probability of Guo et al. 2017
    (arXiv 1706.04599, equation 3).

    Args:
        probabilities: (N, classes).
        labels: (N,) class indices.
        bins: How many; each is open below and closed above.

    Returns:
        A fraction in [0, 1].
    """
    top = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    of = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(of, weights=right - top, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
