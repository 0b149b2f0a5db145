"""How dense each layer should become: by one density, by degrees, or by a share of a budget."""

from __future__ import annotations

import difflib
import fnmatch
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from torch import Tensor, nn

from offramp.errors import ConfigError, DensityError, LayerNameError
from offramp.sparse.block import Layout
from offramp.sparse.budget import Share, block_densities, least_cost, share_budget
from offramp.sparse.config import SparsityConfig
from offramp.sparse.density import admissible_densities, density_from_d_out
from offramp.sparse.pattern import Pattern
from offramp.sparse.registry import make_pattern

__all__ = ["Dense", "Wish", "pattern_for", "weights_of", "wishes_for"]

#: Blocks as wide as this run best; a budget takes narrower ones only where it cannot do without.
WIDE = 16

#: A layer that can be replaced.
Dense: TypeAlias = "nn.Linear | nn.Conv1d | nn.Conv2d"


@dataclass(frozen=True)
class Wish:
    """What a layer should become: a density, None for dense, and why it is dense."""

    density: float | Fraction | None
    why: str = ""


def wishes_for(
    model: nn.Module,
    layers: Mapping[str, Dense],
    fixed: Mapping[str, nn.Module],
    config: SparsityConfig,
    uses: Mapping[str, int],
) -> dict[str, Wish]:
    """What every layer should become.

    Args:
        model: The model.
        layers: Its layers that can be replaced, by name, in the model's order.
        fixed: Its linear, convolution and attention layers that cannot.
        config: What `sparsify_` was told.
        uses: How often each layer's weights are used for one sample; needed for `max_macs`.

    Raises:
        DensityError: A degree that a layer does not admit, or a budget below the minimum.
        LayerNameError: An override matches no layer that can be replaced.
        ConfigError: `d_out` of another length, or a budget that no layer is left to share.
    """
    if config.d_out is not None:
        return _by_degree(layers, config.d_out)
    wishes = _by_density(model, layers, fixed, config)
    if config.max_weights is None and config.max_macs is None:
        return wishes
    return _shared(layers, fixed, wishes, config, uses)


def _by_density(
    model: nn.Module, layers: Mapping[str, Dense], fixed: Mapping[str, nn.Module], config: SparsityConfig
) -> dict[str, Wish]:
    every = {name: m for name, m in model.named_modules() if name in layers or name in fixed}
    convolutions = [name for name, m in every.items() if isinstance(m, (nn.Conv1d, nn.Conv2d))]
    users = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    wishes: dict[str, Wish] = {}
    for name, m in layers.items():
        if config.keep_first and convolutions[:1] == [name]:
            wishes[name] = Wish(None, "first convolution, kept dense")
        elif config.keep_last and name == list(every)[-1]:
            wishes[name] = Wish(None, "final classifier, kept dense")
        elif _depthwise(m):
            wishes[name] = Wish(None, "depthwise, kept dense")
        elif users[id(m.weight)] > 1:
            wishes[name] = Wish(None, "shares its weight with another module, kept dense")
        else:
            wishes[name] = Wish(1 / 4 if config.density is None else config.density)
    for pattern, density in config.overrides.items():
        matched = fnmatch.filter(layers, pattern)
        held = fnmatch.filter(fixed, pattern)
        if not matched and held:
            raise LayerNameError(
                f"override {pattern!r} matches {held[0]!r}, a {type(fixed[held[0]]).__name__}, which may do more "
                "than a sparse layer in its place; only plain Linear, Conv1d and Conv2d layers are replaced"
            )
        if not matched:
            near = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3) or list(layers)[:3]
            raise LayerNameError(
                f"override {pattern!r} matches no linear or convolution layer; did you mean {', '.join(near)}?"
            )
        for name in matched:
            wishes[name] = Wish(density, "kept dense as told" if density is None else "")
    return wishes


def _by_degree(layers: Mapping[str, Dense], degrees: tuple[int | None, ...]) -> dict[str, Wish]:
    """The paper's way: one out-degree per layer."""
    named = [name for name, m in layers.items() if not _depthwise(m)]
    if len(named) != len(degrees):
        raise ConfigError(
            f"d_out holds {len(degrees)} entries for {len(named)} layers; one each is needed (None keeps a layer "
            f"dense): {', '.join(named)}"
        )
    wishes = {name: Wish(None, "depthwise, kept dense") for name in layers}
    for name, d_out in zip(named, degrees, strict=True):
        if d_out is None:
            wishes[name] = Wish(None, "kept dense as told")
            continue
        try:
            wishes[name] = Wish(density_from_d_out(*_sides(layers[name]), d_out).density)
        except DensityError as error:
            raise DensityError(f"layer {name!r}: {error}") from error
    return wishes


def _shared(
    layers: Mapping[str, Dense],
    fixed: Mapping[str, nn.Module],
    wishes: Mapping[str, Wish],
    config: SparsityConfig,
    uses: Mapping[str, int],
) -> dict[str, Wish]:
    """The wishes with the budget's densities, for all layers that are neither exceptions nor overridden."""
    what, budget = ("weights", config.max_weights) if config.max_macs is None else ("MACs", config.max_macs)
    assert budget is not None
    told = {name for pattern in config.overrides for name in fnmatch.filter(layers, pattern)}
    free = [name for name, wish in wishes.items() if wish.density is not None and name not in told]

    def cost(name: str, layer: nn.Module) -> int:
        return weights_of(layer) * (uses.get(name, 0) if what == "MACs" else 1)

    costs = {name: cost(name, layer) for name, layer in layers.items()}
    spent = sum(cost(name, layer) for name, layer in fixed.items())
    for name in set(layers) - set(free):
        met = pattern_for(name, layers[name], wishes[name].density, 0, config)
        spent += costs[name] if met is None else int(costs[name] * met.density)
    if not free:
        raise ConfigError(f"no layer is left to share the budget of {budget:,} {what}; all are kept dense or told")
    for width in (WIDE, 8, 4, 2, 1):  # narrow blocks only where the budget cannot do without
        shares = [Share(name, costs[name], tuple(_possible(layers[name], config, width))) for name in free]
        if least_cost(shares) <= budget - spent:
            break
    try:
        densities = share_budget(shares, budget - spent)
    except DensityError as error:
        others = f"; {spent:,} belong to layers that are kept dense or told" if spent else ""
        more = ". More max_blocks allow lower densities" if config.pattern == "block" else ""
        raise DensityError(
            f"a budget of {budget:,} {what} leaves {budget - spent:,} for {len(shares)} layers, and {error}"
            f"{others}{more}"
        ) from error
    return {**wishes, **{share.name: Wish(d) for share, d in zip(shares, densities, strict=True)}}


def _possible(layer: Dense, config: SparsityConfig, width: int) -> list[Fraction]:
    sides = _sides(layer)
    if config.pattern != "block":
        return admissible_densities(*sides)
    return block_densities(*sides, blocks=config.blocks, max_blocks=config.max_blocks, width=width)


def _sides(layer: Dense) -> tuple[int, int]:
    """Left and right neurons that a pattern joins: features, or the channels of one group."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels // layer.groups, layer.out_channels // layer.groups


def pattern_for(
    name: str, layer: Dense, density: float | Fraction | None, index: int, config: SparsityConfig
) -> Pattern | None:
    """A layer's pattern; None to keep it dense.

    Args:
        name: The layer's name, for messages.
        layer: The dense layer.
        density: The density that it should have; None for dense.
        index: How many layers became sparse before it: chooses the layout and the seed.
        config: What `sparsify_` was told.

    Raises:
        DensityError: The layer does not admit the density; the message says what is possible.
    """
    if density is None:
        return None
    alternated: Layout = "strided" if index % 2 else "contiguous"
    try:
        pattern = make_pattern(
            config.pattern,
            *_sides(layer),
            density,
            blocks=config.blocks,
            max_blocks=config.max_blocks,
            layout=alternated if config.layout == "alternate" else config.layout,
            seed=config.seed + index,
        )
    except DensityError as error:
        if config.d_out is not None:
            way = f"Leave out blocks={config.blocks}, or change the layer's entry in SparsityConfig(d_out=…)"
        else:
            way = (
                "Give it another density, or keep it dense with None, in "
                f"SparsityConfig(overrides={{{name!r}: …}})"
            )
        raise DensityError(f"layer {name!r}: {error}. {way}") from error
    return None if pattern.density == 1 else pattern


def _depthwise(layer: Dense) -> bool:
    return not isinstance(layer, nn.Linear) and layer.groups == layer.in_channels > 1


def weights_of(layer: nn.Module) -> int:
    """The values in a layer's weight matrices, biases not counted."""
    if isinstance(layer, nn.MultiheadAttention):  # its output projection is no row of its own in the report
        parts = (layer.in_proj_weight, layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        return sum(p.numel() for p in (*parts, layer.out_proj.weight) if p is not None)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.numel()
