"""Densities from a budget: how many weights, or multiply-accumulates, the layers share, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from offramp.errors import DensityError
from offramp.sparse.density import admissible_densities

__all__ = ["GROWTH", "Share", "block_densities", "least_cost", "share_budget"]

#: The last junction's density over the first one's, before rounding.
GROWTH = 2


@dataclass(frozen=True)
class Share:
    """One layer that shares a budget.

    Attributes:
        name: The layer's name, for messages.
        cost: What it costs at density 1, in the budget's unit.
        densities: The densities that it may take, ascending; their costs are whole numbers.
    """

    name: str
    cost: int
    densities: tuple[Fraction, ...]


def share_budget(layers: Sequence[Share], budget: int) -> list[Fraction]:
    """The layers' densities, in the order of the layers: later ones are denser, the sum never exceeds the budget.

    The rule: ρ_i = t·(1 + (GROWTH - 1)·i/(L - 1)), at most 1, each rounded down to what the layer may take, with
    the largest t that the budget allows. What rounding left is spent from the last layer to the first, each
    going up by one step if it can be paid and the layer does not become denser than the next. That later
    junctions need more density is a trend that Dey et al. report (arXiv 1812.01164); the paper's own degrees
    2, 9, 10 for 800-40-40-10 follow it.

    Args:
        layers: From the first to the last.
        budget: What they may cost together.

    Raises:
        DensityError: Less than the smallest densities cost.
    """
    least = least_cost(layers)
    if budget < least:
        raise DensityError(f"at least {least:,} are needed: {_listed(layers)}")
    steps = max(1, len(layers) - 1)
    growth = [1 + Fraction((GROWTH - 1) * i, steps) for i in range(len(layers))]

    def rounded(t: Fraction) -> list[Fraction]:
        return [
            max((d for d in layer.densities if d <= t * g), default=layer.densities[0])
            for layer, g in zip(layers, growth, strict=True)
        ]

    def cost(densities: Sequence[Fraction]) -> int:
        return sum(int(layer.cost * d) for layer, d in zip(layers, densities, strict=True))

    # The sum is a staircase in t that rises where some layer takes its next density.
    rises = sorted({d / g for layer, g in zip(layers, growth, strict=True) for d in layer.densities})
    low, high = -1, len(rises) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if cost(rounded(rises[middle])) <= budget:
            low = middle
        else:
            high = middle - 1
    found = rounded(rises[low] if low >= 0 else Fraction(0))
    for i in reversed(range(len(layers))):
        most = found[i + 1] if i + 1 < len(layers) else Fraction(1)
        step = next((d for d in layers[i].densities if d > found[i]), None)
        if step is not None and step <= most and cost([*found[:i], step, *found[i + 1 :]]) <= budget:
            found[i] = step
    return found


def least_cost(layers: Sequence[Share]) -> int:
    """What the layers cost at their smallest densities."""
    return sum(int(layer.cost * layer.densities[0]) for layer in layers)


def block_densities(
    n_left: int, n_right: int, *, blocks: int | None, max_blocks: int, width: int
) -> list[Fraction]:
    """The densities that a block pattern may take: with blocks of at least `width` neurons, if there are any.

    Args:
        n_left: Number of left neurons.
        n_right: Number of right neurons.
        blocks: Exactly this many blocks, if given.
        max_blocks: The most blocks otherwise.
        width: Neurons that a block should have on either side.
    """
    if blocks is not None:
        return [Fraction(k, blocks) for k in range(1, blocks + 1)]
    wide = min(max_blocks, max(1, min(n_left, n_right) // width))
    found = admissible_densities(n_left, n_right, max_blocks=wide)
    return found if len(found) > 1 else admissible_densities(n_left, n_right, max_blocks=max_blocks)


def _listed(layers: Sequence[Share]) -> str:
    shown = [f"{layer.name!r} at {layer.densities[0]}" for layer in layers]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:4], "…", shown[-1]])
