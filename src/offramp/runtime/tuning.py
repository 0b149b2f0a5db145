"""New temperatures and thresholds for a bundle from labelled data, by running its own stages. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.feed import by_name
from offramp.bundle.manifest import CLOSED, Manifest, Tuning
from offramp.errors import ConfigError
from offramp.exits.calibration import Calibration, calibrate_logits, check_settings
from offramp.runtime.evaluation import exit_logits, held_exits, sample_count
from offramp.runtime.stages import Stages

__all__ = ["Tuned", "macs_per_answer", "macs_saved", "tune"]


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        tuning: The new tuning; `Bundle.retuned` writes it.
        calibration: What was measured, for the exits in `exits`.
        exits: The exits that this copy can evaluate, ascending.
        macs_saved: The expected share of the whole network's multiply-accumulates that the cascade saves.
    """

    tuning: Tuning
    calibration: Calibration
    exits: tuple[int, ...]
    macs_saved: float


def tune(
    stages: Stages,
    inputs: Any,
    labels: NDArray[np.integer],
    *,
    max_drop: float = 0.005,
    delta: float | None = 0.1,
    confidence: str = "max_softmax",
    on_batch: Callable[[int], None] = lambda n: None,
) -> Tuned:
    """Fits temperatures and thresholds as `calibrate_logits` does, and writes nothing.

    An edge copy that does not hold the last exit counts every wrong early answer as lost, which is stricter
    than the truth; its thresholds beyond the stages held, and the last temperature, stay as they are.

    Args:
        stages: The bundle's sessions.
        inputs: (N, …), as `exit_logits` takes them.
        labels: (N,) class indices.
        max_drop: Accuracy that the cascade may lose against the last exit, as a fraction.
        delta: The probability that it may lose more; None promises nothing.
        confidence: "max_softmax", "entropy" or "margin".
        on_batch: Told how many inputs have been run since it was last told.

    Raises:
        ConfigError: No early exit here, or settings that cannot be.
        InputError: Inputs of wrong names, shape or dtype or not finite, labels that are no class indices.
        StageError: ONNX Runtime failed.
    """
    check_settings(max_drop, delta, confidence)
    bundle, old = stages.bundle, stages.bundle.tuning
    exits = held_exits(bundle)
    last = bundle.manifest.last
    if not any(e < last for e in exits):
        raise ConfigError(f"{bundle.path} holds no early exit, so there is nothing to tune")
    samples = by_name(inputs, bundle.manifest.inputs)
    if (count := sample_count(samples)) != len(labels):
        raise ConfigError(f"{count} inputs do not go with {len(labels)} labels")
    found = calibrate_logits(
        exit_logits(stages, samples, on_batch=on_batch),
        labels,
        max_drop=max_drop,
        delta=delta,
        confidence=confidence,
        with_last=last in exits,
    )
    temperatures, thresholds = list(old.temperatures), list(old.thresholds)
    for e, temperature in zip(exits, found.temperatures, strict=True):
        temperatures[e] = temperature
    for e, threshold in zip((e for e in exits if e < last), found.thresholds, strict=True):
        thresholds[e] = threshold
    if found.confidence != old.confidence:
        # A threshold of another measure means nothing: what cannot be tuned here is closed.
        thresholds = [CLOSED if t is not None and i not in exits else t for i, t in enumerate(thresholds)]
    tuning = old.model_copy(
        update={
            "temperatures": tuple(temperatures),
            "thresholds": tuple(thresholds),
            "confidence": found.confidence,
        }
    )
    return Tuned(tuning, found, exits, macs_saved(bundle.manifest, exits, found.exit_share))


def macs_per_answer(manifest: Manifest, exits: Sequence[int]) -> tuple[int, ...]:
    """Multiply-accumulates of one answer at each exit and at the last one: stages, and the heads on the way.

    Args:
        manifest: The bundle's.
        exits: The early exits that are evaluated on the way, ascending.
    """
    heads = {
        e: 0 if (found := manifest.exits[e]) is None or found.graph is None else found.graph.macs for e in exits
    }
    answers = [*(e for e in exits if e < manifest.last), manifest.last]
    return tuple(
        sum(stage.graph.macs for stage in manifest.stages[: e + 1]) + sum(m for i, m in heads.items() if i <= e)
        for e in answers
    )


def macs_saved(manifest: Manifest, exits: Sequence[int], exit_share: Sequence[float]) -> float:
    """The expected share of multiply-accumulates saved against the network without exits.

    Below 0 where the heads cost more than leaving early saves.

    Args:
        manifest: The bundle's.
        exits: The exits that are evaluated, ascending.
        exit_share: The share of inputs answered at each early one of them, and last at the last exit.
    """
    whole = sum(stage.graph.macs for stage in manifest.stages)
    spent = sum(m * s for m, s in zip(macs_per_answer(manifest, exits), exit_share, strict=True))
    return 1 - spent / whole if whole else 0.0
