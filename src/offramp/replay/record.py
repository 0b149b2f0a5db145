"""Recording a trace: every exit of a bundle on every sample of a data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.feed import by_name
from offramp.datasets.distortion import Distortion
from offramp.errors import ConfigError, InputError
from offramp.exits.confidence import confidence_of, softmax
from offramp.replay.trace import Trace, TraceMeta
from offramp.runtime.evaluation import class_indices, exit_logits, held_exits, prepared, sample_count
from offramp.runtime.labelled import Labelled
from offramp.runtime.stages import Stages

__all__ = ["record"]

#: Samples that are timed alone.
_TIMED = 100

Array = NDArray[np.generic]


def record(
    stages: Stages,
    data: Labelled,
    *,
    distortion: Distortion | None = None,
    on_batch: Callable[[int], None] = lambda n: None,
) -> Trace:
    """Runs every exit of a bundle on every sample, and times its parts one sample at a time.

    Args:
        stages: The whole bundle's sessions.
        data: Inputs with their labels.
        distortion: What is done to the pixels first.
        on_batch: Told how many samples have been run since it was last told.

    Raises:
        ConfigError: An edge copy that lacks stages, no samples, or not one label per sample.
        InputError: Inputs of another shape or dtype than the bundle's, or not finite, labels that are no class
            indices, or a distortion of what is no image.
        StageError: ONNX Runtime failed.
    """
    bundle = stages.bundle
    manifest = bundle.manifest
    if bundle.held <= manifest.last:
        raise ConfigError(f"{bundle.path} is an edge copy; a trace needs every exit, so give the whole bundle")
    samples = by_name(data.inputs, manifest.inputs)
    labels = class_indices(data.labels, sample_count(samples), manifest.final_exit().logits.shape[-1])
    if distortion is not None:
        for name, pixels in samples.items():
            if len(samples) > 1 or pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
                came = f"{pixels.dtype} {pixels.shape}" if len(samples) == 1 else f"{len(samples)} inputs"
                raise InputError(f"a distortion takes pixels, uint8 of shape (N, H, W, …), not {came}")
            samples[name] = distortion(pixels.view(np.uint8))
    exits = held_exits(bundle)
    logits = exit_logits(stages, samples, on_batch=on_batch)
    temperatures = [bundle.tuning.temperatures[e] or 1.0 for e in exits]
    said = [softmax(z, t) for z, t in zip(logits, temperatures, strict=True)]
    measure = bundle.tuning.confidence
    alone = [
        _times(stages, exits, prepared(manifest, {name: x[i : i + 1] for name, x in samples.items()}))
        for i in range(min(_TIMED, len(labels)))
    ]
    stage_ms, exit_ms = (np.median(times, axis=0).tolist() for times in zip(*alone, strict=True))
    heads = [found.graph for found in manifest.exits if found is not None]
    modes = dict.fromkeys(mode for cut in range(-1, manifest.last) for mode in manifest.modes(cut))
    meta = TraceMeta(
        bundle=manifest.name,
        digest=bundle.digest,
        data=data.what,
        distortion="" if distortion is None else str(distortion),
        seed=0 if distortion is None else distortion.seed,
        confidence=measure,
        exits=exits,
        stage_ms=tuple(stage_ms),
        exit_ms=tuple(exit_ms),
        stage_macs=tuple(stage.graph.macs for stage in manifest.stages),
        exit_macs=tuple(0 if head is None else head.macs for head in heads),
        stage_weights=tuple(stage.graph.parameters for stage in manifest.stages),
        exit_weights=tuple(0 if head is None else head.parameters for head in heads),
        depths=tuple(stage.depth for stage in manifest.stages),
        cut_bytes={
            mode: tuple(
                manifest.sent_bytes(cut, mode) if mode in manifest.modes(cut) else None
                for cut in range(-1, manifest.last)
            )
            for mode in modes
        },
    )
    return Trace(
        np.stack([p.argmax(axis=1) for p in said], axis=1).astype(np.int32),
        np.stack([confidence_of(p, measure) for p in said], axis=1).astype(np.float32).clip(0, 1),
        labels.astype(np.int32),
        meta,
    )


def _times(stages: Stages, exits: tuple[int, ...], tensors: list[Array]) -> tuple[list[float], list[float]]:
    """The milliseconds of every stage and of every head; 0 for the last exit, which has none."""
    stage_ms, exit_ms = [], []
    last = stages.bundle.manifest.last
    for i in range(last + 1):
        tensors, spent = stages.stage(i, tensors)
        stage_ms.append(spent)
        if i in exits and i < last:
            exit_ms.append(stages.exit(i, tensors)[1])
    return stage_ms, [*exit_ms, 0.0]
