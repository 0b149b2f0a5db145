"""A few of the inputs that calibration sees, drawn from all of them. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["InputSamples", "samples_kept"]

Array = NDArray[np.generic]

#: Samples kept of each tensor, fewer where a few hold that many values.
_MOST, _FEWEST, _VALUES = 64, 8, 2**20


def samples_kept(shape: Sequence[int]) -> int:
    """How many samples of a tensor are enough to fit a quantiser to; `shape` is that of one sample."""
    return min(_MOST, max(_FEWEST, _VALUES // max(1, math.prod(shape))))


class InputSamples:
    """Keeps a uniform random choice of the samples that pass, the same ones of every tensor.

    Every sample draws a key, and those with the smallest keys stay: however long the data are and however they
    are ordered, each has the same chance. Batches of other shapes than the first one's pass unseen.

    Args:
        seed: Chooses which.

    Attributes:
        kept: Per tensor (n, …), in any order; empty before the first batch.
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
        if self.kept and [t.shape[1:] for t in batch] != [k.shape[1:] for k in self.kept]:
            return
        before = len(self._keys)
        most = max(samples_kept(t.shape[1:]) for t in batch)
        keys = np.concatenate([self._keys, self._rng.random(len(batch[0]))])
        order = np.argsort(keys, kind="stable")[:most]
        stay = order < before
        new = [rows(tensor, order[~stay] - before) for tensor in batch]
        old = [kept[order[stay]] for kept in self.kept] or [array[:0] for array in new]
        self.kept = [np.concatenate(pair) for pair in zip(old, new, strict=True)]
        self._keys = np.concatenate([keys[order[stay]], keys[order[~stay]]])
