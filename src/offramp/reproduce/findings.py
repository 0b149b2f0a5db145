"""What exits are worth, measured on test images: accuracy, calibration error, and cascades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offramp.bundle.manifest import Manifest
from offramp.exits.calibration import Calibration, calibrate_logits
from offramp.exits.confidence import calibration_error, confidence_of, softmax
from offramp.exits.evaluation import Evaluation
from offramp.exits.thresholds import answering
from offramp.runtime.tuning import macs_saved

__all__ = ["Cascade", "Findings", "cascade_on", "findings"]


@dataclass(frozen=True)
class Cascade:
    """A cascade on test images, its threshold chosen on held-out ones. Shares and accuracies are fractions.

    Attributes:
        max_drop: What it was allowed to lose against the last exit.
        threshold: Of every gate.
        exit_share: Per exit, the share that it answers.
        accuracy: Of the whole cascade.
        drop: What it loses against the last exit; below 0 is a gain.
        macs_saved: The share of multiply-accumulates that it saves against the network without exits.
        promise: What holds for inputs like the held-out ones, in words.
    """

    max_drop: float
    threshold: float
    exit_share: tuple[float, ...]
    accuracy: float
    drop: float
    macs_saved: float
    promise: str


@dataclass(frozen=True)
class Findings:
    """What one way of training gives on the test images.

    Attributes:
        way: The training's name.
        accuracy: Per exit.
        ece_before: Per exit, the expected calibration error without temperature.
        ece_after: Per exit, the same with the temperature that was fitted on held-out images.
        temperatures: Per exit.
        cascades: One per allowed drop, ascending.
    """

    way: str
    accuracy: tuple[float, ...]
    ece_before: tuple[float, ...]
    ece_after: tuple[float, ...]
    temperatures: tuple[float, ...]
    cascades: tuple[Cascade, ...]


def findings(
    way: str,
    held_out: Evaluation,
    test: Evaluation,
    manifest: Manifest,
    max_drops: Sequence[float],
    delta: float | None,
) -> Findings:
    """Measures one way of training on test images.

    Args:
        way: The training's name.
        held_out: Every exit's logits on held-out images, for temperatures and thresholds.
        test: The same on test images.
        manifest: Of a bundle of this network; all exits lie in it.
        max_drops: Accuracy that a cascade may cost, as fractions, ascending.
        delta: The probability that it costs more; None promises nothing.
    """
    tuned = [calibrate_logits(held_out.logits, held_out.labels, max_drop=d, delta=delta) for d in max_drops]
    temperatures = tuned[0].temperatures
    return Findings(
        way=way,
        accuracy=test.accuracy,
        ece_before=tuple(calibration_error(softmax(z), test.labels) for z in test.logits),
        ece_after=tuple(
            calibration_error(softmax(z, t), test.labels) for z, t in zip(test.logits, temperatures, strict=True)
        ),
        temperatures=temperatures,
        cascades=tuple(cascade_on(test, one, manifest) for one in tuned),
    )


def cascade_on(test: Evaluation, tuned: Calibration, manifest: Manifest) -> Cascade:
    """What the gates of a calibration do on test images.

    Args:
        test: Every exit's logits on the test images.
        tuned: The calibration, on other images.
        manifest: Of a bundle of this network; all exits lie in it.
    """
    cooled = [softmax(z, t) for z, t in zip(test.logits, tuned.temperatures, strict=True)]
    sure = np.stack([confidence_of(p, tuned.confidence) for p in cooled[:-1]])
    threshold = tuned.thresholds[0]  # the gates share it
    exits = answering(sure, threshold)
    right = np.stack([z.argmax(axis=1) == test.labels for z in test.logits])
    share = (np.bincount(exits, minlength=len(test.logits)) / len(test.labels)).tolist()
    accuracy = float(right[exits, np.arange(len(exits))].mean())
    return Cascade(
        max_drop=tuned.max_drop,
        threshold=threshold,
        exit_share=tuple(share),
        accuracy=accuracy,
        drop=test.accuracy[-1] - accuracy,
        macs_saved=macs_saved(manifest, range(manifest.last), share),
        promise=tuned.promise,
    )
