"""A few samples of what crosses each cut, drawn from all that is seen. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CutSamples", "samples_kept"]

Array = NDArray[np.generic]

#: Samples kept of each tensor, fewer where a few hold that many values.
_MOST, _FEWEST, _VALUES = 64, 8, 2**20


def samples_kept(shape: Sequence[int]) -> int:
    """How many samples of a tensor are enough to fit a codec to; `shape` is that of one sample."""
    return min(_MOST, max(_FEWEST, _VALUES // max(1, math.prod(shape))))


class CutSamples:
    """Keeps a uniform random choice of the samples that pass, the same ones of every tensor.

    Every sample draws a key, and those with the smallest keys stay: however long the data are and however they
    are ordered, each has the same chance.

    Args:
        seed: Chooses which.

    Attributes:
        kept: Per tensor (n, …), in the order of the keys.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._keys: NDArray[np.float64] = np.empty(0)
        self.kept: list[Array] = []

    def add(self, batch: Sequence[Any], rows: Callable[[Any, NDArray[np.int64]], Array]) -> None:
        """Lets a batch pass.

        Args:
            batch: Tensors of the same length, the same number of them every time.
            rows: Gives some rows of one of them.
        """
        before = len(self._keys)
        keys = np.concatenate([self._keys, self._rng.random(len(batch[0]))])
        order = np.argsort(keys, kind="stable")[:_MOST]
        fresh: list[Array] = []
        for i, tensor in enumerate(batch):
            stay = order[: samples_kept(tensor.shape[1:])]
            new = rows(tensor, stay[stay >= before] - before)
            place = np.empty((len(stay), *new.shape[1:]), new.dtype)
            place[stay >= before] = new
            if before:
                place[stay < before] = self.kept[i][stay[stay < before]]
            fresh.append(place)
        self._keys, self.kept = keys[order], fresh
