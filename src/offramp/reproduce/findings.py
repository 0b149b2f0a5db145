"""What exits are worth, measured on test images: accuracy, calibration error, and the cascade."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offramp.bundle.manifest import Manifest
from offramp.exits.calibration import Calibration
from offramp.exits.confidence import calibration_error, confidence_of, softmax
from offramp.exits.evaluation import Evaluation
from offramp.exits.thresholds import answering
from offramp.runtime.tuning import macs_saved

__all__ = ["Findings", "findings"]


@dataclass(frozen=True)
class Findings:
    """What one way of training gives on the test images. Shares and accuracies are fractions.

    Attributes:
        way: The training's name.
        accuracy: Per exit.
        ece_before: Per exit, the expected calibration error without temperature.
        ece_after: Per exit, the same with the temperature that was fitted on held-out images.
        temperatures: Per exit.
        threshold: Of every gate of the cascade, chosen on held-out images.
        exit_share: Per exit, the share that it answers in the cascade.
        cascade_accuracy: Of the whole cascade.
        macs_saved: The share of multiply-accumulates that the cascade saves against the network without exits.
        promise: What holds for inputs to come, in words.
    """

    way: str
    accuracy: tuple[float, ...]
    ece_before: tuple[float, ...]
    ece_after: tuple[float, ...]
    temperatures: tuple[float, ...]
    threshold: float
    exit_share: tuple[float, ...]
    cascade_accuracy: float
    macs_saved: float
    promise: str

    @property
    def drop(self) -> float:
        """What the cascade loses against the last exit; below 0 is a gain."""
        return self.accuracy[-1] - self.cascade_accuracy


def findings(way: str, test: Evaluation, tuned: Calibration, manifest: Manifest) -> Findings:
    """Measures one way on test images, with the temperatures and thresholds of its calibration.

    Args:
        way: The training's name.
        test: Every exit's logits on the test images.
        tuned: The calibration on held-out images.
        manifest: Of a bundle of this network; all exits lie in it.
    """
    plain = [softmax(z) for z in test.logits]
    cooled = [softmax(z, t) for z, t in zip(test.logits, tuned.temperatures, strict=True)]
    sure = np.stack([confidence_of(p, tuned.confidence) for p in cooled[:-1]])
    threshold = tuned.thresholds[0]  # the gates share it
    exits = answering(sure, threshold)
    right = np.stack([z.argmax(axis=1) == test.labels for z in test.logits])
    share = np.bincount(exits, minlength=len(test.logits)) / len(test.labels)
    return Findings(
        way=way,
        accuracy=test.accuracy,
        ece_before=tuple(calibration_error(p, test.labels) for p in plain),
        ece_after=tuple(calibration_error(p, test.labels) for p in cooled),
        temperatures=tuned.temperatures,
        threshold=threshold,
        exit_share=tuple(share.tolist()),
        cascade_accuracy=float(right[exits, np.arange(len(exits))].mean()),
        macs_saved=macs_saved(manifest, range(manifest.last), share.tolist()),
        promise=tuned.promise,
    )
