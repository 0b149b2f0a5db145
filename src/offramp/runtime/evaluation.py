"""What every exit of a bundle says about a data set. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.bundle import Bundle
from offramp.bundle.feed import by_name
from offramp.bundle.manifest import Manifest
from offramp.bundle.preprocessing import preprocess
from offramp.errors import ConfigError, InputError
from offramp.runtime.stages import Stages, check_tensor

__all__ = ["batches", "class_indices", "exit_logits", "held_exits", "prepared", "sample_count"]

Array = NDArray[np.generic]


def exit_logits(
    stages: Stages,
    inputs: Any,
    *,
    batch: int = 100,
    on_batch: Callable[[int], None] = lambda n: None,
) -> list[NDArray[np.float32]]:
    """The logits (N, classes) of every exit that a copy of a bundle can evaluate, in order.

    Args:
        stages: The bundle's sessions.
        inputs: (N, …): the network's own input, or uint8 pixels where the manifest has preprocessing; of several
            inputs a dict by name, or a tuple by place.
        batch: Inputs that run at once.
        on_batch: Told how many inputs have been run since it was last told.

    Raises:
        ConfigError: Batches of less than one input.
        InputError: Inputs of wrong names, shape or dtype, of different lengths, or not finite.
        StageError: ONNX Runtime failed.
    """
    bundle, last = stages.bundle, stages.bundle.manifest.last
    exits = held_exits(bundle)
    found: dict[int, list[Array]] = {e: [] for e in exits}
    for given in batches(bundle.manifest, inputs, batch):
        tensors = given
        for i in range(max(exits, default=-1) + 1):
            tensors, _ = stages.stage(i, tensors)
            if i in exits:
                found[i].append(tensors[0] if i == last else stages.exit(i, tensors)[0])
        on_batch(len(given[0]))
    classes = bundle.manifest.final_exit().logits.shape
    empty: list[Array] = [np.empty((0, *classes), np.float32)]
    return [np.concatenate(found[e] or empty).astype(np.float32, copy=False) for e in exits]


def batches(manifest: Manifest, inputs: Any, size: int) -> Iterator[list[Array]]:
    """Inputs in batches, as the first stage takes them.

    Args:
        manifest: The bundle's.
        inputs: As `exit_logits` takes them.
        size: Of a batch; the last one may be smaller.

    Raises:
        ConfigError: Batches of less than one input.
        InputError: As `exit_logits` says.
    """
    if size < 1:
        raise ConfigError(f"a batch holds at least 1 input, not {size}")
    samples = by_name(inputs, manifest.inputs)
    for start in range(0, sample_count(samples), size):
        yield prepared(manifest, {name: x[start : start + size] for name, x in samples.items()})


def held_exits(bundle: Bundle) -> tuple[int, ...]:
    """The exits that a copy of a bundle can evaluate, ascending."""
    return tuple(i for i, found in enumerate(bundle.manifest.exits[: bundle.held]) if found is not None)


def sample_count(samples: Mapping[str, Array]) -> int:
    """How many samples some arrays hold.

    Raises:
        InputError: Not all as many.
    """
    counts = {name: len(x) if x.ndim else 0 for name, x in samples.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise InputError(f"every input needs as many samples; there are {listed}")
    return next(iter(counts.values()))


def class_indices(labels: Any, count: int, classes: int) -> NDArray[np.int64]:
    """Labels as an array, once there is one for each of `count` inputs.

    Args:
        labels: (N,) whole numbers: an array, a list, or a tensor on the CPU.
        count: How many inputs there are.
        classes: How many classes the network knows.

    Raises:
        ConfigError: No inputs, or not one label per input.
        InputError: Labels that are no class indices.
    """
    found = np.asarray(labels)
    if found.shape != (count,) or not count:  # labels (N, 1) would be compared with every answer
        raise ConfigError(
            f"expected inputs, and one label each; got {count} inputs and labels of shape {found.shape}"
        )
    if found.dtype.kind not in "iu":
        raise InputError(f"labels are class indices, which are whole numbers, not {found.dtype}")
    if not 0 <= int(found.min()) <= int(found.max()) < classes:
        raise InputError(f"labels from {found.min()} to {found.max()} do not go with {classes} classes")
    return found.astype(np.int64)


def prepared(manifest: Manifest, batch: Mapping[str, Array]) -> list[Array]:
    """A batch of inputs, or of pixels, as the first stage takes it.

    Args:
        manifest: The bundle's.
        batch: As `by_name` gives it, each (N, …).

    Raises:
        InputError: Another shape or dtype, values that are not finite, or batches that differ.
    """
    specs, images = manifest.inputs, manifest.preprocessing
    first = batch[specs[0].name]
    if images is not None and first.dtype == np.uint8 and specs[0].dtype != "uint8":
        return [preprocess(first.view(np.uint8), images)]
    for spec in specs:
        check_tensor(batch[spec.name], spec)
    if len(specs) > 1:
        sample_count(batch)
    return [batch[spec.name] for spec in specs]
