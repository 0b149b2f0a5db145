"""Patterns by name, and from their recipes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal, get_args

from offramp.errors import ConfigError
from offramp.sparse.block import BlockPattern, Layout
from offramp.sparse.clash_free import ClashFreePattern
from offramp.sparse.density import nearest_density
from offramp.sparse.pattern import Pattern
from offramp.sparse.structured import StructuredPattern

__all__ = ["PatternName", "make_pattern", "pattern_from_recipe"]

PatternName = Literal["block", "structured", "clash_free"]

_KINDS: dict[str, type[Pattern]] = {
    kind.name: kind for kind in (BlockPattern, StructuredPattern, ClashFreePattern)
}


def make_pattern(
    pattern: str,
    n_left: int,
    n_right: int,
    density: float | Fraction,
    *,
    blocks: int | None = None,
    max_blocks: int = 16,
    layout: Layout = "contiguous",
    seed: int = 0,
) -> Pattern:
    """The pattern of this name whose density is nearest to the one asked for.

    A `block` pattern meets a `Fraction` with a denominator that divides both sides exactly, and everything
    else by the nearest K/G with G ≤ `max_blocks`. The others take the nearest k/gcd. `clash_free` is of kind 1
    with as many memories as divide both d_in and n_left; for anything else make a `ClashFreePattern`.

    Args:
        pattern: "block", "structured" or "clash_free".
        n_left: Number of left neurons.
        n_right: Number of right neurons.
        density: The kept fraction ρ, 0 < ρ ≤ 1.
        blocks: For "block": take exactly this many.
        max_blocks: For "block" without `blocks`: the most blocks allowed, unless a `Fraction` needs more.
        layout: For "block": which neurons form a block.
        seed: The draw's seed.

    Raises:
        DensityError: A density that these neurons do not admit.
        ConfigError: An unknown pattern name, or `blocks` for a pattern without blocks.
    """
    if pattern not in get_args(PatternName):
        raise ConfigError(f"unknown pattern {pattern!r}; known: {', '.join(get_args(PatternName))}")
    if pattern == "block":
        exactly = isinstance(density, Fraction) and math.gcd(n_left, n_right) % density.denominator == 0
        most = None if exactly else max_blocks
        met = nearest_density(n_left, n_right, density, blocks=blocks, max_blocks=most)
        return BlockPattern(n_left, n_right, met.joined, met.blocks, layout, seed)
    if blocks is not None:
        raise ConfigError(f"blocks={blocks} is for block patterns; a {pattern} pattern has none")
    met = nearest_density(n_left, n_right, density, max_blocks=None)
    if pattern == "structured":
        return StructuredPattern(n_left, n_right, met.d_out, seed)
    return ClashFreePattern(n_left, n_right, met.d_out, math.gcd(met.d_in, n_left), seed=seed)


def pattern_from_recipe(recipe: dict[str, Any]) -> Pattern:
    """Rebuilds a pattern from `Pattern.recipe()`.

    Raises:
        ConfigError: A recipe of an unknown kind, or with missing, unknown or impossible entries.
    """
    if not isinstance(recipe, dict):
        raise ConfigError(f"a pattern's recipe is a dict, not {recipe!r}")
    rest = dict(recipe)
    name = rest.pop("pattern", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(f"unknown pattern {name!r}; known: {', '.join(_KINDS)}")
    try:
        return kind(**rest)
    except TypeError as error:
        raise ConfigError(f"not a {kind.name} pattern's recipe: {error}") from error
