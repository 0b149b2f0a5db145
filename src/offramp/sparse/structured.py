"""`StructuredPattern`: exact degrees on both sides, joined at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.sparse.density import density_from_d_out
from offramp.sparse.pattern import Pattern

__all__ = ["StructuredPattern"]


@dataclass(frozen=True)
class StructuredPattern(Pattern):
    """The published sequential draw of Dey et al. (arXiv 1812.01164), which calls it structured.

    Right neurons draw one after another: each takes d_in left neurons, all different, evenly among those that
    still have places. A left neuron with as many free places as there are right neurons left must be taken;
    so the draw always ends with every degree exact. For research: a layer that uses it stores |W| values but
    computes as a dense one.

    Attributes:
        n_left: Number of left neurons (inputs).
        n_right: Number of right neurons (outputs).
        d_out: Connections per left neuron.
        seed: The draw's seed.

    Raises:
        DensityError: A d_out that gives no whole d_in.
        ConfigError: A field that is not of its type.
    """

    name: ClassVar[str] = "structured"

    n_left: int
    n_right: int
    d_out: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        density_from_d_out(self.n_left, self.n_right, self.d_out)

    @cached_property
    def left_of(self) -> NDArray[np.int64]:
        """The left neurons that each right neuron joins, ascending; (n_right, d_in)."""
        rng = np.random.RandomState(self.seed % 2**32)  # its stream is frozen (NumPy's NEP 19)
        free = np.full(self.n_left, self.d_out)
        joins = np.empty((self.n_right, self.d_in), np.int64)
        for right in range(self.n_right):
            due = self.n_right - right
            forced = np.flatnonzero(free == due)
            open_ = np.flatnonzero((free > 0) & (free < due))
            chosen = np.concatenate([forced, rng.permutation(open_)[: self.d_in - len(forced)]])
            joins[right] = np.sort(chosen)
            free[chosen] -= 1
        return joins
