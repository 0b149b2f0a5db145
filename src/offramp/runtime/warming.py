"""A server's warm start: every graph runs before the first request, and shows what batches are worth to it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from offramp.bundle.bundle import Bundle
from offramp.bundle.feed import example
from offramp.runtime.batching import MAX_BATCH
from offramp.runtime.stages import Stages
from offramp.runtime.tail import BatchSizes, Tail

__all__ = ["measured_sizes", "warm_tail"]

#: Sizes that cost up to this much more per sample than the cheapest one are as good: calls and threads that are
#: switched less often make up for it.
_TOLERANCE = 1.05
_ROUNDS = 6


def warm_tail(bundle: Bundle, *, threads: int, provider: str, max_batch: int) -> Tail:
    """A bundle's tails as `offramp serve` and its replicas hold them: every graph has run, every stage is timed.

    Args:
        bundle: What is to be served.
        threads: Threads per batch.
        provider: "cpu" or "cuda".
        max_batch: Samples that run together at most; 0 or 1 is no batching.

    Raises:
        ConfigError: A provider that is not there.
        ServerRefusedError: The bundle is an edge copy that lacks stages.
        StageError: ONNX Runtime failed.
    """
    tail = Tail(Stages(bundle, threads=threads, provider=provider))
    tail.sizes = measured_sizes(tail.stages, max(1, max_batch))
    return tail


def measured_sizes(
    stages: Stages,
    max_batch: int = MAX_BATCH,
    *,
    budget_s: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[BatchSizes, ...]:
    """Runs every graph that is held, and finds for each stage which batches are worth it.

    Sizes 1, 2, 4, … are timed in turn. `eager` is the smallest that takes at most 5 % more per sample than the
    best, `most` the largest. Where weights are large, or a call costs more than what it computes, both are large;
    convolutions gain from 2 and little more; where large maps fall out of the cache, large batches lose.

    Args:
        stages: What is to be served.
        max_batch: The largest size that is tried.
        budget_s: Nothing is tried any more after this many seconds.
        clock: Gives seconds.

    Raises:
        StageError: ONNX Runtime failed.
    """
    manifest = stages.bundle.manifest
    for codec in manifest.codecs:
        if codec.cut < stages.bundle.held:
            stages.decode(codec.cut, codec.mode, example(codec.decoder.inputs))
    sizes = [2**k for k in range(max_batch.bit_length())]
    found, start, n = [], clock(), len(manifest.stages)
    for i, stage in enumerate(manifest.stages):
        one = example(stage.graph.inputs)
        costs: dict[int, float] = {}
        for size in sizes * _ROUNDS:  # in turn, so that what disturbs one disturbs all
            if costs and clock() - start > budget_s * (i + 1) / n:
                break
            cut, ms = stages.stage(i, [np.repeat(tensor, size, axis=0) for tensor in one])
            costs[size] = min(ms / size, costs.get(size, math.inf))
            if i < manifest.last and manifest.exits[i] is not None:
                stages.exit(i, cut)
        good = [size for size, cost in costs.items() if cost <= _TOLERANCE * min(costs.values())]
        found.append(BatchSizes(good[0], good[-1]))
    return tuple(found)
