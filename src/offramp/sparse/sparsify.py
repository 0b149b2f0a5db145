"""`sparsify_`: make a model predefined-sparse, in place, before it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from offramp.errors import ConfigError
from offramp.sparse.allocation import Dense, Wish, pattern_for, weights_of, wishes_for
from offramp.sparse.block import BlockPattern
from offramp.sparse.config import SparsityConfig
from offramp.sparse.convolution import SparseConv1d, SparseConv2d
from offramp.sparse.layers import SparseLayer, SparseLinear
from offramp.sparse.report import LayerReport, SparsityReport
from offramp.sparse.uses import uses_of

__all__ = ["sparsify_"]

#: Where block layers were slower than dense ones: fewer neurons per block, narrower linear layers, convolutions
#: of fewer channels than these. Printed by `python -m benchmarks.sparse.crossover`.
NARROW, SMALL_LINEAR, SMALL_CONVOLUTION = 8, 256, 32


def sparsify_(
    model: nn.Module, config: SparsityConfig | None = None, *, example_input: Any = None
) -> SparsityReport:
    """Replaces linear and convolution layers by predefined-sparse ones with fresh weights, in place.

    The first convolution, depthwise layers, the final classifier and layers that share their weight with
    another module stay dense unless `overrides` or `d_out` names them. Subclasses of torch's layers and the
    projections of `nn.MultiheadAttention` always do. Nothing is replaced when anything is wrong.

    Args:
        model: Any module; its own code is not touched.
        config: Densities and exceptions; a density of 1/4 if left out.
        example_input: One batch, samples first: a tensor, a tuple of arguments, or a dict of keyword arguments.
            With it the report counts multiply-accumulates.

    Raises:
        DensityError: A layer does not admit its density, or a budget is below the minimum; the message names
            the layer and the way out.
        LayerNameError: An override matches no layer.
        ConfigError: The model is itself one layer, has none, or `max_macs` comes without an example input.
    """
    config = config or SparsityConfig()
    layers, fixed = _layers(model)
    if config.max_macs is not None and example_input is None:
        raise ConfigError("max_macs needs an example_input, from which multiply-accumulates are counted")
    uses = {} if example_input is None else uses_of(model, {**layers, **fixed}, example_input)
    wishes = wishes_for(model, layers, fixed, config, uses)
    if "" in layers and wishes[""].density is not None:
        raise ConfigError(
            "the model is one layer, which cannot be replaced in place; use SparseLinear, SparseConv1d or "
            "SparseConv2d"
        )
    rows: list[LayerReport] = []
    replacements: dict[nn.Module, SparseLayer] = {}
    for name, m in model.named_modules():
        if name in fixed:
            rows.append(_fixed_row(name, m, uses.get(name)))
        elif name in layers:
            layer = layers[name]
            replacement = _converted(name, layer, wishes[name].density, len(replacements), config)
            rows.append(_row(name, layer, replacement, wishes[name], uses.get(name)))
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
        for name, table in vars(layer).items():  # the tables themselves, so that handles still remove their hooks
            if name.startswith("_") and "ward_" in name and "hook" in name:
                setattr(replacement, name, table)


def _layers(model: nn.Module) -> tuple[dict[str, Dense], dict[str, nn.Module]]:
    """The layers that can be replaced, and the other ones that hold weight matrices, by name."""
    replaceable: dict[str, Dense] = {}
    fixed: dict[str, nn.Module] = {}
    # Attention reads its output projection's weight itself.
    inside = {m.out_proj for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    for name, m in model.named_modules():
        # A subclass may do more than its replacement, and so may one whose weight is made anew at every call.
        if type(m) in (nn.Linear, nn.Conv1d, nn.Conv2d) and "weight" in m._parameters:
            replaceable[name] = m
        elif isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)) and m not in inside:
            fixed[name] = m
    if not replaceable:
        only = f"; it has only {', '.join(sorted({type(m).__name__ for m in fixed.values()}))}" if fixed else ""
        raise ConfigError(f"{type(model).__name__} holds no linear or convolution layer to make sparse{only}")
    return replaceable, fixed


def _converted(
    name: str, layer: Dense, density: float | Fraction | None, index: int, config: SparsityConfig
) -> SparseLayer | None:
    """The sparse layer in place of a dense one, with fresh weights; None to keep it dense."""
    pattern = pattern_for(name, layer, density, index, config)
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
    layer: Dense,
    replacement: SparseLayer | None,
    wish: Wish,
    uses: int | None,
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
            notes += _slow(layer, pattern)
        else:
            notes.append("computes as a dense layer")
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
        macs_dense=None if uses is None else dense * uses,
        macs=None if uses is None else kept * uses,
        note="; ".join(notes),
    )


def _slow(layer: Dense, pattern: BlockPattern) -> list[str]:
    """Why a layer of this form was slower than a dense one when measured (docs/decisions/0010)."""
    side = min(pattern.n_left, pattern.n_right)
    least, what = (SMALL_LINEAR, "wide") if isinstance(layer, nn.Linear) else (SMALL_CONVOLUTION, "channels")
    if side // pattern.blocks < NARROW:
        return [f"slower than dense: under {NARROW} neurons per block"]
    return [f"slower than dense: under {least} {what}"] if side < least else []


def _fixed_row(name: str, layer: nn.Module, uses: int | None) -> LayerReport:
    """A layer that cannot be replaced."""
    weights = weights_of(layer)
    if isinstance(layer, nn.MultiheadAttention):
        shape, why = f"{layer.embed_dim}→{layer.embed_dim}", "attention's own projections, kept dense"
    else:
        sides = (
            ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
        )
        shape, why = "→".join(str(getattr(layer, side)) for side in sides), "a class of its own, kept dense"
    macs = None if uses is None else weights * uses
    return LayerReport(name, type(layer).__name__, shape, None, 1.0, 1, "-", weights, weights, macs, macs, why)
