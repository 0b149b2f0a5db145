"""What exits are worth, measured on test images: accuracy, calibration error, the cascade, cuts and modes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import Manifest
from offramp.exits.calibration import Calibration
from offramp.exits.confidence import calibration_error, confidence_of, softmax
from offramp.exits.evaluation import Evaluation
from offramp.exits.thresholds import answering
from offramp.runtime.evaluation import prepared
from offramp.runtime.labelled import Labelled
from offramp.runtime.stages import Stages
from offramp.runtime.tuning import macs_per_answer, macs_saved

__all__ = ["Crossing", "Findings", "crossings", "findings"]


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


@dataclass(frozen=True)
class Crossing:
    """One cut in one mode.

    Attributes:
        cut: The cut; −1 is the input.
        mode: The mode.
        bytes: What crosses for one sample, without gRPC's own compression.
        accuracy: Of the last exit behind it.
        macs_before: The share of the network's multiply-accumulates on the edge.
    """

    cut: int
    mode: str
    bytes: int
    accuracy: float
    macs_before: float


def crossings(stages: Stages, test: Labelled, *, batch: int = 100) -> list[Crossing]:
    """Every cut in every mode: bytes, and the accuracy of the last exit when the cut travelled so.

    Args:
        stages: The whole bundle's sessions.
        test: The images to measure by.
        batch: Images that run at once.
    """
    manifest = stages.bundle.manifest
    places = [(cut, mode) for cut in range(-1, manifest.last) for mode in manifest.modes(cut)]
    right = dict.fromkeys(places, 0)
    for start in range(0, len(test.labels), batch):
        labels = test.labels[start : start + batch]
        at_cut = [[prepared(manifest, test.inputs[start : start + batch])]]
        for i in range(manifest.last + 1):
            at_cut.append(stages.stage(i, at_cut[-1])[0])
        for cut, mode in places:
            tensors = at_cut[-1]
            if mode != "float":  # as float nothing changes on the way
                sent, _ = stages.encode(cut, mode, at_cut[cut + 1])
                tensors, _ = stages.decode(cut, mode, sent)
                for i in range(cut + 1, manifest.last + 1):
                    tensors, _ = stages.stage(i, tensors)
            right[cut, mode] += _right(tensors[0], labels)
    macs = [0, *macs_per_answer(manifest, ())]
    before = np.cumsum([0, *(stage.graph.macs for stage in manifest.stages)]) / max(1, macs[-1])
    return [
        Crossing(
            cut,
            mode,
            sum(spec.bytes for spec in stages.wire(cut, mode)),
            n / len(test.labels),
            float(before[cut + 1]),
        )
        for (cut, mode), n in right.items()
    ]


def _right(logits: NDArray[np.generic], labels: NDArray[np.int64]) -> int:
    return int((logits.argmax(axis=1) == labels).sum())
