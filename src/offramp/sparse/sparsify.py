"""`sparsify_`: make a model predefined-sparse, in place, before it is trained."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import ConfigError, DensityError, LayerNameError
from offramp.evalmode import eval_mode
from offramp.sparse.block import BlockPattern, Layout
from offramp.sparse.budget import Share, block_densities, least_cost, share_budget
from offramp.sparse.config import SparsityConfig
from offramp.sparse.convolution import SparseConv1d, SparseConv2d
from offramp.sparse.density import admissible_densities, density_from_d_out
from offramp.sparse.layers import SparseLayer, SparseLinear
from offramp.sparse.registry import make_pattern
from offramp.sparse.report import LayerReport, SparsityReport

__all__ = ["sparsify_"]

#: Fewer neurons per block than this make the kernels slow (docs/decisions/0002).
NARROW = 16

#: Where a module keeps what its users want called.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)

_Dense = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class _Wish:
    """What a layer should become: a density, None for dense, and why it is dense."""

    density: float | Fraction | None
    why: str = ""


def sparsify_(
    model: nn.Module, config: SparsityConfig | None = None, *, example_input: Any = None
) -> SparsityReport:
    """Replaces linear and convolution layers by predefined-sparse ones with fresh weights, in place.

    The first convolution, depthwise layers, the final classifier and layers that share their weight with
    another module stay dense unless `overrides` or `d_out` names them. Nothing is replaced when anything is
    wrong.

    Args:
        model: Any module; its own code is not touched.
        config: Densities and exceptions; a density of 1/4 if left out.
        example_input: One batch: a tensor, a tuple of arguments, or a dict of keyword arguments. With it the
            report counts multiply-accumulates.

    Raises:
        DensityError: A layer does not admit its density, or a budget is below the minimum; the message names
            the layer and the way out.
        LayerNameError: An override matches no layer.
        ConfigError: The model is itself one layer, has none, or `max_macs` comes without an example input.
    """
    config = config or SparsityConfig()
    layers = _layers(model)
    if config.max_macs is not None and example_input is None:
        raise ConfigError("max_macs needs an example_input, from which multiply-accumulates are counted")
    places = {} if example_input is None else _output_places(model, layers, example_input)
    wishes = _wishes(model, layers, config)
    if model in layers.values() and wishes[""].density is not None:
        raise ConfigError(
            "the model is one layer, which cannot be replaced in place; use SparseLinear, SparseConv1d or "
            "SparseConv2d"
        )
    if config.max_weights is not None or config.max_macs is not None:
        wishes = _shared(layers, wishes, config, places)
    rows: list[LayerReport] = []
    replacements: dict[nn.Module, SparseLayer] = {}
    for name, layer in layers.items():
        replacement = _converted(name, layer, wishes[name].density, len(replacements), config)
        rows.append(_row(name, layer, replacement, wishes[name], config, places.get(name)))
        if replacement is not None:
            replacements[layer] = replacement
    _replace(model, replacements)
    return SparsityReport(tuple(rows))


def _replace(model: nn.Module, replacements: Mapping[nn.Module, SparseLayer]) -> None:
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):  # named_children leaves out a second mention
            if child is not None and child in replacements:
                setattr(parent, child_name, replacements[child])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    parent.activation_relu_or_gelu = 0  # its fused path would read dense weights
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, SparseLayer) for m in module.modules()):
            module.enable_nested_tensor = module.use_nested_tensor = False  # only the fused path takes them
    for layer, replacement in replacements.items():
        for hooks in _HOOKS:  # the tables themselves, so that handles still remove their hooks
            setattr(replacement, hooks, getattr(layer, hooks))


def _layers(model: nn.Module) -> dict[str, _Dense]:
    found: dict[str, _Dense] = {
        name: m
        for name, m in model.named_modules()
        # A subclass may do more than its replacement, and so may one whose weight is made anew at every call.
        if type(m) in (nn.Linear, nn.Conv1d, nn.Conv2d) and "weight" in m._parameters
    }
    if not found:
        raise ConfigError(f"{type(model).__name__} holds no linear or convolution layer to make sparse")
    return found


def _depthwise(layer: _Dense) -> bool:
    return not isinstance(layer, nn.Linear) and layer.groups == layer.in_channels > 1


def _wishes(model: nn.Module, layers: Mapping[str, _Dense], config: SparsityConfig) -> dict[str, _Wish]:
    if config.d_out is not None:
        return _by_degree(layers, config.d_out)
    convolutions = [name for name, m in layers.items() if not isinstance(m, nn.Linear)]
    users = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    wishes: dict[str, _Wish] = {}
    for name, m in layers.items():
        if config.keep_first and convolutions[:1] == [name]:
            wishes[name] = _Wish(None, "first convolution, kept dense")
        elif config.keep_last and name == list(layers)[-1]:
            wishes[name] = _Wish(None, "final classifier, kept dense")
        elif _depthwise(m):
            wishes[name] = _Wish(None, "depthwise, kept dense")
        elif users[id(m.weight)] > 1:
            wishes[name] = _Wish(None, "shares its weight with another module, kept dense")
        else:
            wishes[name] = _Wish(1 / 4 if config.density is None else config.density)
    for pattern, density in config.overrides.items():
        matched = fnmatch.filter(layers, pattern)
        if not matched:
            near = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3) or list(layers)[:3]
            raise LayerNameError(
                f"override {pattern!r} matches no linear or convolution layer; did you mean {', '.join(near)}?"
            )
        for name in matched:
            wishes[name] = _Wish(density, "kept dense as told" if density is None else "")
    return wishes


def _by_degree(layers: Mapping[str, _Dense], degrees: tuple[int | None, ...]) -> dict[str, _Wish]:
    """The paper's way: one out-degree per layer."""
    named = [name for name, m in layers.items() if not _depthwise(m)]
    if len(named) != len(degrees):
        raise ConfigError(
            f"d_out holds {len(degrees)} entries for {len(named)} layers; one each is needed (None keeps a layer "
            f"dense): {', '.join(named)}"
        )
    wishes = {name: _Wish(None, "depthwise, kept dense") for name in layers}
    for name, d_out in zip(named, degrees, strict=True):
        if d_out is None:
            wishes[name] = _Wish(None, "kept dense as told")
            continue
        try:
            wishes[name] = _Wish(density_from_d_out(*_sides(layers[name]), d_out).density)
        except DensityError as error:
            raise DensityError(f"layer {name!r}: {error}") from error
    return wishes


def _shared(
    layers: Mapping[str, _Dense], wishes: Mapping[str, _Wish], config: SparsityConfig, places: Mapping[str, int]
) -> dict[str, _Wish]:
    """The wishes with the budget's densities, for all layers that are neither exceptions nor overridden."""
    what, budget = ("weights", config.max_weights) if config.max_macs is None else ("MACs", config.max_macs)
    assert budget is not None
    told = {name for pattern in config.overrides for name in fnmatch.filter(layers, pattern)}
    free = [name for name, wish in wishes.items() if wish.density is not None and name not in told]
    fixed = 0
    costs = {name: m.weight.numel() * (places.get(name, 0) if what == "MACs" else 1) for name, m in layers.items()}
    for name in set(layers) - set(free):
        met = _pattern(name, layers[name], wishes[name].density, 0, config)
        fixed += costs[name] if met is None else int(costs[name] * met.density)
    if not free:
        raise ConfigError(f"no layer is left to share the budget of {budget:,} {what}; all are kept dense or told")
    for width in (NARROW, 8, 4, 2, 1):  # narrow blocks only where the budget cannot do without
        shares = [Share(name, costs[name], tuple(_possible(layers[name], config, width))) for name in free]
        if least_cost(shares) <= budget - fixed:
            break
    try:
        densities = share_budget(shares, budget - fixed)
    except DensityError as error:
        others = f"; {fixed:,} belong to layers that are kept dense or told" if fixed else ""
        more = ". More max_blocks allow lower densities" if config.pattern == "block" else ""
        raise DensityError(
            f"a budget of {budget:,} {what} leaves {budget - fixed:,} for {len(shares)} layers, and {error}"
            f"{others}{more}"
        ) from error
    return {**wishes, **{share.name: _Wish(d) for share, d in zip(shares, densities, strict=True)}}


def _possible(layer: _Dense, config: SparsityConfig, width: int) -> list[Fraction]:
    sides = _sides(layer)
    if config.pattern != "block":
        return admissible_densities(*sides)
    return block_densities(*sides, blocks=config.blocks, max_blocks=config.max_blocks, width=width)


def _sides(layer: _Dense) -> tuple[int, int]:
    """Left and right neurons that a pattern joins: features, or the channels of one group."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels // layer.groups, layer.out_channels // layer.groups


def _pattern(
    name: str, layer: _Dense, density: float | Fraction | None, index: int, config: SparsityConfig
) -> Any:
    """The layer's pattern; None to keep it dense."""
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


def _converted(
    name: str, layer: _Dense, density: float | Fraction | None, index: int, config: SparsityConfig
) -> SparseLayer | None:
    """The sparse layer in place of a dense one, with fresh weights; None to keep it dense."""
    pattern = _pattern(name, layer, density, index, config)
    if pattern is None:
        return None
    made: SparseLayer
    if isinstance(layer, nn.Linear):
        made = SparseLinear.from_dense(layer, pattern)
    elif isinstance(layer, nn.Conv1d):
        made = SparseConv1d.from_dense(layer, pattern)
    else:
        made = SparseConv2d.from_dense(layer, pattern)
    made.reset_parameters()
    return made


def _row(
    name: str,
    layer: _Dense,
    replacement: SparseLayer | None,
    wish: _Wish,
    config: SparsityConfig,
    places: int | None,
) -> LayerReport:
    dense = layer.weight.numel()
    kept = dense if replacement is None else replacement.weight.numel()
    notes = [wish.why] if wish.why else []
    blocks: int | None = 1
    layout, given = "-", 1.0
    if replacement is None and wish.density is not None:
        notes.append("density 1, kept dense")
    if replacement is not None:
        pattern = replacement.pattern
        given, blocks, layout = float(pattern.density), None, pattern.name
        if wish.density is not None and not math.isclose(wish.density, given, rel_tol=1e-9):
            notes.append(f"density {float(wish.density):g} asked, {pattern.density} given")
        if isinstance(pattern, BlockPattern):
            blocks, layout = pattern.blocks, pattern.layout
            if min(pattern.n_left, pattern.n_right) // pattern.blocks < NARROW:
                notes.append(f"narrow: under {NARROW} neurons per block run slowly")
    if isinstance(layer, nn.Linear):
        shape = f"{layer.in_features}→{layer.out_features}"
    else:
        shape = f"{layer.in_channels}→{layer.out_channels} {'x'.join(map(str, layer.kernel_size))}"
    return LayerReport(
        name=name,
        kind=type(replacement or layer).__name__,
        shape=shape,
        asked=None if wish.density is None else float(wish.density),
        given=given,
        blocks=blocks,
        layout=layout,
        weights_dense=dense,
        weights=kept,
        macs_dense=None if places is None else dense * places,
        macs=None if places is None else kept * places,
        note="; ".join(notes),
    )


def _output_places(model: nn.Module, layers: Mapping[str, _Dense], example_input: Any) -> dict[str, int]:
    """How often each layer's weights are used for one sample: its output places, 1 for a plain linear."""
    uses: dict[str, int] = dict.fromkeys(layers, 0)
    hooks = []
    for name, layer in layers.items():

        def hook(m: nn.Module, _: Any, out: Tensor, name: str = name) -> None:
            outputs = m.out_features if isinstance(m, nn.Linear) else m.out_channels
            uses[name] += out.numel() // int(outputs)  # type: ignore[arg-type]

        hooks.append(layer.register_forward_hook(hook))
    samples = _samples(example_input)
    try:
        with eval_mode(model), torch.no_grad():
            if isinstance(example_input, Mapping):
                model(**example_input)
            elif isinstance(example_input, tuple):
                model(*example_input)
            else:
                model(example_input)
    finally:
        for handle in hooks:
            handle.remove()
    return {name: -(-used // samples) for name, used in uses.items()}  # a table read once per batch counts too


def _samples(example_input: Any) -> int:
    """The samples in one batch: windows or tokens that a model folds into the batch belong to one of them."""
    values = example_input.values() if isinstance(example_input, Mapping) else example_input
    for value in values if not isinstance(values, Tensor) else (values,):
        if isinstance(value, Tensor) and value.dim() > 0:
            if len(value) == 0:
                raise ConfigError("example_input holds no sample; multiply-accumulates need at least one")
            return len(value)
    return 1
