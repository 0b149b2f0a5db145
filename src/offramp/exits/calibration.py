"""Calibration of exits on held-out data: a temperature each, and a threshold that holds. NumPy only."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError, InputError
from offramp.exits.confidence import Confidence, calibration_error, check_confidence, confidence_of, softmax
from offramp.exits.thresholds import (
    FITTING_SHARE,
    NEVER,
    answering,
    certified_threshold,
    empirical_threshold,
    samples_needed,
)

__all__ = ["Calibration", "Crossing", "calibrate_logits", "check_settings", "fit_temperature"]

Array = NDArray[np.float64]
#: Per cut a few samples (n, …) of each tensor that crosses, the inputs (cut −1) first.
Crossing: TypeAlias = tuple[tuple[NDArray[np.generic], ...], ...]


@dataclass(frozen=True)
class Calibration:
    """What calibration found. Shares, accuracies and errors are fractions, measured on the tested samples.

    Attributes:
        temperatures: One per exit; they go before the softmax.
        thresholds: One per early exit; at or above it the exit answers. Above 1 means never.
        confidence: The measure that thresholds are compared with.
        accuracy: Per exit.
        ece_before: Per exit, the expected calibration error without temperature.
        ece_after: Per exit, the same with it.
        exit_share: Per early exit, the share that it answers as a gate of the cascade, and last the share that
            goes on to the last exit.
        lost: Share that an early exit answers wrongly and the last exit rightly. Where the last exit was not
            given, every wrong early answer.
        cascade_accuracy: Of the whole cascade; None where the last exit was not given.
        max_drop: What the cascade may lose against the last exit.
        delta: The probability that more is lost all the same; None if thresholds were chosen on the samples
            that they are measured on, so that nothing is promised.
        samples: Size of the held-out data.
        tested: How many of them the figures above are of.
        crossing: Per cut a few samples of what crosses it, to which the cut's modes are fitted.
    """

    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    confidence: Confidence
    accuracy: tuple[float, ...]
    ece_before: tuple[float, ...]
    ece_after: tuple[float, ...]
    exit_share: tuple[float, ...]
    lost: float
    cascade_accuracy: float | None
    max_drop: float
    delta: float | None
    samples: int
    tested: int
    crossing: Crossing = field(default=(), repr=False, compare=False)

    @property
    def drop(self) -> float | None:
        """The accuracy that the cascade loses against the last exit on the tested samples; below 0 is a gain."""
        return None if self.cascade_accuracy is None else self.accuracy[-1] - self.cascade_accuracy

    @property
    def leaves(self) -> bool:
        """Whether anything may leave early at all."""
        return any(t <= 1 for t in self.thresholds)

    @property
    def promise(self) -> str:
        """What holds for inputs to come, in words."""
        if not self.leaves:
            return "Nothing leaves early, so nothing is lost."
        points = f"{100 * self.max_drop:g} points of accuracy"
        if self.delta is None:
            return (
                f"The cascade costs at most {points} on these {self.tested:,} held-out samples, by which the "
                "threshold was chosen; nothing is promised for others."
            )
        return (
            f"With confidence {100 * (1 - self.delta):g} % the cascade costs at most {points} on inputs drawn "
            f"like the held-out samples ({self.tested:,} of {self.samples:,} tested it, the others fitted)."
        )


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


def calibrate_logits(
    logits: Sequence[NDArray[np.floating]],
    labels: NDArray[np.integer],
    *,
    max_drop: float = 0.005,
    delta: float | None = 0.1,
    confidence: str = "max_softmax",
    with_last: bool = True,
    crossing: Crossing = (),
    seed: int = 0,
) -> Calibration:
    """Temperatures and one threshold for all gates from held-out logits.

    With a `delta`, a fifth of the samples fits the temperatures and proposes thresholds, the others test them:
    with probability at least 1 − `delta` the whole cascade costs at most `max_drop` of accuracy on inputs drawn
    like the held-out samples, which neither training nor anything else may have seen. The proof's source and
    its assumptions: `certified_threshold`. Too few samples for that let nothing leave, with a warning that
    says how many are needed. Without a `delta`, every sample both fits and measures: nothing is promised, and
    few samples are enough.

    Args:
        logits: Per exit (N, classes), in order.
        labels: (N,) class indices.
        max_drop: Accuracy that the cascade may lose against the last exit, as a fraction.
        delta: The probability that it may lose more.
        confidence: "max_softmax", "entropy" or "margin".
        with_last: Whether the last of `logits` are the network's last exit's. If not, every wrong early answer
            counts as lost, which is stricter.
        crossing: Kept in the result.
        seed: Chooses which samples fit.

    Raises:
        ConfigError: Fewer than 10 samples, shapes that do not agree, an unknown confidence, `max_drop` outside
            [0, 1] or `delta` outside (0, 1).
        InputError: Logits that are not finite, labels that are no class indices.
    """
    arrays, labels = _checked(logits, labels)
    measure = check_settings(max_drop, delta, confidence)
    n, gates = len(labels), len(arrays) - with_last
    everything = np.arange(n)
    fitting: NDArray[np.int64] = everything
    testing: NDArray[np.int64] = everything
    needed = None if delta is None else samples_needed(max_drop, delta)
    enough = needed is not None and n >= needed
    if delta is not None and enough:
        shuffled = np.random.default_rng(seed).permutation(n)
        few = max(1, n // FITTING_SHARE)
        fitting, testing = shuffled[:few], shuffled[few:]
    temperatures = tuple(fit_temperature(z[fitting], labels[fitting]) for z in arrays)
    probabilities = [softmax(z, t) for z, t in zip(arrays, temperatures, strict=True)]
    right = np.stack([z.argmax(axis=1) == labels for z in arrays])
    if not with_last:
        right = np.vstack([right, np.ones((1, n), bool)])
    sure = np.stack([confidence_of(p, measure) for p in probabilities[:gates]]) if gates else np.empty((0, n))
    threshold = NEVER
    if gates and delta is None:
        threshold = empirical_threshold(sure, right, max_drop)
    elif gates and delta is not None and enough:
        threshold = certified_threshold(sure[:, testing], right[:, testing], sure[:, fitting], max_drop, delta)
    elif gates:
        _warn_too_few(n, needed, max_drop, delta)
    exits = answering(sure[:, testing], threshold)
    answers = right[:, testing][exits, np.arange(len(testing))]
    return Calibration(
        temperatures=temperatures,
        thresholds=(threshold,) * gates,
        confidence=measure,
        accuracy=tuple(float(row[testing].mean()) for row in right[: len(arrays)]),
        ece_before=tuple(calibration_error(softmax(z[testing]), labels[testing]) for z in arrays),
        ece_after=tuple(calibration_error(p[testing], labels[testing]) for p in probabilities),
        exit_share=tuple((np.bincount(exits, minlength=gates + 1) / len(testing)).tolist()),
        lost=float((right[-1, testing] & ~answers).mean()),
        cascade_accuracy=float(answers.mean()) if with_last else None,
        max_drop=max_drop,
        delta=delta,
        samples=n,
        tested=len(testing),
        crossing=crossing,
    )


def check_settings(max_drop: float, delta: float | None, confidence: str) -> Confidence:
    """Checks what `calibrate_logits` takes, before the long work that gives it logits.

    Raises:
        ConfigError: An unknown confidence, `max_drop` outside [0, 1] or `delta` outside (0, 1).
    """
    if not 0 <= max_drop <= 1:
        raise ConfigError(f"max_drop is a fraction between 0 and 1, not {max_drop!r}")
    if delta is not None and not 0 < delta < 1:
        raise ConfigError(f"delta is a probability between 0 and 1, both excluded, or None, not {delta!r}")
    return check_confidence(confidence)


def _checked(
    logits: Sequence[NDArray[np.floating]], labels: NDArray[np.integer]
) -> tuple[list[NDArray[np.floating]], NDArray[np.int64]]:
    arrays, labels = [np.asarray(z) for z in logits], np.asarray(labels)
    n = len(labels) if labels.ndim else 0
    if n < 10:
        raise ConfigError(f"calibration needs at least 10 held-out samples, not {n}")
    if not arrays:
        raise ConfigError("calibration needs the logits of at least one exit")
    if any(len(z) != n for z in arrays):
        raise ConfigError(f"logits of {[len(z) for z in arrays]} samples do not go with {n} labels")
    shapes = {z.shape[1:] for z in arrays}
    if labels.ndim != 1 or len(shapes) > 1 or any(z.ndim != 2 for z in arrays):
        raise ConfigError(
            f"expected labels (N,) and logits (N, classes), the same for every exit; got labels {labels.shape} "
            f"and logits {[z.shape for z in arrays]}"
        )
    classes = arrays[0].shape[1]
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels are whole numbers from 0 to {classes - 1} here, not {_some(labels)}")
    for i, z in enumerate(arrays):
        if not (finite := np.isfinite(z).all(axis=1)).all():
            raise InputError(
                f"exit {i} gives logits that are not finite for {n - finite.sum()} of {n} samples; look for "
                "inputs or weights that are NaN or far too large"
            )
    return arrays, labels.astype(np.int64)


def _some(labels: NDArray[np.generic]) -> str:
    if labels.dtype.kind not in "iu":
        return f"values of type {labels.dtype}"
    return f"values from {labels.min()} to {labels.max()}"


def _warn_too_few(n: int, needed: int | None, max_drop: float, delta: float | None) -> None:
    if needed is None:
        reason = f"no number of held-out samples can promise a drop of at most {max_drop:g}; allow more than 0"
    else:
        reason = (
            f"a drop of at most {max_drop:g} with delta {delta:g} takes at least {needed:,} held-out samples, "
            f"not {n:,}; give more, or allow a larger drop or delta"
        )
    warnings.warn(
        f"nothing will leave early: {reason}. delta=None (on the command line `--delta none`) chooses thresholds "
        "by these samples alone, and promises nothing",
        UserWarning,
        stacklevel=3,
    )
