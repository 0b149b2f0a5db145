"""What predefined-sparse layers share, and the fully connected one. They store exactly |W| values.

The weights of a block pattern are `blocks` dense matrices. A forward pass gathers the K left blocks of each
right block and multiplies once, batched; gradients and optimiser state have the size of the weights. Nothing
is masked, and every operation has a standard ONNX form. The other patterns store |W| values too, but are put
into a dense matrix at every pass: they save memory and files, not time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from offramp.errors import ConfigError, InputError, PatternError
from offramp.sparse.block import BlockPattern, Layout
from offramp.sparse.pattern import Pattern
from offramp.sparse.registry import make_pattern

__all__ = ["SparseLayer", "SparseLinear"]

#: Up to this many blocks an ONNX graph holds one product per block: runtimes pack a 2-D weight, not a 3-D one.
MOST_PRODUCTS = 16


class SparseLayer(nn.Module):
    """A layer whose neurons are joined by a `Pattern`: its weights, their dense form, its place in a checkpoint.

    `weight` holds exactly |W| values (per group and place of the kernel); row i of the pattern's `left_of`
    tells what the values of right neuron `right_order[i]` join.
    """

    pattern: Pattern
    weight: nn.Parameter
    bias: nn.Parameter | None
    #: Made again from the recipe, so a checkpoint need not hold it: the joined left blocks of a block pattern,
    #: (blocks·joined,), or the joined left neurons of any other, (n_right, d_in).
    joins: Tensor

    def _set_pattern(self, pattern: Pattern, device: torch.device | str | None) -> None:
        self.pattern = pattern
        self.register_buffer("joins", self._joined().clone().to(device), persistent=False)  # NumPy keeps its own

    def _joined(self) -> Tensor:
        if isinstance(self.pattern, BlockPattern):
            return torch.from_numpy(self.pattern.left_blocks.ravel())
        return torch.from_numpy(self.pattern.left_of).to(torch.int32)  # half of what a runtime needs, in files

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves or casts the layer; `to_empty` leaves garbage in every tensor, which no checkpoint would mend."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.joins.is_meta:
            self.joins.copy_(self._joined())
        return self

    @property
    def fan_in(self) -> int:
        """The values that go into one output: d_in times the kernel's places."""
        return self.pattern.d_in

    def reset_parameters(self) -> None:
        """Draws weights and bias uniformly as torch does by default, by the true fan-in."""
        bound = 1 / math.sqrt(self.fan_in)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def dense_weight(self) -> Tensor:
        """The same weights as the dense layer holds them, zeros included."""
        rows = self._rows()
        groups, left, order = self._places(rows)
        dense = rows.new_zeros(groups, self.pattern.n_right, self.pattern.n_left, *rows.shape[2:])
        dense[:, order, left] = rows.reshape(groups, *left.shape, *rows.shape[2:])
        return dense.flatten(0, 1)

    def _take(self, layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
        """Takes over a dense layer's values where the pattern joins, its bias, and whether it trains."""
        with torch.no_grad():
            rows = self._rows()
            groups, left, order = self._places(rows)
            dense = layer.weight.reshape(groups, self.pattern.n_right, *layer.weight.shape[1:])
            self._store(dense[:, order, left].flatten(0, 1))
            if self.bias is not None and layer.bias is not None:
                self.bias.copy_(layer.bias)
        _as_before(layer, self)

    def _places(self, rows: Tensor) -> tuple[int, Tensor, Tensor]:
        """Groups, and as index pairs the left and right neurons of every row's values."""
        left = torch.from_numpy(self.pattern.left_of).to(rows.device)
        order = torch.from_numpy(self.pattern.right_order).to(rows.device).unsqueeze(1)
        return rows.shape[0] // self.pattern.n_right, left, order

    def _rows(self) -> Tensor:
        """The weights as one row per right neuron, (n_right, d_in, …), in stored order."""
        return self.weight

    def _store(self, rows: Tensor) -> None:
        """The inverse of `_rows`."""
        self.weight.copy_(rows)

    def get_extra_state(self) -> Tensor:
        """The pattern's recipe and digest, as the bytes of a JSON text (so that safetensors takes it)."""
        state = {"recipe": self.pattern.recipe(), "digest": self.pattern.digest}
        return torch.frombuffer(bytearray(json.dumps(state, sort_keys=True).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing is left to do: `_load_from_state_dict` has compared the patterns."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Loads this layer's part of a checkpoint.

        Raises:
            PatternError: The checkpoint's weights join other neurons.
        """
        layer = repr(prefix.rstrip(".")) if prefix else "this layer"
        state, weight = state_dict.get(f"{prefix}_extra_state"), state_dict.get(f"{prefix}weight")
        if state is not None:
            theirs = _recipe(state, layer)
            if theirs.get("digest") != self.pattern.digest:
                raise PatternError(
                    f"{layer}: the checkpoint's pattern is {theirs.get('recipe')}, this layer's is "
                    f"{self.pattern.recipe()}. Build the layer with pattern=pattern_from_recipe(…) of the "
                    "checkpoint's recipe"
                )
        elif weight is not None and weight.shape != self.weight.shape:
            raise PatternError(
                f"{layer}: the checkpoint holds a weight of shape {tuple(weight.shape)} without a pattern; this "
                f"layer keeps {self.weight.numel()} values in {tuple(self.weight.shape)}. Load it into the dense "
                f"network, and take the values over with {type(self).__name__}.from_dense"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.joins.device != self.weight.device:  # with assign=True weights come from another device
            self.joins = self._joined().clone().to(self.weight.device)

    def _described(self) -> str:
        p = self.pattern
        blocks = f", blocks={p.blocks}, layout={p.layout}" if isinstance(p, BlockPattern) else f", {p.name}"
        return f"density={p.density}{blocks}, bias={self.bias is not None}"


class SparseLinear(SparseLayer):
    """A predefined-sparse fully connected layer.

    Input (..., in_features), output (..., out_features). `weight` has the shape
    (blocks, joined·in_features/blocks, out_features/blocks) for a block pattern and (out_features, d_in) for
    the others: exactly |W| values.

    Args:
        in_features: Number of left neurons.
        out_features: Number of right neurons.
        density: The kept fraction ρ; see `make_pattern` for how a density is met.
        pattern: "block", "structured" or "clash_free", or a `Pattern` (whose own numbers then count).
        blocks: For "block": take exactly this many blocks.
        layout: For "block": which neurons form a block, "contiguous" or "strided".
        bias: Whether to add a bias.
        seed: The pattern's seed.
        device: Where the parameters live.
        dtype: The parameters' type.

    Raises:
        DensityError: A density that these features do not admit.
        ConfigError: An unknown pattern or layout.

    Source: Capogrosso et al. 2024 (arXiv 2407.11763) for the degrees; the block form is docs/decisions/0002.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: float | Fraction,
        *,
        pattern: str | Pattern = "block",
        blocks: int | None = None,
        layout: Layout = "contiguous",
        bias: bool = True,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        made = pattern_of(in_features, out_features, density, pattern, blocks, layout, seed)
        self._set_pattern(made, device)
        if isinstance(made, BlockPattern):
            size: tuple[int, ...] = (made.blocks, made.d_in, out_features // made.blocks)
        else:
            size = (out_features, made.d_in)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @classmethod
    def from_dense(cls, layer: nn.Linear, pattern: Pattern) -> SparseLinear:
        """A sparse layer with a dense layer's values where the pattern joins.

        Raises:
            ConfigError: A pattern for other numbers of neurons.
        """
        device, dtype = layer.weight.device, layer.weight.dtype
        made = cls(
            layer.in_features,
            layer.out_features,
            pattern.density,
            pattern=pattern,
            bias=layer.bias is not None,
            device=device,
            dtype=dtype,
        )
        made._take(layer)
        return made

    def to_dense(self) -> nn.Linear:
        """A dense layer that computes the same, zeros included."""
        layer = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        put_dense(self, layer)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        p = self.pattern
        if x.shape[-1] != p.n_left:
            raise InputError(f"expected (..., {p.n_left}) features, got shape {tuple(x.shape)}")
        if not isinstance(p, BlockPattern):
            dense = self.weight.new_zeros(p.n_right, p.n_left).scatter(1, self.joins.long(), self.weight)
            return F.linear(x, dense, self.bias)
        if torch.onnx.is_in_onnx_export() and p.blocks <= MOST_PRODUCTS:
            return self._products(x, p)
        shape, width = x.shape[:-1], p.n_left // p.blocks
        if p.layout == "contiguous":
            left = x.reshape(-1, p.blocks, width)
        else:
            left = x.reshape(-1, width, p.blocks).transpose(1, 2)
        if p.joined > 1:
            left = left.index_select(1, self.joins).reshape(-1, p.blocks, p.d_in)
        left = left.transpose(0, 1)
        if self.bias is None:
            right = torch.bmm(left, self.weight)
        else:
            by_block = self.bias.reshape(p.blocks, -1) if p.layout == "contiguous" else self._strided_bias(p)
            right = torch.baddbmm(by_block.unsqueeze(1), left, self.weight)
        right = right.transpose(0, 1)
        if p.layout == "strided":
            right = right.transpose(1, 2)
        return right.reshape(*shape, p.n_right)

    def _strided_bias(self, p: BlockPattern) -> Tensor:
        assert self.bias is not None
        return self.bias.reshape(-1, p.blocks).transpose(0, 1)

    def _products(self, x: Tensor, p: BlockPattern) -> Tensor:
        """The same with one product per block and gathers by one index: what an ONNX graph should hold."""
        if p.layout == "strided" or p.joined > 1:
            x = x.index_select(
                x.dim() - 1, torch.from_numpy(p.left_of[:: p.n_right // p.blocks].ravel()).to(x.device)
            )
        parts = zip(torch.split(x, p.d_in, dim=-1), self.weight.unbind(0), strict=True)
        out = torch.cat([part @ weight for part, weight in parts], dim=-1)
        if p.layout == "strided":
            out = out.index_select(out.dim() - 1, torch.from_numpy(p.right_order.argsort()).to(out.device))
        return out if self.bias is None else out + self.bias

    def _rows(self) -> Tensor:
        return self.weight.transpose(1, 2).flatten(0, 1) if isinstance(self.pattern, BlockPattern) else self.weight

    def _store(self, rows: Tensor) -> None:
        if isinstance(self.pattern, BlockPattern):
            rows = rows.reshape(self.pattern.blocks, -1, self.pattern.d_in).transpose(1, 2)
        self.weight.copy_(rows)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self._described()}"


def pattern_of(
    n_left: int,
    n_right: int,
    density: float | Fraction,
    pattern: str | Pattern,
    blocks: int | None,
    layout: Layout,
    seed: int,
) -> Pattern:
    """A layer's pattern from its arguments.

    Raises:
        DensityError: A density that these neurons do not admit.
        ConfigError: An unknown pattern or layout, or a pattern for other numbers of neurons.
    """
    if not isinstance(pattern, Pattern):
        return make_pattern(pattern, n_left, n_right, density, blocks=blocks, layout=layout, seed=seed)
    if (pattern.n_left, pattern.n_right) != (n_left, n_right):
        raise ConfigError(
            f"the pattern joins {pattern.n_left}→{pattern.n_right} neurons, the layer {n_left}→{n_right}"
        )
    return pattern


def put_dense(sparse: SparseLayer, layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
    """Puts a sparse layer's values into a dense layer of its shape."""
    with torch.no_grad():
        layer.weight.copy_(sparse.dense_weight())
        if sparse.bias is not None and layer.bias is not None:
            layer.bias.copy_(sparse.bias)
    _as_before(sparse, layer)


def _as_before(old: nn.Module, new: nn.Module) -> None:
    """Whether a layer and each of its parameters train."""
    new.train(old.training)
    for mine, theirs in ((new.weight, old.weight), (new.bias, old.bias)):
        if isinstance(mine, nn.Parameter) and isinstance(theirs, nn.Parameter):
            mine.requires_grad_(theirs.requires_grad)


def _recipe(state: Any, layer: str) -> dict[str, Any]:
    try:
        if state.dtype != torch.uint8 or state.dim() != 1:
            raise TypeError(f"it is of type {state.dtype} and shape {tuple(state.shape)}")
        found = json.loads(bytes(state.cpu().tolist()))
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise PatternError(
            f"{layer}: the checkpoint holds no pattern's recipe that can be read: {error}"
        ) from error
    return found if isinstance(found, dict) else {}
