"""What every exit of a bundle says about a data set. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.bundle import Bundle
from offramp.bundle.manifest import Manifest
from offramp.bundle.preprocessing import preprocess
from offramp.runtime.stages import Stages, check_tensor

__all__ = ["exit_logits", "held_exits", "prepared"]

Array = NDArray[np.generic]


def exit_logits(
    stages: Stages,
    inputs: Array,
    *,
    batch: int = 100,
    on_batch: Callable[[int], None] = lambda n: None,
) -> list[NDArray[np.float32]]:
    """The logits (N, classes) of every exit that a copy of a bundle can evaluate, in order.

    Args:
        stages: The bundle's sessions.
        inputs: (N, …): the network's own inputs, or uint8 pixels where the manifest has preprocessing.
        batch: Inputs that run at once.
        on_batch: Told how many inputs have been run since it was last told.

    Raises:
        InputError: Inputs of wrong shape or dtype, or not finite.
        StageError: ONNX Runtime failed.
    """
    bundle, last = stages.bundle, stages.bundle.manifest.last
    exits = held_exits(bundle)
    found: dict[int, list[Array]] = {e: [] for e in exits}
    for start in range(0, len(inputs), batch):
        part = prepared(bundle.manifest, inputs[start : start + batch])
        tensors = [part]
        for i in range(max(exits, default=-1) + 1):
            tensors, _ = stages.stage(i, tensors)
            if i in exits:
                found[i].append(tensors[0] if i == last else stages.exit(i, tensors)[0])
        on_batch(len(part))
    classes = bundle.manifest.final_exit().logits.shape
    empty: list[Array] = [np.empty((0, *classes), np.float32)]
    return [np.concatenate(found[e] or empty).astype(np.float32, copy=False) for e in exits]


def held_exits(bundle: Bundle) -> tuple[int, ...]:
    """The exits that a copy of a bundle can evaluate, ascending."""
    return tuple(i for i, found in enumerate(bundle.manifest.exits[: bundle.held]) if found is not None)


def prepared(manifest: Manifest, batch: Array) -> Array:
    """A batch of pixels or inputs as the network takes it.

    Raises:
        InputError: Another shape or dtype, or values that are not finite.
    """
    spec, images = manifest.input, manifest.preprocessing
    if batch.dtype == np.uint8 and spec.dtype != "uint8" and images is not None:
        return preprocess(batch.view(np.uint8), images)
    check_tensor(batch, spec)
    return batch
