"""`BlockPattern`: exact degrees on dense batched kernels.

Both sides are cut into G blocks, each right block joins K left blocks and each left block K right blocks, so
d_in = K·N_left/G and d_out = K·N_right/G (docs/decisions/0002).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError, DensityError
from offramp.sparse.pattern import Pattern

__all__ = ["BlockPattern", "Layout"]

Layout = Literal["contiguous", "strided"]


@dataclass(frozen=True)
class BlockPattern(Pattern):
    """A K-regular bipartite graph on `blocks` left and `blocks` right blocks of neurons.

    Attributes:
        n_left: Number of left neurons (inputs).
        n_right: Number of right neurons (outputs).
        joined: K, the left blocks that each right block joins.
        blocks: G, the blocks on either side; divides gcd(n_left, n_right).
        layout: "contiguous" puts neighbours into a block, "strided" puts every `blocks`-th neuron into one.
            With K = 1 the pattern is block-diagonal, so neighbouring layers alternate layouts to mix.
        seed: Chooses among the patterns where there is a choice (K > 1).

    Raises:
        DensityError: Numbers that do not divide.
        ConfigError: An unknown layout, or a field that is not of its type.
    """

    name: ClassVar[str] = "block"

    n_left: int
    n_right: int
    joined: int
    blocks: int
    layout: Layout = "contiguous"
    seed: int = 0
    d_out: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1 or self.n_left % self.blocks or self.n_right % self.blocks:
            raise DensityError(
                f"{self.blocks} blocks do not divide both {self.n_left} and {self.n_right} neurons evenly"
            )
        if not 1 <= self.joined <= self.blocks:
            raise DensityError(f"a right block joins 1 to {self.blocks} left blocks, not {self.joined}")
        if self.layout not in get_args(Layout):
            raise ConfigError(f"layout must be one of {', '.join(get_args(Layout))}, not {self.layout!r}")
        object.__setattr__(self, "d_out", self.joined * self.n_right // self.blocks)

    @cached_property
    def left_blocks(self) -> NDArray[np.int64]:
        """The left blocks that each right block joins, ascending; shape (blocks, joined)."""
        g, k = self.blocks, self.joined
        right = np.arange(g)
        if k in (1, g):  # one choice up to renaming: block-diagonal, and everything
            return (right[:, None] + np.arange(k)[None, :]) % g if k == 1 else np.tile(np.arange(g), (g, 1))
        # A circulant under random names. RandomState's stream is frozen (NumPy's NEP 19): a seed means the
        # same pattern in every version.
        rng = np.random.RandomState(self.seed % 2**32)
        names, places, shifts = rng.permutation(g), rng.permutation(g), rng.permutation(g)[:k]
        return np.sort(names[(places[:, None] + shifts[None, :]) % g], axis=1)

    def neurons(self, side: Literal["left", "right"]) -> NDArray[np.int64]:
        """The neurons of each block; shape (blocks, neurons per block)."""
        n = self.n_left if side == "left" else self.n_right
        if self.layout == "contiguous":
            return np.arange(n).reshape(self.blocks, -1)
        return np.arange(n).reshape(-1, self.blocks).T

    @cached_property
    def left_of(self) -> NDArray[np.int64]:
        """The left neurons that each right neuron joins, (n_right, d_in); rows as in `right_order`."""
        of_block = self.neurons("left")[self.left_blocks].reshape(self.blocks, self.d_in)
        return np.repeat(of_block, self.n_right // self.blocks, axis=0)

    @property
    def right_order(self) -> NDArray[np.int64]:
        """The right neurons block by block."""
        return self.neurons("right").ravel()

    @property
    def drawn(self) -> NDArray[np.int64]:
        """The joined blocks."""
        return self.left_blocks
