"""Predefined-sparse layers that store exactly |W| values and run on dense batched kernels.

The weights of a block pattern are `blocks` dense matrices. A forward pass gathers the K left blocks of each
right block and multiplies once, batched; gradients and optimiser state have the size of the weights. Nothing
is masked, and every operation has a standard ONNX form.
"""

from __future__ import annotations

import json
import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import ConfigError, DensityError, InputError, PatternError
from offramp.sparse.density import nearest_density
from offramp.sparse.pattern import BlockPattern, Layout, make_pattern

__all__ = ["SparseConv2d", "SparseLinear"]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _BlockSparse(nn.Module):
    """What the layers share: the pattern, its block index, its place in a checkpoint."""

    pattern: BlockPattern
    joined_blocks: Tensor

    def _set_pattern(self, pattern: BlockPattern, device: torch.device | str | None) -> None:
        self.pattern = pattern
        index = torch.from_numpy(pattern.left_blocks.ravel()).to(device)
        # Made again from the recipe, so a checkpoint need not hold it.
        self.register_buffer("joined_blocks", index, persistent=False)

    def _uniform_(self, parameter: Tensor, fan_in: int) -> None:
        bound = 1 / math.sqrt(fan_in)  # torch's own default, by the true fan-in
        nn.init.uniform_(parameter, -bound, bound)

    def get_extra_state(self) -> Tensor:
        """The pattern's recipe and digest, as the bytes of a JSON text (so that safetensors takes it)."""
        state = {"recipe": self.pattern.recipe(), "digest": self.pattern.digest}
        return torch.frombuffer(bytearray(json.dumps(state, sort_keys=True).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Checks that the checkpoint's pattern is this layer's.

        Raises:
            PatternError: It is another one; its weights would join other neurons.
        """
        theirs = json.loads(bytes(state.cpu().tolist()))
        if theirs.get("digest") != self.pattern.digest:
            raise PatternError(
                f"the checkpoint's pattern is {theirs.get('recipe')}, this layer's is "
                f"{self.pattern.recipe()}; build the layer with the checkpoint's recipe"
            )


class SparseLinear(_BlockSparse):
    """A predefined-sparse fully connected layer.

    Input (..., in_features), output (..., out_features). `weight` has the shape
    (blocks, joined·in_features/blocks, out_features/blocks): exactly |W| values.

    Args:
        in_features: Number of left neurons.
        out_features: Number of right neurons.
        density: The kept fraction ρ; met by the nearest K/G with G ≤ 16, see `nearest_density`.
        pattern: A pattern's name, or a `BlockPattern` (whose own numbers then count).
        blocks: Take exactly this many blocks.
        layout: Which neurons form a block, "contiguous" or "strided".
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
        pattern: str | BlockPattern = "block",
        blocks: int | None = None,
        layout: Layout = "contiguous",
        bias: bool = True,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        made = _pattern(in_features, out_features, density, pattern, blocks, layout, seed)
        self._set_pattern(made, device)
        self.weight = nn.Parameter(
            torch.empty(made.blocks, made.d_in, out_features // made.blocks, device=device, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights and bias uniformly, by the true fan-in d_in."""
        self._uniform_(self.weight, self.pattern.d_in)
        if self.bias is not None:
            self._uniform_(self.bias, self.pattern.d_in)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        p = self.pattern
        if x.shape[-1] != p.n_left:
            raise InputError(f"expected (..., {p.n_left}) features, got shape {tuple(x.shape)}")
        shape = x.shape[:-1]
        # One block per leading index: (blocks, rows, neurons), always a view.
        if p.layout == "contiguous":
            left = x.reshape(-1, p.blocks, p.n_left // p.blocks)
        else:
            left = x.reshape(-1, p.n_left // p.blocks, p.blocks).transpose(1, 2)
        if p.joined > 1:
            left = left.index_select(1, self.joined_blocks).reshape(-1, p.blocks, p.d_in)
        right = torch.bmm(left.transpose(0, 1), self.weight).transpose(0, 1)
        if p.layout == "strided":
            right = right.transpose(1, 2)
        out = right.reshape(*shape, p.n_right)
        return out if self.bias is None else out + self.bias

    def dense_weight(self) -> Tensor:
        """The same weights as `nn.Linear` holds them, zeros included; shape (out_features, in_features)."""
        p = self.pattern
        left, right = torch.from_numpy(p.neurons("left")), torch.from_numpy(p.neurons("right"))
        columns = left[self.joined_blocks.cpu()].reshape(p.blocks, 1, p.d_in)
        dense = self.weight.new_zeros(p.n_right, p.n_left)
        dense[right.unsqueeze(2), columns] = self.weight.transpose(1, 2)
        return dense

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {_described(self.pattern)}, bias={self.bias is not None}"


class SparseConv2d(_BlockSparse):
    """A predefined-sparse 2-D convolution: the pattern joins channels, kernels stay dense.

    Input (N, in_channels, H, W), output (N, out_channels, H', W') as with `nn.Conv2d`. It runs as a grouped
    convolution with `groups·blocks` groups over gathered channels; with `groups` > 1 the pattern joins
    channels inside each group. `weight` has the shape (out_channels, d_in, kh, kw).

    Args:
        in_channels: Number of left channels.
        out_channels: Number of right channels.
        kernel_size: Side of the kernel, or (height, width).
        density: The kept fraction ρ of channel pairs; see `SparseLinear`.
        stride: As in `nn.Conv2d`.
        padding: As in `nn.Conv2d`: sizes, "same" or "valid".
        dilation: As in `nn.Conv2d`.
        groups: Groups the convolution has before the pattern.
        padding_mode: As in `nn.Conv2d`.
        pattern: A pattern's name, or a `BlockPattern` over the channels of one group.
        blocks: Take exactly this many blocks.
        layout: Which channels form a block, "contiguous" or "strided".
        bias: Whether to add a bias.
        seed: The pattern's seed.
        device: Where the parameters live.
        dtype: The parameters' type.

    Raises:
        DensityError: A density that these channels do not admit, or groups that do not divide them.
        ConfigError: An unknown pattern, layout or padding mode, or "same" padding with a stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        density: float | Fraction,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        pattern: str | BlockPattern = "block",
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
        if padding == "same" and _pair(stride) != (1, 1):
            raise ConfigError(f'padding="same" needs a stride of 1, not {stride}')
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        made = _pattern(in_channels // groups, out_channels // groups, density, pattern, blocks, layout, seed)
        self._set_pattern(made, device)
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding, self.padding_mode = _padding(padding, self.kernel_size, self.dilation), padding_mode
        size = (out_channels, made.d_in, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights and bias uniformly, by the true fan-in d_in·kh·kw."""
        fan_in = self.pattern.d_in * math.prod(self.kernel_size)
        self._uniform_(self.weight, fan_in)
        if self.bias is not None:
            self._uniform_(self.bias, fan_in)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H', W')."""
        p = self.pattern
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"expected (N, {self.in_channels}, H, W), got shape {tuple(x.shape)}")
        if p.layout == "strided":
            x = _shuffled(x, self.groups, p.n_left // p.blocks, p.blocks)
        if p.joined > 1:
            h, w = x.shape[-2:]
            x = x.reshape(-1, self.groups, p.blocks, p.n_left // p.blocks, h, w)
            x = x.index_select(2, self.joined_blocks)
            x = x.reshape(-1, self.groups * p.blocks * p.d_in, h, w)
        bias: Tensor | None = self.bias
        if bias is not None and p.layout == "strided":  # weights lie block by block, the bias by channel
            bias = bias.reshape(self.groups, -1, p.blocks).transpose(1, 2).reshape(-1)
        pad, (left, right, top, bottom) = (0, 0), self.padding
        if self.padding_mode == "zeros" and (left, top) == (right, bottom):
            pad = (top, left)
        elif any(self.padding):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self.padding, mode=mode)
        y = F.conv2d(x, self.weight, bias, self.stride, pad, self.dilation, self.groups * p.blocks)
        if p.layout == "strided":
            y = _shuffled(y, self.groups, p.blocks, p.n_right // p.blocks)
        return y

    def dense_weight(self) -> Tensor:
        """The same weights as `nn.Conv2d` holds them, zeros included; (out, in/groups, kh, kw)."""
        p = self.pattern
        left, right = torch.from_numpy(p.neurons("left")), torch.from_numpy(p.neurons("right"))
        columns = left[self.joined_blocks.cpu()].reshape(p.blocks, 1, p.d_in)
        size = self.kernel_size
        stored = self.weight.reshape(self.groups, p.blocks, p.n_right // p.blocks, p.d_in, *size)
        dense = stored.new_zeros(self.groups, p.n_right, p.n_left, *size)
        dense[:, right.unsqueeze(2), columns] = stored
        return dense.reshape(self.out_channels, p.n_left, *size)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, {_described(self.pattern)}, groups={self.groups}, "
            f"bias={self.bias is not None}"
        )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _padding(
    padding: int | tuple[int, int] | str, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Padding as `F.pad` takes it: left, right, top, bottom."""
    if padding == "same":
        spare_h, spare_w = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return spare_w // 2, spare_w - spare_w // 2, spare_h // 2, spare_h - spare_h // 2
    if isinstance(padding, str):
        if padding != "valid":
            raise ConfigError(f'padding is a size, "same" or "valid", not {padding!r}')
        return 0, 0, 0, 0
    h, w = _pair(padding)
    return w, w, h, h


def _pattern(
    n_left: int,
    n_right: int,
    density: float | Fraction,
    pattern: str | BlockPattern,
    blocks: int | None,
    layout: Layout,
    seed: int,
) -> BlockPattern:
    if isinstance(pattern, BlockPattern):
        if (pattern.n_left, pattern.n_right) != (n_left, n_right):
            raise ConfigError(
                f"the pattern joins {pattern.n_left}→{pattern.n_right} neurons, the layer {n_left}→{n_right}"
            )
        return pattern
    met = nearest_density(n_left, n_right, density, blocks=blocks)
    return make_pattern(met, pattern=pattern, layout=layout, seed=seed)


def _shuffled(x: Tensor, groups: int, rows: int, columns: int) -> Tensor:
    """Channels read as a (rows, columns) table in each group, and put in the transposed order."""
    h, w = x.shape[-2:]
    table = x.reshape(-1, groups, rows, columns, h, w).transpose(2, 3)
    return table.reshape(-1, groups * rows * columns, h, w)


def _described(pattern: BlockPattern) -> str:
    return f"density={pattern.density}, blocks={pattern.blocks}, layout={pattern.layout}"
