"""Two bundles of one network side by side: bytes, milliseconds, and what every exit answers. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.feed import by_name
from offramp.bundle.manifest import CLOSED, Tuning
from offramp.exits.confidence import confidence_of, softmax
from offramp.exits.thresholds import answering
from offramp.runtime.evaluation import class_indices, exit_logits, held_exits, prepared, sample_count
from offramp.runtime.stages import Stages

__all__ = ["Comparison", "ExitChange", "StageChange", "compare"]

Array = NDArray[np.generic]


@dataclass(frozen=True)
class StageChange:
    """One stage's file and time, before and after."""

    stage: int
    bytes_before: int
    bytes_after: int
    ms_before: float
    ms_after: float


@dataclass(frozen=True)
class ExitChange:
    """One exit's accuracy as a fraction, before and after, and on how many inputs it now says something else."""

    exit: int
    accuracy_before: float
    accuracy_after: float
    changed: int


@dataclass(frozen=True)
class Comparison:
    """What became of a bundle.

    Attributes:
        samples: How many inputs were tested.
        stages: Every stage.
        exits: Every exit.
        cascade_before: Accuracy if every exit may answer, at the bundle's own thresholds.
        cascade_after: The same afterwards, at the thresholds there.
        early_before: The share of inputs that leave before the last exit.
        early_after: The same afterwards.
    """

    samples: int
    stages: tuple[StageChange, ...]
    exits: tuple[ExitChange, ...]
    cascade_before: float
    cascade_after: float
    early_before: float
    early_after: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def compare(
    before: Stages,
    after: Stages,
    inputs: Any,
    labels: NDArray[np.integer],
    *,
    runs: int = 50,
    on_batch: Callable[[int], None] = lambda n: None,
) -> Comparison:
    """Measures two whole bundles with the same stages and exits on the same inputs, in turn.

    Args:
        before: The sessions of the one.
        after: Of the other.
        inputs: (N, …), as `exit_logits` takes them.
        labels: (N,) class indices.
        runs: Of every stage on one input; the median counts.
        on_batch: Told how many inputs have been run since it was last told; each runs twice.

    Raises:
        ConfigError: No inputs, or not one label per input.
        InputError: Inputs of wrong shape or dtype or not finite, or labels that are no class indices.
        StageError: ONNX Runtime failed.
    """
    manifest = before.bundle.manifest
    samples = by_name(inputs, manifest.inputs)
    labels = class_indices(labels, sample_count(samples), manifest.final_exit().logits.shape[-1])
    said = [exit_logits(s, inputs, on_batch=on_batch) for s in (before, after)]
    exits = held_exits(before.bundle)
    changes = []
    for e, old, new in zip(exits, *said, strict=True):
        first, second = old.argmax(axis=1), new.argmax(axis=1)
        right = float((first == labels).mean()), float((second == labels).mean())
        changes.append(ExitChange(e, *right, int((first != second).sum())))
    cascades = [
        _cascade(s.bundle.tuning, exits, logits, labels) for s, logits in zip((before, after), said, strict=True)
    ]
    times = _times(before, after, prepared(manifest, {name: x[:1] for name, x in samples.items()}), runs)
    sizes = [[stage.graph.bytes for stage in s.bundle.manifest.stages] for s in (before, after)]
    stages = tuple(StageChange(i, *line) for i, line in enumerate(zip(*sizes, *times, strict=True)))
    (old_accuracy, old_early), (new_accuracy, new_early) = cascades
    return Comparison(len(labels), stages, tuple(changes), old_accuracy, new_accuracy, old_early, new_early)


def _cascade(
    tuning: Tuning, exits: Sequence[int], logits: Sequence[NDArray[np.float32]], labels: NDArray[np.integer]
) -> tuple[float, float]:
    """Accuracy of the first exits that are sure enough, and the share of inputs that leave early."""
    margins = []
    for e, z in zip(exits[:-1], logits[:-1], strict=True):
        threshold = tuning.thresholds[e]
        confidence = confidence_of(softmax(z, tuning.temperatures[e] or 1.0), tuning.confidence)
        margins.append(confidence - (CLOSED if threshold is None else threshold))
    chosen = answering(np.array(margins).reshape(-1, len(labels)), 0.0)
    right = np.stack([z.argmax(axis=1) == labels for z in logits])
    early = chosen < len(margins)
    return float(right[chosen, np.arange(len(labels))].mean()), float(early.mean())


def _times(before: Stages, after: Stages, x: list[Array], runs: int) -> tuple[list[float], list[float]]:
    """The median milliseconds of every stage on one input; both by turns, so that a disturbance hits both."""
    tensors = [x, x]
    medians: tuple[list[float], list[float]] = ([], [])
    for i in range(before.bundle.manifest.last + 1):
        spent: list[list[float]] = [[], []]
        for _ in range(runs + 3):
            for which, stages in enumerate((before, after)):
                spent[which].append(stages.stage(i, tensors[which])[1])
        for which, stages in enumerate((before, after)):
            medians[which].append(float(np.median(spent[which][3:])))  # the first ones warm up
            tensors[which] = stages.stage(i, tensors[which])[0]
    return medians
