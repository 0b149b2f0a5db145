"""Exact density algebra: which densities a layer admits, and what a density means in degrees and blocks.

A junction joins N_left neurons to N_right neurons. Every left neuron has the out-degree d_out, every right
neuron the in-degree d_in, so |W| = N_left·d_out = N_right·d_in, and the admissible densities are k/g with
g = gcd(N_left, N_right) and k = 1..g (Capogrosso et al. 2024, arXiv 2407.11763).
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field
from fractions import Fraction

from offramp.errors import DensityError

__all__ = ["BlockDensity", "Junction", "admissible_densities", "density_from_d_out", "nearest_density"]

#: A density that is met by another one further away than this share of itself is refused.
TOLERANCE = 0.25


class Junction:
    """Left neurons joined to right ones, each side with one degree.

    Attributes:
        n_left: Number of left neurons (inputs).
        n_right: Number of right neurons (outputs).
        d_out: Connections per left neuron.
    """

    n_left: int
    n_right: int
    d_out: int

    @property
    def density(self) -> Fraction:
        """The kept fraction ρ, in lowest terms."""
        return Fraction(self.d_out, self.n_right)

    @property
    def d_in(self) -> int:
        """Connections per right neuron."""
        return self.n_left * self.d_out // self.n_right

    @property
    def weights(self) -> int:
        """The number of connections, |W|."""
        return self.n_left * self.d_out


@dataclass(frozen=True)
class BlockDensity(Junction):
    """A density that a junction meets exactly, and the one that was asked for.

    Attributes:
        n_left: Number of left neurons.
        n_right: Number of right neurons.
        joined: K, the left blocks that each right block joins.
        blocks: G, the blocks that either side is cut into.
        asked: The density that was asked for.
    """

    n_left: int
    n_right: int
    joined: int
    blocks: int
    asked: float
    d_out: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "d_out", self.joined * self.n_right // self.blocks)

    @property
    def exact(self) -> bool:
        """Whether the density met is the density asked for."""
        return math.isclose(float(self.density), self.asked, rel_tol=1e-9)


def admissible_densities(n_left: int, n_right: int, *, max_blocks: int | None = None) -> list[Fraction]:
    """The densities at which every degree is a whole number, ascending.

    Args:
        n_left: Number of left neurons.
        n_right: Number of right neurons.
        max_blocks: Keep only densities whose lowest terms K/G have G at most this.

    Raises:
        DensityError: A side without neurons.
    """
    g = _common_blocks(n_left, n_right)
    found = {Fraction(k, blocks) for blocks in divisors(g, max_blocks) for k in range(1, blocks + 1)}
    return sorted(found)


def nearest_density(
    n_left: int,
    n_right: int,
    density: float | Fraction,
    *,
    blocks: int | None = None,
    max_blocks: int | None = 16,
) -> BlockDensity:
    """The block density nearest to the one asked for; of two equally near ones, that with fewer blocks.

    Args:
        n_left: Number of left neurons.
        n_right: Number of right neurons.
        density: The kept fraction ρ, 0 < ρ ≤ 1.
        blocks: Take exactly this many blocks; it must divide gcd(n_left, n_right).
        max_blocks: Without `blocks`, the most blocks allowed, None for any number: fewer blocks are faster.

    Raises:
        DensityError: ρ outside (0, 1], `blocks` that does not divide, or nothing admissible within a quarter
            of ρ. The message lists what is possible.
    """
    asked = _checked(density)
    shape = f"{n_left}→{n_right}"
    g = _common_blocks(n_left, n_right)
    if blocks is not None:
        if not is_whole(blocks) or blocks < 1 or g % blocks:
            raise DensityError(
                f"blocks={blocks!r} does not divide gcd({n_left}, {n_right}) = {g}; "
                f"possible: {listed(divisors(g, None))}"
            )
        counts = [int(blocks)]
    else:
        if max_blocks is not None and (not is_whole(max_blocks) or max_blocks < 1):
            raise DensityError(f"max_blocks must be a whole number of at least 1, not {max_blocks!r}")
        counts = divisors(g, max_blocks)
    candidates = [(min(max(round(asked * n), 1), n), n) for n in counts]
    joined, count = min(candidates, key=lambda kg: (round(abs(kg[0] / kg[1] - asked), 12), kg[1]))
    found = BlockDensity(n_left, n_right, joined, count, asked)
    only_dense = counts == [1] and asked < 1
    if only_dense or abs(float(found.density) - asked) > TOLERANCE * asked:
        if blocks is not None:
            within = f" with {blocks} blocks"
        else:
            within = "" if max_blocks is None else f" with at most {max_blocks} blocks"
        possible = listed(sorted({Fraction(k, n) for n in counts for k in range(1, n + 1)}))
        why = "only 1 is possible" if only_dense else f"the nearest is {found.density}, more than a quarter off"
        raise DensityError(
            f"density {asked:g} cannot be met by a {shape} layer{within}: {why}. Possible: {possible}. "
            f"gcd({n_left}, {n_right}) = {g}"
        )
    return found


def density_from_d_out(n_left: int, n_right: int, d_out: int) -> BlockDensity:
    """The density of an out-degree, the way the papers give it; always met exactly.

    Args:
        n_left: Number of left neurons.
        n_right: Number of right neurons.
        d_out: Connections per left neuron, 1 ≤ d_out ≤ n_right.

    Raises:
        DensityError: d_out out of range, or N_left·d_out not a multiple of N_right.
    """
    g = _common_blocks(n_left, n_right)
    step = n_right // g
    if not is_whole(d_out) or not 1 <= d_out <= n_right or d_out % step:
        raise DensityError(
            f"d_out={d_out!r} is not possible for a {n_left}→{n_right} layer: {n_left}·d_out must be a "
            f"multiple of {n_right}. Possible: {listed(range(step, n_right + 1, step))}"
        )
    ratio = Fraction(int(d_out), n_right)
    return BlockDensity(n_left, n_right, ratio.numerator, ratio.denominator, float(ratio))


def _common_blocks(n_left: int, n_right: int) -> int:
    if n_left < 1 or n_right < 1:
        raise DensityError(f"a layer needs neurons on both sides, not {n_left}→{n_right}")
    return math.gcd(n_left, n_right)


def is_whole(value: object) -> bool:
    """Whether this is a whole number, NumPy's included."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _checked(density: float | Fraction) -> float:
    try:
        value = float(density)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 < value <= 1.0:
        raise DensityError(f"density must be a number above 0 and at most 1 (the kept fraction), not {density!r}")
    return value


def divisors(n: int, most: int | None = None) -> list[int]:
    """What divides n evenly, ascending; up to `most` if given."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    found = [*small, *(n // d for d in reversed(small) if d * d != n)]
    return found if most is None else [d for d in found if d <= most]


def listed(values: list[Fraction] | list[int] | range) -> str:
    """Values for a message; of many, both ends tell the range."""
    if len(values) > 16:
        return ", ".join([*map(str, values[:10]), "…", *map(str, values[-3:])])
    return ", ".join(map(str, values))
