"""A server's warm start: every graph runs before the first request, and shows what batches are worth to it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from offramp.bundle.feed import example
from offramp.runtime.batching import MAX_BATCH
from offramp.runtime.stages import Stages
from offramp.runtime.tail import BatchSizes

__all__ = ["measured_sizes"]

#: Sizes that cost up to this much more per sample than the cheapest one are as good: calls and threads that are
#: switched less often make up for it.
_TOLERANCE = 1.05
_RUNS = 3


def measured_sizes(
    stages: Stages,
    max_batch: int = MAX_BATCH,
    *,
    budget_s: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[BatchSizes, ...]:
    """Runs every graph that is held, and finds for each stage which batches are worth it.

    Sizes 1, 2, 4, … are timed. `eager` is the smallest that takes at most 5 % more per sample than the best,
    `most` the largest. Where weights are large, or a call costs more than what it computes, both are large;
    convolutions gain from 2 and little more; where large maps fall out of the cache, large batches lose.

    Args:
        stages: What is to be served.
        max_batch: The largest size that is tried.
        budget_s: No size is tried any more after this many seconds.
        clock: Gives seconds.

    Raises:
        StageError: ONNX Runtime failed.
    """
    manifest = stages.bundle.manifest
    for codec in manifest.codecs:
        if codec.cut < stages.bundle.held:
            stages.decode(codec.cut, codec.mode, example(codec.decoder.inputs))
    found, start, n = [], clock(), len(manifest.stages)
    for i, stage in enumerate(manifest.stages):
        one = example(stage.graph.inputs)
        costs: dict[int, float] = {}
        size = 1
        while size <= max_batch and (size == 1 or clock() - start < budget_s * (i + 1) / n):
            tensors = [np.repeat(tensor, size, axis=0) for tensor in one]
            cut, _ = stages.stage(i, tensors)  # the first run reserves memory
            costs[size] = min(stages.stage(i, tensors)[1] for _ in range(_RUNS)) / size
            if i < manifest.last and manifest.exits[i] is not None:
                stages.exit(i, cut)
            size *= 2
        good = [size for size, cost in costs.items() if cost <= _TOLERANCE * min(costs.values())]
        found.append(BatchSizes(good[0], good[-1]))
    return tuple(found)
