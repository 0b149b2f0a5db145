"""Random numbers that are a function of seed and step, the same one by one and in arrays.

A policy that draws needs no generator's state saved: its seed and how often it has chosen are enough.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["uniform", "uniforms"]

#: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, "Fast splittable pseudorandom number generators")
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1
_UNIT = 2.0**-53


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1), evenly distributed over steps."""
    z = (_stream(seed) + (step + 1) * _GOLDEN) & _MASK
    return (_mixed(z) >> 11) * _UNIT


def uniforms(seed: int, runs: int, steps: int) -> NDArray[np.float64]:
    """`uniform(seed + r, t)` for every run r and step t, of shape (runs, steps)."""
    start = np.array([_stream(seed + run) for run in range(runs)], np.uint64)[:, None]
    z = start + np.arange(1, steps + 1, dtype=np.uint64) * np.uint64(_GOLDEN)  # wraps round, as the mask does
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    drawn: NDArray[np.float64] = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * _UNIT
    return drawn


def _mixed(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


#: Seeds are mixed once by themselves, so that neighbouring seeds do not give shifted sequences.
_stream = functools.lru_cache(maxsize=64)(_mixed)
