"""Every convolution setting under every pattern against torch's own convolution of `to_dense()`.

What `to_dense()` holds is checked by itself against the pattern's mask and in test_layers.py value by value.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import ConfigError, DensityError, InputError
from offramp.sparse.convolution import SparseConv, SparseConv1d, SparseConv2d

SETTINGS: list[dict[str, Any]] = [
    {},
    {"padding": 1, "stride": 2},
    {"padding": "same", "dilation": 2},
    {"padding": "same", "kernel_size": 4, "dilation": 3},
    {"padding": "valid", "kernel_size": 1, "bias": False},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate", "stride": 3},
    {"padding": 2, "padding_mode": "circular", "dilation": 2},
    {"padding": "same", "padding_mode": "circular", "kernel_size": 2},
]


def made(dims: int, groups: int = 1, **settings: Any) -> SparseConv:
    kind: type[SparseConv] = SparseConv1d if dims == 1 else SparseConv2d
    settings = {"kernel_size": 3, "dtype": torch.float64, **settings}
    return kind(16 * groups, 24 * groups, groups=groups, **settings)


def image(layer: SparseConv) -> Tensor:
    places = (11,) if layer.dims == 1 else (9, 8)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, layer.in_channels, *places, dtype=torch.float64, generator=generator)


def with_gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=x.dtype).reshape(out.shape)).sum().backward()
    assert x.grad is not None
    return out, x.grad


# What torch itself says about its dense layer, the oracle.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2])
def test_equal_to_the_dense_convolution(
    dims: int, groups: int, settings: dict[str, Any], pattern_settings: dict[str, Any]
) -> None:
    """Values, and the gradients of input, weight and bias."""
    layer = made(dims, groups, **{**pattern_settings, **settings})
    dense = layer.to_dense()
    found, expected = with_gradients(layer, image(layer)), with_gradients(dense, image(layer))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert dense.weight.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(dense_gradient(layer), masked(layer, dense.weight.grad), rtol=1e-9, atol=1e-9)
    if layer.bias is not None:
        assert dense.bias is not None
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad, rtol=1e-9, atol=1e-9)


def masked(layer: SparseConv, dense: Tensor) -> Tensor:
    mask = torch.from_numpy(layer.pattern.mask()).repeat(layer.groups, 1)
    return dense * mask.reshape(*mask.shape, *[1] * layer.dims)


def dense_gradient(layer: SparseConv) -> Tensor:
    """The stored gradient as the dense layer holds it."""
    twin = made(layer.dims, layer.groups, density=1, pattern=layer.pattern, kernel_size=layer.kernel_size)
    assert layer.weight.grad is not None
    with torch.no_grad():
        twin.weight.copy_(layer.weight.grad)
    return twin.dense_weight().detach()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2])
def test_the_dense_weight_is_the_pattern(dims: int, groups: int, pattern_settings: dict[str, Any]) -> None:
    layer = made(dims, groups, **pattern_settings)
    dense = layer.dense_weight()
    assert dense.shape == (24 * groups, 16, *layer.kernel_size)
    assert torch.equal(dense != 0, masked(layer, torch.ones_like(dense)) != 0)
    assert layer.weight.numel() == int((dense != 0).sum()) == groups * layer.pattern.weights * 3**dims
    assert sorted(dense[dense != 0].tolist()) == sorted(layer.weight.flatten().tolist())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_padding_with_a_size_per_dimension() -> None:
    layer = SparseConv2d(8, 8, (4, 3), 0.5, padding="same", dilation=(1, 2), dtype=torch.float64)
    torch.testing.assert_close(layer(image_like(layer)), layer.to_dense()(image_like(layer)))


def image_like(layer: SparseConv) -> Tensor:
    return torch.linspace(-1, 1, layer.in_channels * 42, dtype=torch.float64).reshape(1, -1, 6, 7)


def test_a_pattern_joins_channels_inside_each_group() -> None:
    layer = SparseConv1d(16, 32, 1, Fraction(1, 4), groups=2, bias=False)
    assert (layer.pattern.n_left, layer.pattern.n_right) == (8, 16)
    x = torch.zeros(1, 16, 1)
    x[:, :8] = 1
    assert (layer(x)[:, 16:] == 0).all()


@pytest.mark.parametrize("dims", [1, 2])
def test_channels_last_and_empty_batches(dims: int, pattern_settings: dict[str, Any]) -> None:
    layer = made(dims, **pattern_settings)
    x = image(layer)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    torch.testing.assert_close(layer(last), layer(x))
    assert layer(x[:0]).shape == (0, *layer(x).shape[1:])


@pytest.mark.parametrize("shape", [(2, 8, 5), (8, 5, 5), (2, 9, 5, 5), (2, 16, 5, 5), (1, 2, 8, 5, 5)])
def test_inputs_of_another_shape(shape: tuple[int, ...], pattern_settings: dict[str, Any]) -> None:
    layer = SparseConv2d(8, 8, 3, **pattern_settings)
    with pytest.raises(InputError, match=r"expected \(N, 8, H, W\), got shape"):
        layer(torch.zeros(shape))
    with pytest.raises(InputError, match=r"expected \(N, 8, L\), got shape"):
        SparseConv1d(8, 8, 3, **pattern_settings)(torch.zeros(8, 5))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kernel_size": (3, 3, 3)}, r"kernel_size is one size or 2 sizes, not \(3, 3, 3\)"),
    ({"stride": (1,)}, "stride is one size or 2 sizes"),
    ({"padding": (1, 2, 3)}, "padding is one size or 2 sizes"),
    ({"padding": "full"}, '"same" or "valid", not \'full\''),
    ({"padding": "same", "stride": (1, 2)}, '"same" needs a stride of 1'),
    ({"padding_mode": "mirror"}, "padding_mode is one of zeros, .*, not 'mirror'"),
    ({"groups": 3}, "groups=3 does not divide 8 and 8"),
    ({"groups": -2}, "groups=-2 does not divide 8 and 8"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=str)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseConv2d(8, 8, **{"kernel_size": 3, "density": 0.5, **wrong})


def test_channels_without_a_common_divisor() -> None:
    with pytest.raises(DensityError, match=r"7→10 layer .* only 1 is possible"):
        SparseConv2d(7, 10, 3, 0.25)
    with pytest.raises(DensityError, match=r"8→1 layer"):  # 1→… channels per group
        SparseConv2d(64, 8, 3, 0.25, groups=8)
