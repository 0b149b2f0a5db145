"""Recording a trace: every exit of a bundle on every image of a data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.preprocessing import preprocess
from offramp.datasets.distortion import Distortion
from offramp.datasets.images import ImageData
from offramp.errors import ConfigError
from offramp.replay.trace import Trace, TraceMeta
from offramp.runtime.gate import Gate
from offramp.runtime.stages import Stages

__all__ = ["record"]

#: Samples that run together, and samples that are timed alone.
_BATCH, _TIMED = 50, 100

Array = NDArray[np.generic]


def record(
    stages: Stages,
    images: ImageData,
    *,
    data: str = "",
    distortion: Distortion | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Trace:
    """Runs every exit of a bundle on every image, and times its parts one image at a time.

    Args:
        stages: The whole bundle's sessions.
        images: The images, with class indices.
        data: The data set's name, for the record.
        distortion: What is done to the images first.
        advance: Called with the number of images just done.

    Raises:
        ConfigError: An edge copy that lacks stages, a bundle without preprocessing, no images, or a label that
            the network has no class for.
        InputError: Images of another size or colour than the bundle's.
        StageError: ONNX Runtime failed.
    """
    bundle = stages.bundle
    manifest = bundle.manifest
    if bundle.held <= manifest.last:
        raise ConfigError(f"{bundle.path} is an edge copy; a trace needs every exit, so give the whole bundle")
    if manifest.preprocessing is None:
        raise ConfigError(f"{bundle.path} has no preprocessing, so it takes no images")
    classes = manifest.final_exit().logits.shape[-1]
    if not len(images):
        raise ConfigError("there are no images to trace")
    if not 0 <= int(images.labels.min()) <= int(images.labels.max()) < classes:
        raise ConfigError(
            f"labels from {images.labels.min()} to {images.labels.max()} do not go with {classes} classes"
        )
    columns = tuple(i for i, found in enumerate(manifest.exits) if found is not None)
    gate = Gate(bundle.tuning)
    shape = (len(images), len(columns))
    prediction, confidence = np.empty(shape, np.int32), np.empty(shape, np.float32)
    pixels = images.images if distortion is None else distortion(images.images)
    for begin in range(0, len(pixels), _BATCH):
        part = pixels[begin : begin + _BATCH]
        logits, _, _ = _run(stages, columns, preprocess(part, manifest.preprocessing))
        for column, (exit_index, rows) in enumerate(zip(columns, logits, strict=True)):
            for i, row in enumerate(rows, start=begin):
                belief = gate.belief(exit_index, row)
                prediction[i, column], confidence[i, column] = belief.label, belief.confidence
        advance(len(part))
    alone = [
        _run(stages, columns, preprocess(pixels[i : i + 1], manifest.preprocessing))[1:]
        for i in range(min(_TIMED, len(pixels)))
    ]
    stage_ms, exit_ms = (np.median([times[part] for times in alone], axis=0).tolist() for part in (0, 1))
    heads = [found.graph for found in manifest.exits if found is not None]
    modes = dict.fromkeys(mode for cut in range(-1, manifest.last) for mode in manifest.modes(cut))
    meta = TraceMeta(
        bundle=manifest.name,
        digest=bundle.digest,
        data=data,
        distortion="" if distortion is None else str(distortion),
        seed=0 if distortion is None else distortion.seed,
        exits=columns,
        stage_ms=tuple(stage_ms),
        exit_ms=tuple(exit_ms),
        stage_macs=tuple(stage.graph.macs for stage in manifest.stages),
        exit_macs=tuple(0 if head is None else head.macs for head in heads),
        depths=tuple(stage.depth for stage in manifest.stages),
        cut_bytes={mode: tuple(_bytes(stages, cut, mode) for cut in range(-1, manifest.last)) for mode in modes},
    )
    return Trace(prediction, confidence, images.labels.astype(np.int32), meta)


def _run(stages: Stages, columns: tuple[int, ...], x: Array) -> tuple[list[Array], list[float], list[float]]:
    """The logits of every exit, and the milliseconds of every stage and every head."""
    tensors, logits, stage_ms, exit_ms = [x], [], [], []
    last = stages.bundle.manifest.last
    for i in range(last + 1):
        tensors, spent = stages.stage(i, tensors)
        stage_ms.append(spent)
        if i in columns and i < last:
            found, head_ms = stages.exit(i, tensors)
            logits.append(found)
            exit_ms.append(head_ms)
    return [*logits, tensors[0]], stage_ms, [*exit_ms, 0.0]


def _bytes(stages: Stages, cut: int, mode: str) -> int | None:
    if mode not in stages.bundle.manifest.modes(cut):
        return None
    return sum(spec.bytes for spec in stages.wire(cut, mode))
