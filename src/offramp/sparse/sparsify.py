"""`sparsify_`: make a model predefined-sparse, in place, before it is trained."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from offramp.config import Config
from offramp.errors import ConfigError, DensityError, LayerNameError
from offramp.evalmode import eval_mode
from offramp.sparse.density import BlockDensity, nearest_density
from offramp.sparse.layers import SparseConv2d, SparseLinear
from offramp.sparse.pattern import Layout, make_pattern
from offramp.tables import count_text, table_text

__all__ = ["LayerReport", "SparsityConfig", "SparsityReport", "sparsify_"]

#: Fewer neurons per block than this make the kernels slow (docs/decisions/0002).
NARROW = 16


class SparsityConfig(Config):
    """What `sparsify_` does; survives a JSON round trip.

    Attributes:
        density: The kept fraction ρ of every sparsified layer.
        overrides: Densities by layer name; names may hold `*` and `?`, later entries win, None keeps the
            layer dense. A name that is given here also sparsifies a layer that would stay dense otherwise.
        blocks: Take exactly this many blocks everywhere.
        max_blocks: Without `blocks`, the most blocks allowed.
        layout: "alternate" lets neighbouring layers mix.
        keep_first: Leave the first convolution dense.
        keep_last: Leave the final classifier dense.
        seed: The first pattern's seed; the following layers take the following numbers.
    """

    density: float = Field(default=0.25, gt=0, le=1)
    overrides: dict[str, float | None] = Field(default_factory=dict)
    blocks: int | None = Field(default=None, ge=1)
    max_blocks: int = Field(default=16, ge=1)
    layout: Literal["alternate", "contiguous", "strided"] = "alternate"
    keep_first: bool = True
    keep_last: bool = True
    seed: int = 0


@dataclass(frozen=True)
class LayerReport:
    """One layer of a `SparsityReport`; `macs` needs an example input and is None without one."""

    name: str
    kind: str
    shape: str
    asked: float | None
    given: float
    blocks: int
    layout: str
    weights_dense: int
    weights: int
    macs_dense: int | None
    macs: int | None
    note: str


@dataclass(frozen=True)
class SparsityReport:
    """What `sparsify_` did, layer by layer; prints as a table."""

    layers: tuple[LayerReport, ...]

    @property
    def weights_dense(self) -> int:
        """Weights of these layers before, biases not counted."""
        return sum(layer.weights_dense for layer in self.layers)

    @property
    def weights(self) -> int:
        """Weights of these layers now, biases not counted."""
        return sum(layer.weights for layer in self.layers)

    @property
    def density(self) -> float:
        """The network's density, Σ|W_i| / ΣN_{i-1}N_i."""
        return self.weights / self.weights_dense

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every change from what was asked for, and every slow choice."""
        return tuple(f"{layer.name}: {layer.note}" for layer in self.layers if layer.note)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "weights_dense": self.weights_dense,
            "weights": self.weights,
            "density": self.density,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        def count(value: int | None) -> str:
            return "-" if value is None else count_text(value)

        rows = [
            [
                layer.name,
                layer.kind,
                layer.shape,
                "-" if layer.asked is None else f"{layer.asked:g}",
                f"{layer.given:g}",
                str(layer.blocks),
                layer.layout,
                count(layer.weights_dense),
                count(layer.weights),
                count(layer.macs_dense),
                count(layer.macs),
                layer.note,
            ]
            for layer in self.layers
        ]
        heads = ["layer", "kind", "shape", "asked", "given", "blocks", "layout"]
        heads += ["dense weights", "weights", "dense MACs", "MACs", "note"]
        total = f"{count_text(self.weights)} of {count_text(self.weights_dense)} weights: {self.density:.3f}"
        return table_text("Predefined sparsity", heads, rows, caption=f"network density: {total}")


def sparsify_(
    model: nn.Module, config: SparsityConfig | None = None, *, example_input: Tensor | None = None
) -> SparsityReport:
    """Replaces linear and convolution layers by predefined-sparse ones with fresh weights, in place.

    The first convolution, depthwise layers and the final classifier stay dense unless `overrides` names
    them. Nothing is replaced when anything is wrong.

    Args:
        model: Any module; its own code is not touched.
        config: Densities and exceptions; a density of 1/4 if left out.
        example_input: One batch, so that the report can count multiply-accumulates.

    Raises:
        DensityError: A layer does not admit its density; the message names the layer and the way out.
        LayerNameError: An override matches no layer.
        ConfigError: The model is itself one layer.
    """
    config = config or SparsityConfig()
    layers: dict[str, nn.Linear | nn.Conv2d] = {
        name: m
        for name, m in model.named_modules()
        if type(m) in (nn.Linear, nn.Conv2d)  # a subclass may do more than its replacement
    }
    wanted = _wanted(layers, config)
    if model in layers.values() and wanted[""][0] is not None:
        raise ConfigError(
            "the model is one layer, which cannot be replaced in place; use SparseLinear or SparseConv2d"
        )
    places = _output_places(model, layers, example_input)
    rows: list[LayerReport] = []
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        asked, why = wanted[name]
        replacement = _converted(name, layer, asked, len(replacements), config)
        rows.append(_row(name, layer, replacement, asked, why, places.get(name)))
        if replacement is not None:
            replacements[layer] = replacement
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):  # named_children leaves out a second mention
            if child in replacements:
                setattr(parent, child_name, replacements[child])
    return SparsityReport(tuple(rows))


def _wanted(
    layers: Mapping[str, nn.Linear | nn.Conv2d], config: SparsityConfig
) -> dict[str, tuple[float | None, str]]:
    """The density asked for by layer, None for dense, and why it is dense."""
    convolutions = [name for name, m in layers.items() if isinstance(m, nn.Conv2d)]
    wanted: dict[str, tuple[float | None, str]] = {}
    for name, m in layers.items():
        if config.keep_first and convolutions[:1] == [name]:
            wanted[name] = (None, "first convolution, kept dense")
        elif config.keep_last and name == list(layers)[-1]:
            wanted[name] = (None, "final classifier, kept dense")
        elif isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1:
            wanted[name] = (None, "depthwise, kept dense")
        else:
            wanted[name] = (config.density, "")
    for pattern, density in config.overrides.items():
        matched = fnmatch.filter(layers, pattern)
        if not matched:
            near = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3) or list(layers)[:3]
            raise LayerNameError(
                f"override {pattern!r} matches no linear or convolution layer; did you mean {', '.join(near)}?"
            )
        for name in matched:
            wanted[name] = (density, "kept dense as told" if density is None else "")
    return wanted


def _converted(
    name: str, layer: nn.Linear | nn.Conv2d, asked: float | None, index: int, config: SparsityConfig
) -> SparseLinear | SparseConv2d | None:
    """The sparse layer in place of a dense one; None to keep it dense."""
    if asked is None:
        return None
    if isinstance(layer, nn.Conv2d):
        n_left, n_right = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    else:
        n_left, n_right = layer.in_features, layer.out_features
    try:
        met = nearest_density(n_left, n_right, asked, blocks=config.blocks, max_blocks=config.max_blocks)
    except DensityError as error:
        raise DensityError(
            f"layer {name!r}: {error}. Give it another density, or keep it dense with None, in "
            f"SparsityConfig(overrides={{{name!r}: …}})"
        ) from error
    if met.joined == met.blocks:
        return None
    alternated: Layout = "strided" if index % 2 else "contiguous"
    layout = alternated if config.layout == "alternate" else config.layout
    return _sparse_layer(layer, met, layout, config.seed + index)


def _row(
    name: str,
    layer: nn.Linear | nn.Conv2d,
    replacement: SparseLinear | SparseConv2d | None,
    asked: float | None,
    why: str,
    places: int | None,
) -> LayerReport:
    dense = layer.weight.numel()
    kept = dense if replacement is None else replacement.weight.numel()
    notes = [why] if why else []
    if replacement is None:
        pattern = None
        if asked is not None:
            notes.append("density 1, kept dense")
    else:
        pattern = replacement.pattern
        if not math.isclose(asked or 0, float(pattern.density), rel_tol=1e-9):
            notes.append(f"density {asked:g} asked, {pattern.density} given")
        if min(pattern.n_left, pattern.n_right) // pattern.blocks < NARROW:
            notes.append(f"narrow: under {NARROW} neurons per block run slowly")
    if isinstance(layer, nn.Conv2d):
        shape = f"{layer.in_channels}→{layer.out_channels} {layer.kernel_size[0]}x{layer.kernel_size[1]}"
    else:
        shape = f"{layer.in_features}→{layer.out_features}"
    return LayerReport(
        name=name,
        kind=type(replacement or layer).__name__,
        shape=shape,
        asked=asked,
        given=1.0 if pattern is None else float(pattern.density),
        blocks=1 if pattern is None else pattern.blocks,
        layout="-" if pattern is None else pattern.layout,
        weights_dense=dense,
        weights=kept,
        macs_dense=None if places is None else dense * places,
        macs=None if places is None else kept * places,
        note="; ".join(notes),
    )


def _sparse_layer(
    layer: nn.Linear | nn.Conv2d, met: BlockDensity, layout: Layout, seed: int
) -> SparseLinear | SparseConv2d:
    pattern = make_pattern(met, layout=layout, seed=seed)
    bias, device, dtype = layer.bias is not None, layer.weight.device, layer.weight.dtype
    if isinstance(layer, nn.Linear):
        return SparseLinear(
            layer.in_features,
            layer.out_features,
            met.density,
            pattern=pattern,
            bias=bias,
            device=device,
            dtype=dtype,
        )
    return SparseConv2d(
        layer.in_channels,
        layer.out_channels,
        (layer.kernel_size[0], layer.kernel_size[1]),
        met.density,
        stride=(layer.stride[0], layer.stride[1]),
        padding=layer.padding if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1]),
        dilation=(layer.dilation[0], layer.dilation[1]),
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        pattern=pattern,
        bias=bias,
        device=device,
        dtype=dtype,
    )


def _output_places(
    model: nn.Module, layers: Mapping[str, nn.Linear | nn.Conv2d], example_input: Tensor | None
) -> dict[str, int]:
    """How often each layer's weights are used for one sample: its output places, 1 for a plain linear."""
    if example_input is None:
        return {}
    places: dict[str, int] = {}
    hooks = []
    for name, layer in layers.items():

        def hook(m: nn.Module, _: Any, out: Tensor, name: str = name) -> None:
            per_sample = out[0].numel()
            outputs = m.out_channels if isinstance(m, nn.Conv2d) else out.shape[-1]
            places[name] = places.get(name, 0) + per_sample // int(outputs)

        hooks.append(layer.register_forward_hook(hook))
    try:
        with eval_mode(model), torch.no_grad():
            model(example_input)
    finally:
        for handle in hooks:
            handle.remove()
    return places
