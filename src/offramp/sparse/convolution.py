"""Predefined-sparse convolutions: the pattern joins channels, kernels stay dense."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp.errors import ConfigError, DensityError, InputError
from offramp.sparse.block import BlockPattern, Layout
from offramp.sparse.layers import SparseLayer, pattern_of, put_dense
from offramp.sparse.pattern import Pattern

__all__ = ["SparseConv", "SparseConv1d", "SparseConv2d"]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

#: One size, or one per dimension.
Size: TypeAlias = "int | tuple[int, ...]"


class SparseConv(SparseLayer):
    """A predefined-sparse convolution, over one dimension or two.

    Input (N, in_channels, *places), output (N, out_channels, *places') as with torch's own. A block pattern
    runs as a grouped convolution with `groups·blocks` groups over gathered channels, any other as a dense
    convolution; with `groups` > 1 the pattern joins channels inside each group. `weight` has the shape
    (out_channels, d_in, *kernel_size): exactly |W| values per place of the kernel.

    Args:
        in_channels: Number of left channels.
        out_channels: Number of right channels.
        kernel_size: Side of the kernel, or one per dimension.
        density: The kept fraction ρ of channel pairs; see `SparseLinear`.
        stride: As in torch.
        padding: As in torch: sizes, "same" or "valid".
        dilation: As in torch.
        groups: Groups the convolution has before the pattern.
        padding_mode: As in torch.
        pattern: "block", "structured" or "clash_free", or a `Pattern` over the channels of one group.
        blocks: For "block": take exactly this many blocks.
        layout: For "block": which channels form a block, "contiguous" or "strided".
        bias: Whether to add a bias.
        seed: The pattern's seed.
        device: Where the parameters live.
        dtype: The parameters' type.

    Raises:
        DensityError: A density that these channels do not admit, or groups that do not divide them.
        ConfigError: An unknown pattern, layout or padding mode, or "same" padding with a stride.
    """

    #: The dense convolution in whose place it stands.
    dense_kind: ClassVar[type[nn.Conv1d] | type[nn.Conv2d]]
    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        density: float | Fraction,
        *,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        pattern: str | Pattern = "block",
        blocks: int | None = None,
        layout: Layout = "contiguous",
        bias: bool = True,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise DensityError(f"groups={groups} does not divide {in_channels} and {out_channels} channels")
        if padding_mode not in _PADDING_MODES:
            raise ConfigError(f"padding_mode is one of {', '.join(_PADDING_MODES)}, not {padding_mode!r}")
        self.kernel_size, self.stride = self._sizes(kernel_size, "kernel_size"), self._sizes(stride, "stride")
        self.dilation, self.padding = self._sizes(dilation, "dilation"), padding
        if padding == "same" and set(self.stride) != {1}:
            raise ConfigError(f'padding="same" needs a stride of 1, not {stride}')
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.padding_mode, self._pads = padding_mode, self._padding(padding)
        made = pattern_of(in_channels // groups, out_channels // groups, density, pattern, blocks, layout, seed)
        self._set_pattern(made, device)
        size = (out_channels, made.d_in, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @classmethod
    def from_dense(cls, layer: nn.Conv1d | nn.Conv2d, pattern: Pattern) -> SparseConv:
        """A sparse layer with a dense layer's values where the pattern joins.

        Raises:
            ConfigError: A pattern for other numbers of channels.
        """
        made = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            pattern.density,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
            pattern=pattern,
            bias=layer.bias is not None,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
        made._take(layer)
        return made

    def to_dense(self) -> nn.Conv1d | nn.Conv2d:
        """A dense layer that computes the same, zeros included."""
        layer = self.dense_kind(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]  # one size per dimension, of either kind
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
            padding_mode=self.padding_mode,  # type: ignore[arg-type]
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        put_dense(self, layer)
        return layer

    @property
    def fan_in(self) -> int:
        """The values that go into one output: d_in times the kernel's places."""
        return self.pattern.d_in * math.prod(self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, *places) to (N, out_channels, *places')."""
        p = self.pattern
        if x.dim() != self.dims + 2 or x.shape[1] != self.in_channels:
            places = "L" if self.dims == 1 else "H, W"
            raise InputError(f"expected (N, {self.in_channels}, {places}), got shape {tuple(x.shape)}")
        pad: tuple[int, ...] = self._pads[::-2]  # the same before and after, or all zero
        if self.padding_mode != "zeros" or self._pads[::2] != self._pads[1::2]:
            if any(self._pads):
                mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
                x = F.pad(x, self._pads, mode=mode)
            pad = (0,) * self.dims
        if not isinstance(p, BlockPattern):
            return self._convolve(x, self._dense(p), self.bias, pad, self.groups)
        bias: Tensor | None = self.bias
        if bias is not None and p.layout == "strided":  # weights lie block by block, the bias by channel
            bias = bias.reshape(self.groups, -1, p.blocks).transpose(1, 2).reshape(-1)
        y = self._convolve(self._gathered(x, p), self.weight, bias, pad, self.groups * p.blocks)
        if p.layout == "contiguous":
            return y
        if torch.onnx.is_in_onnx_export():
            return _selected(y, p.right_order.argsort(), self.groups)
        return _shuffled(y, self.groups, p.blocks, p.n_right // p.blocks)

    def _gathered(self, x: Tensor, p: BlockPattern) -> Tensor:
        """The left channels that each block joins, block by block."""
        if torch.onnx.is_in_onnx_export():  # one gather by one index, which an export may fold away
            if p.layout == "contiguous" and p.joined == 1:
                return x
            return _selected(x, p.left_of[:: p.n_right // p.blocks].ravel(), self.groups)
        if p.layout == "strided":
            x = _shuffled(x, self.groups, p.n_left // p.blocks, p.blocks)
        if p.joined > 1:
            places = x.shape[2:]
            x = x.reshape(-1, self.groups, p.blocks, p.n_left // p.blocks, *places)
            x = x.index_select(2, self.joins)
            x = x.reshape(-1, self.groups * p.blocks * p.d_in, *places)
        return x

    def _dense(self, p: Pattern) -> Tensor:
        ones = (1,) * self.dims
        index = self.joins.long().repeat(self.groups, 1).reshape(self.out_channels, p.d_in, *ones)
        dense = self.weight.new_zeros(self.out_channels, p.n_left, *self.kernel_size)
        return dense.scatter(1, index.expand_as(self.weight), self.weight)

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: tuple[int, ...], groups: int
    ) -> Tensor:
        convolution = F.conv1d if self.dims == 1 else F.conv2d
        return convolution(x, weight, bias, self.stride, pad, self.dilation, groups)

    def _sizes(self, value: Size, what: str) -> tuple[int, ...]:
        sizes = (value,) * self.dims if isinstance(value, int) else tuple(value)
        if len(sizes) != self.dims:
            raise ConfigError(f"{what} is one size or {self.dims} sizes, not {value}")
        return sizes

    def _padding(self, padding: Size | str) -> tuple[int, ...]:
        """Padding as `F.pad` takes it: before and after, the last dimension first."""
        if padding == "same":
            spare = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple(n for s in reversed(spare) for n in (s // 2, s - s // 2))
        if isinstance(padding, str):
            if padding != "valid":
                raise ConfigError(f'padding is a size, "same" or "valid", not {padding!r}')
            return (0,) * (2 * self.dims)
        return tuple(n for s in reversed(self._sizes(padding, "padding")) for n in (s, s))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, groups={self.groups}, {self._described()}"
        )


class SparseConv1d(SparseConv):
    """A predefined-sparse 1-D convolution; arguments as in `SparseConv`.

    Input (N, in_channels, L), output (N, out_channels, L'); weight (out_channels, d_in, k).
    """

    dense_kind = nn.Conv1d
    dims = 1


class SparseConv2d(SparseConv):
    """A predefined-sparse 2-D convolution; arguments as in `SparseConv`.

    Input (N, in_channels, H, W), output (N, out_channels, H', W'); weight (out_channels, d_in, kh, kw).
    """

    dense_kind = nn.Conv2d
    dims = 2


def _selected(x: Tensor, index: NDArray[np.int64], groups: int) -> Tensor:
    """Channels by one index, the same in every group."""
    width = x.shape[1] // groups
    every = (np.arange(groups)[:, None] * width + index).ravel()
    return x.index_select(1, torch.from_numpy(every).to(x.device))


def _shuffled(x: Tensor, groups: int, rows: int, columns: int) -> Tensor:
    """Channels read as a (rows, columns) table in each group, and put in the transposed order."""
    places = x.shape[2:]
    table = x.reshape(-1, groups, rows, columns, *places).transpose(2, 3)
    return table.reshape(-1, groups * rows * columns, *places)
