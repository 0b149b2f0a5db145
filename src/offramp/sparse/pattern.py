"""Patterns: which neurons a predefined-sparse junction joins, fixed before training.

`BlockPattern` keeps every degree exact and still runs on dense batched kernels: both sides are cut into G
blocks, each right block joins K left blocks and each left block K right blocks, so d_in = K·N_left/G and
d_out = K·N_right/G (docs/decisions/0002).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError, DensityError
from offramp.sparse.density import BlockDensity, Junction

__all__ = ["BlockPattern", "Layout", "make_pattern", "pattern_from_recipe"]

Layout = Literal["contiguous", "strided"]


@dataclass(frozen=True)
class BlockPattern(Junction):
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
        ConfigError: An unknown layout.
    """

    layout: Layout = "contiguous"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.n_left % self.blocks or self.n_right % self.blocks:
            raise DensityError(
                f"{self.blocks} blocks do not divide both {self.n_left} and {self.n_right} neurons evenly"
            )
        if not 1 <= self.joined <= self.blocks:
            raise DensityError(f"a right block joins 1 to {self.blocks} left blocks, not {self.joined}")
        if self.layout not in get_args(Layout):
            raise ConfigError(f"layout must be one of {', '.join(get_args(Layout))}, not {self.layout!r}")

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

    def mask(self) -> NDArray[np.bool_]:
        """The pattern as a dense matrix, for checks and pictures; shape (n_right, n_left)."""
        mask = np.zeros((self.n_right, self.n_left), dtype=np.bool_)
        left, right = self.neurons("left"), self.neurons("right")
        for block, joined in enumerate(self.left_blocks):
            mask[np.ix_(right[block], left[joined].ravel())] = True
        return mask

    def recipe(self) -> dict[str, Any]:
        """What rebuilds this pattern, as JSON values."""
        return {
            "pattern": "block",
            "n_left": self.n_left,
            "n_right": self.n_right,
            "joined": self.joined,
            "blocks": self.blocks,
            "layout": self.layout,
            "seed": self.seed,
        }

    @property
    def digest(self) -> str:
        """sha256 over the recipe and the joins that it leads to (so that a changed draw shows)."""
        head = json.dumps({**self.recipe(), "seed": None}, sort_keys=True).encode()
        return hashlib.sha256(head + self.left_blocks.astype("<i8").tobytes()).hexdigest()


def make_pattern(
    density: BlockDensity, *, pattern: str = "block", layout: Layout = "contiguous", seed: int = 0
) -> BlockPattern:
    """The pattern of this name at a density.

    Raises:
        ConfigError: An unknown pattern name.
    """
    if pattern != "block":
        raise ConfigError(f"unknown pattern {pattern!r}; known: block")
    return BlockPattern(density.n_left, density.n_right, density.joined, density.blocks, layout, seed)


def pattern_from_recipe(recipe: dict[str, Any]) -> BlockPattern:
    """Rebuilds a pattern from `BlockPattern.recipe()`.

    Raises:
        ConfigError: A recipe of an unknown kind, or with missing or unknown entries.
    """
    rest = dict(recipe)
    kind = rest.pop("pattern", None)
    if kind != "block":
        raise ConfigError(f"unknown pattern {kind!r}; known: block")
    try:
        return BlockPattern(**rest)
    except TypeError as error:
        raise ConfigError(f"not a block pattern's recipe: {error}") from error
