"""`ClashFreePattern`: exact degrees that hardware with several memories reads without a clash."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError, DensityError
from offramp.sparse.density import density_from_d_out, divisors, listed
from offramp.sparse.pattern import Pattern

__all__ = ["ClashFreePattern"]

#: Orders of the memories tried for a sweep before giving up, where connections may repeat.
TRIES = 10_000


@dataclass(frozen=True)
class ClashFreePattern(Pattern):
    """The clash-free patterns of Dey et al. (arXiv 1812.01164), for hardware with z memories per junction.

    The left neurons lie in z memories of depth D = n_left/z: neuron t·z + v at address t of memory v. Every
    cycle reads one neuron from each memory, so no two reads clash; D cycles are a sweep, which reads every
    left neuron once, and there are d_out sweeps. Right neurons take the reads in order, d_in each.

    Attributes:
        n_left: Number of left neurons (inputs).
        n_right: Number of right neurons (outputs).
        d_out: Connections per left neuron.
        z: Number of memories; divides n_left.
        kind: The paper's type. 1: each memory and sweep has a random order of addresses. 2: a random start,
            then one address after another. 3: like 2, the same in every sweep.
        dither: Whether the memories are read in a random order, drawn per sweep (once for kind 3).
        seed: The draw's seed.

    Raises:
        DensityError: A d_out that gives no whole d_in, a z that does not divide n_left, or degrees for which
            no draw was found without a repeated connection.
        ConfigError: A kind other than 1, 2, 3, or a field that is not of its type.
    """

    name: ClassVar[str] = "clash_free"

    n_left: int
    n_right: int
    d_out: int
    z: int
    kind: int = 1
    dither: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        density_from_d_out(self.n_left, self.n_right, self.d_out)
        if self.z < 1 or self.n_left % self.z:
            raise DensityError(
                f"z={self.z} memories do not divide {self.n_left} left neurons; "
                f"possible: {listed(divisors(self.n_left))}"
            )
        if self.kind not in (1, 2, 3):
            raise ConfigError(f"a clash-free pattern is of kind 1, 2 or 3, not {self.kind!r}")

    @property
    def depth(self) -> int:
        """D, the neurons in each memory, which is the number of cycles in a sweep."""
        return self.n_left // self.z

    @cached_property
    def reads(self) -> NDArray[np.int64]:
        """The left neurons in the order in which they are read; (d_out, depth, z)."""
        rng = np.random.RandomState(self.seed % 2**32)  # its stream is frozen (NumPy's NEP 19)
        sweeps: list[NDArray[np.int64]] = []
        while len(sweeps) < self.d_out:
            if sweeps and self.kind == 3:
                sweeps.append(sweeps[0])
                continue
            taken = self._taken(sweeps)
            for _ in range(TRIES):
                sweep = self._sweep(rng, taken)
                if sweep is not None:
                    break
            else:
                raise DensityError(
                    f"no clash-free pattern of kind {self.kind} found for {self.n_left}→{self.n_right} neurons "
                    f"with d_out={self.d_out}: d_in={self.d_in} does not divide {self.n_left}, so a right neuron "
                    "spans two sweeps and connections repeat. Take kind 3, or a d_out whose d_in divides"
                )
            sweeps.append(sweep)
        return np.stack(sweeps)

    @cached_property
    def left_of(self) -> NDArray[np.int64]:
        """The left neurons that each right neuron joins, ascending; (n_right, d_in)."""
        return np.sort(self.reads.reshape(self.n_right, self.d_in), axis=1)

    @property
    def choices(self) -> int | None:
        """How many patterns of this kind there are; None where the paper gives no count.

        (k·(D!)^z)^d_out for kind 1, (k·D^z)^d_out for kind 2, k·D^z for kind 3, with k = 1 without dither or
        when z divides d_in, and k = z!/(d_in!)^(z/d_in) when d_in divides z.
        """
        if not self.dither or self.d_in % self.z == 0:
            k = 1
        elif self.z % self.d_in == 0:
            k = math.factorial(self.z) // math.factorial(self.d_in) ** (self.z // self.d_in)
        else:
            return None
        if self.kind == 1:
            return int((k * math.factorial(self.depth) ** self.z) ** self.d_out)
        per_sweep = k * self.depth**self.z
        return int(per_sweep if self.kind == 3 else per_sweep**self.d_out)

    def _taken(self, sweeps: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        """What the right neuron that spans two sweeps has already joined."""
        behind = len(sweeps) * self.n_left % self.d_in
        return sweeps[-1].ravel()[-behind:] if behind else np.empty(0, np.int64)

    def _sweep(self, rng: np.random.RandomState, taken: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """One sweep's reads, (depth, z), whose first ones are none of those taken.

        None if these memories in this order cannot do it. What is left to choose is drawn evenly: to draw all
        of it, and again where a connection repeats, would take exponentially many draws.
        """
        z, depth = self.z, self.depth
        memories = rng.permutation(z) if self.dither else np.arange(z)
        # For the memory in each place: how many of its reads come first, and which addresses those leave out.
        first = self.d_in - len(taken) if len(taken) else 0
        heads = (first - np.arange(z) + z - 1) // z
        closed = np.zeros((depth, z), dtype=np.bool_)
        closed[taken // z, np.argsort(memories)[taken % z]] = True
        rows = np.arange(depth)[:, None]
        if self.kind == 1:
            if (closed.sum(axis=0) + heads > depth).any():
                return None
            open_first = np.argsort(rng.random_sample((depth, z)) + closed, axis=0, kind="stable")
            keys = np.where(rows < heads, rows - depth, rng.random_sample((depth, z)))
            addresses = np.take_along_axis(open_first, np.argsort(keys, axis=0, kind="stable"), axis=0)
        else:
            closed_before = np.cumsum(np.concatenate([np.zeros((1, z)), closed, closed]), axis=0)
            may_start = np.take_along_axis(closed_before, rows + heads, axis=0) == closed_before[:depth]
            choices = may_start.sum(axis=0)
            if not choices.all():
                return None
            nth = np.floor(rng.random_sample(z) * choices)
            starts = np.argmax(np.cumsum(may_start, axis=0) > nth, axis=0)
            addresses = (starts + rows) % depth
        reads: NDArray[np.int64] = addresses * z + memories
        return reads
