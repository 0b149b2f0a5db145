"""Quantisers: how the values of a tensor become few bits, fitted to samples. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MODES", "Mode", "Quantiser", "fit_quantiser"]

#: Shares of the range seen that are tried as the range kept; beyond it values are clipped.
_SHARES = np.geomspace(1, 1 / 16, 24)
#: Values that a fit looks at, at most.
_VALUES = 2**18
#: The last axis holds the channels if that makes the error this much smaller; the first one runs faster.
_CLEARLY = 0.9


class Mode(NamedTuple):
    """Bits per value, and whether every channel has a range of its own or all share one."""

    bits: int
    per_channel: bool


#: How floats travel, by the mode's name. With few bits, channels differ too much to share a range.
MODES: Mapping[str, Mode] = {
    "uint8": Mode(8, per_channel=False),
    "uint8c": Mode(8, per_channel=True),
    "uint4": Mode(4, per_channel=True),
    "uint2": Mode(2, per_channel=True),
}


@dataclass(frozen=True, eq=False)
class Quantiser:
    """Linear quantisation: q = clip(round(x / scale) + zero, 0, 2^bits − 1), and back x ≈ (q − zero)·scale.

    Attributes:
        bits: Per value.
        scale: (channels,), or (1,) if all share one.
        zero: The same shape, uint8: what 0 becomes, so that it stays exact.
        axis: Which axis of one sample holds the channels; None if all share one scale.
    """

    bits: int
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]
    axis: int | None = None

    @classmethod
    def of_range(cls, low: float, high: float, bits: int = 8) -> Quantiser:
        """The quantiser whose levels span a range, and zero; values beyond are clipped."""
        scale, zero = _levels(np.array([min(low, 0.0)]), np.array([max(high, 0.0)]), bits)
        return cls(bits, scale, zero)


def fit_quantiser(samples: NDArray[np.float32], mode: Mode) -> Quantiser:
    """The quantiser with the least mean squared error on samples.

    The range kept is a share of the range seen: clipping the few largest values makes the steps of all others
    finer, which pays the more the fewer bits there are (Banner et al. 2019, arXiv 1810.05723; they solve for
    the clipping value under an assumed distribution, here the shares are tried on the samples). Per channel, the
    first and the last axis of a sample are tried, since models keep their channels in either.

    Args:
        samples: Values that cross (N, …), finite.
        mode: How many bits, and whether per channel.
    """
    if not mode.per_channel or samples.ndim == 1:
        return _fitted(samples.reshape(1, -1), mode.bits, None)[0]
    first, *others = (
        _fitted(np.moveaxis(samples, axis + 1, 0).reshape(samples.shape[axis + 1], -1), mode.bits, axis)
        for axis in dict.fromkeys((0, samples.ndim - 2))
    )
    return next((last[0] for last in others if last[1] < _CLEARLY * first[1]), first[0])


def _fitted(values: NDArray[np.float32], bits: int, axis: int | None) -> tuple[Quantiser, float]:
    """The best quantiser of rows of values, one per channel, and its mean squared error."""
    low = np.minimum(values.min(axis=1), 0).astype(np.float64)
    high = np.maximum(values.max(axis=1), 0).astype(np.float64)
    few = min(values.shape[1], max(1, _VALUES // len(values)))
    columns = np.random.default_rng(0).permutation(values.shape[1])[:few]
    looked_at: NDArray[np.float32] = values[:, columns]
    scale, zero = _levels(low, high, bits)
    least = np.full(len(values), np.inf)
    for share in _SHARES:
        tried = _levels(share * low, share * high, bits)
        error = _squared_error(looked_at, *tried, bits)
        better = error < least
        scale[better], zero[better], least[better] = tried[0][better], tried[1][better], error[better]
    return Quantiser(bits, scale, zero, axis), float(least.mean())


def _levels(
    low: NDArray[np.float64], high: NDArray[np.float64], bits: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    top = 2**bits - 1
    scale = ((high - low) / top).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))  # a channel that is always 0
    return scale, np.clip(np.rint(-low / scale), 0, top).astype(np.uint8)


def _squared_error(
    values: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.uint8], bits: int
) -> NDArray[np.float32]:
    steps, middle = scale[:, None], zero[:, None].astype(np.float32)
    back = np.rint(values / steps)
    np.clip(back, -middle, 2**bits - 1 - middle, out=back)
    back *= steps
    back -= values
    error: NDArray[np.float32] = np.einsum("cn,cn->c", back, back) / values.shape[1]
    return error
