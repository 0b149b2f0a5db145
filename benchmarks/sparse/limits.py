"""What one core can do at most: the physical limit beside which a layer's time is put."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import process_time

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["Limits"]


class Limits:
    """The speed of a large matrix product or convolution, and of reading arrays of any size.

    Args:
        side: Rows and columns of the matrix product; an eighth of it are the channels of the convolution.
    """

    def __init__(self, side: int) -> None:
        a, b = torch.randn(side, side), torch.randn(side, side)
        c, d = a.numpy(), b.numpy()
        products = (lambda: a @ b, lambda: c @ d)
        # Convolutions run on a library of their own, which on some processors is the fastest of the three.
        image, kernel = torch.randn(1, side // 8, 64, 64), torch.randn(side // 8, side // 8, 3, 3)
        convolved = 64 * 64 * kernel.numel() / _fastest_s(lambda: F.conv2d(image, kernel, padding=1))
        #: Multiply-accumulates per second: of whichever library suits this processor best.
        self.peak = max(convolved, *(side**3 / _fastest_s(product) for product in products))
        self._bandwidth: dict[int, float] = {}

    def bandwidth(self, size: int) -> float:
        """Bytes per second when `size` bytes are read over and over, from wherever they then lie."""
        size = max(size, 4096)
        if size not in self._bandwidth:
            x = np.ones(size // 4, np.float32)
            self._bandwidth[size] = size / min(_fastest_s(lambda: np.dot(x, x)), _fastest_s(x.sum))
        return self._bandwidth[size]

    def limit_ms(self, moved: int, macs: int, *, held: int | None = None) -> float:
        """The least milliseconds in which this can be done: the longer of moving and multiplying.

        Args:
            moved: Bytes read and written.
            macs: Multiply-accumulates.
            held: Bytes of all that is touched, whose size decides the bandwidth; `moved` if left out.
        """
        return 1e3 * max(moved / self.bandwidth(moved if held is None else held), macs / self.peak)

    def described(self, size: int) -> str:
        """Both limits in words, the bandwidth for arrays of `size` bytes."""
        return (
            f"one core; peak {self.peak / 1e9:.1f} GMAC/s, reading {size / 1e6:.3g} MB at "
            f"{self.bandwidth(size) / 1e9:.1f} GB/s; smaller arrays from the caches, each at its own speed"
        )


def _fastest_s(call: Callable[[], object], *, tries: int = 7, least_s: float = 0.005) -> float:
    """The fastest of some samples, in seconds per call: what the core can do when nothing disturbs it."""
    call()
    start = process_time()
    call()
    repetitions = max(1, math.ceil(least_s / max(process_time() - start, 1e-9)))
    found = math.inf
    for _ in range(tries):
        start = process_time()
        for _ in range(repetitions):
            call()
        found = min(found, (process_time() - start) / repetitions)
    return found
