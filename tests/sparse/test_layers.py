from __future__ import annotations

import copy
import io
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from offramp.errors import ConfigError, DensityError, PatternError
from offramp.sparse.block import BlockPattern
from offramp.sparse.convolution import SparseConv2d
from offramp.sparse.layers import SparseLinear

DOUBLE = torch.float64
LAYOUTS = ("contiguous", "strided")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def scattered(layer: SparseLinear | SparseConv2d, stored: Tensor) -> Tensor:
    """Stored values at their places in a dense weight, one by one: the slow oracle of `dense_weight`."""
    p = layer.pattern
    left, right = p.neurons("left").tolist(), p.neurons("right").tolist()
    groups = getattr(layer, "groups", 1)
    size = getattr(layer, "kernel_size", ())
    dense = torch.zeros(groups * p.n_right, p.n_left, *size, dtype=stored.dtype)
    for group in range(groups):
        for block in range(p.blocks):
            columns = [neuron for joined in p.left_blocks[block].tolist() for neuron in left[joined]]
            for j, row in enumerate(right[block]):
                for i, column in enumerate(columns):
                    if isinstance(layer, SparseLinear):
                        value = stored[block, i, j]
                    else:
                        value = stored[group * p.n_right + block * len(right[block]) + j, i]
                    dense[group * p.n_right + row, column] = value
    return dense


def gathered(layer: SparseLinear | SparseConv2d, dense: Tensor) -> Tensor:
    """The inverse of `scattered`: where each stored value lies, found by scattering its number."""
    size = getattr(layer, "kernel_size", ())
    n = layer.weight.numel()
    numbers = scattered(layer, torch.arange(1, n + 1).reshape(layer.weight.shape))
    assert numbers.shape == (*dense.shape[:2], *size)
    found = torch.empty(n, dtype=dense.dtype)
    places = numbers > 0
    assert int(places.sum()) == n
    found[numbers[places] - 1] = dense[places]
    return found.reshape(layer.weight.shape)


def assert_same_as_dense(layer: SparseLinear | SparseConv2d, x: Tensor, dense_forward: Any) -> None:
    """Outputs and the gradients of input, weight and bias equal those of the masked dense layer."""
    weight = layer.dense_weight().detach().requires_grad_()
    assert torch.equal(weight, scattered(layer, layer.weight.detach()))
    bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    x_sparse, x_dense = (x.clone().requires_grad_() for _ in range(2))
    out, expected = layer(x_sparse), dense_forward(x_dense, weight, bias)
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-8)
    pull = drawn(*out.shape, seed=9)
    (out * pull).sum().backward()
    (expected * pull).sum().backward()
    torch.testing.assert_close(x_sparse.grad, x_dense.grad, rtol=1e-7, atol=1e-8)
    assert weight.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, gathered(layer, weight.grad), rtol=1e-7, atol=1e-8)
    if bias is not None:
        assert layer.bias is not None
        torch.testing.assert_close(layer.bias.grad, bias.grad, rtol=1e-7, atol=1e-8)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    blocks=st.integers(1, 6),
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    layout=st.sampled_from(LAYOUTS),
    bias=st.booleans(),
    batch=st.sampled_from([(), (3,), (2, 3), (0,), (2, 1, 2)]),
    data=st.data(),
)
def test_linear_equals_the_masked_dense_layer(
    blocks: int, sides: tuple[int, int], layout: Any, bias: bool, batch: tuple[int, ...], data: st.DataObject
) -> None:
    joined = data.draw(st.integers(1, blocks))
    pattern = BlockPattern(blocks * sides[0], blocks * sides[1], joined, blocks, layout, seed=joined)
    layer = SparseLinear(
        pattern.n_left, pattern.n_right, pattern.density, pattern=pattern, bias=bias, dtype=DOUBLE
    )
    assert layer.weight.numel() == pattern.weights
    assert_same_as_dense(layer, drawn(*batch, pattern.n_left), F.linear)


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"padding": 1},
    {"padding": (2, 0), "stride": (1, 2)},
    {"padding": "same"},
    {"padding": "same", "dilation": (2, 1), "kernel_size": (2, 4)},
    {"padding": "valid", "stride": 2},
    {"padding": 2, "dilation": 2},
    {"kernel_size": 1},
    {"kernel_size": (1, 3), "padding": (0, 1), "bias": False},
    {"padding": (1, 2), "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate", "stride": 2},
    {"padding": (2, 1), "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "circular", "kernel_size": (4, 2)},
]


# What torch itself says about its dense layer, the oracle.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("settings_", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("joined", "groups"), [(1, 1), (2, 1), (3, 2), (1, 2), (4, 1)])
def test_convolution_equals_the_masked_dense_layer(
    joined: int, groups: int, layout: Any, settings_: dict[str, Any]
) -> None:
    kernel_size = settings_.get("kernel_size", 3)
    rest = {k: v for k, v in settings_.items() if k != "kernel_size"}
    layer = SparseConv2d(
        8 * groups,
        12 * groups,
        kernel_size,
        Fraction(joined, 4),
        blocks=4,
        groups=groups,
        layout=layout,
        dtype=DOUBLE,
        **rest,
    )
    area = math.prod(layer.kernel_size)
    assert layer.weight.numel() == groups * layer.pattern.weights * area
    dense = nn.Conv2d(8 * groups, 12 * groups, kernel_size, groups=groups, dtype=DOUBLE, **rest)

    def dense_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return dense._conv_forward(x, weight, bias)

    assert_same_as_dense(layer, drawn(2, 8 * groups, 7, 9), dense_forward)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    blocks=st.integers(1, 5),
    sides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 3),
    layout=st.sampled_from(LAYOUTS),
    data=st.data(),
)
def test_convolution_equals_the_masked_dense_layer_at_any_size(
    blocks: int, sides: tuple[int, int], groups: int, layout: Any, data: st.DataObject
) -> None:
    joined = data.draw(st.integers(1, blocks))
    pattern = BlockPattern(blocks * sides[0], blocks * sides[1], joined, blocks, layout, seed=joined)
    n_left, n_right = groups * pattern.n_left, groups * pattern.n_right
    layer = SparseConv2d(
        n_left, n_right, 3, pattern.density, pattern=pattern, groups=groups, padding=1, dtype=DOUBLE
    )

    def dense_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1, groups=groups)

    assert_same_as_dense(layer, drawn(2, n_left, 4, 5), dense_forward)


def test_float32_equals_the_masked_dense_layer() -> None:
    torch.manual_seed(0)
    linear = SparseLinear(256, 128, 0.25, layout="strided")
    x = torch.randn(8, 256)
    torch.testing.assert_close(linear(x), F.linear(x, linear.dense_weight(), linear.bias), atol=1e-5, rtol=1e-5)
    conv = SparseConv2d(32, 64, 3, 0.5, padding=1)
    image = torch.randn(2, 32, 9, 9)
    expected = F.conv2d(image, conv.dense_weight(), conv.bias, padding=1)
    torch.testing.assert_close(conv(image), expected, atol=1e-5, rtol=1e-5)


def test_non_contiguous_inputs() -> None:
    for layout in LAYOUTS:
        linear = SparseLinear(16, 8, 0.5, blocks=4, layout=layout, dtype=DOUBLE)
        x = drawn(16, 5).T
        torch.testing.assert_close(linear(x), F.linear(x, linear.dense_weight(), linear.bias))
        conv = SparseConv2d(16, 8, 3, 0.5, blocks=4, layout=layout, dtype=DOUBLE)
        image = drawn(2, 6, 6, 16).permute(0, 3, 1, 2)
        torch.testing.assert_close(conv(image), F.conv2d(image, conv.dense_weight(), conv.bias))


def test_only_the_weights_are_stored() -> None:
    linear = SparseLinear(64, 32, 0.25, bias=False)
    assert [p.numel() for p in linear.parameters()] == [64 * 32 // 4]
    assert set(linear.state_dict()) == {"weight", "_extra_state"}
    conv = SparseConv2d(64, 32, 3, 0.25, groups=2)
    assert {n: p.numel() for n, p in conv.named_parameters()} == {"weight": 2 * 32 * 16 * 9 // 4, "bias": 32}
    assert conv.weight.shape == (32, 8, 3, 3)
    assert linear.weight.shape == (4, 16, 8)


def test_a_wrong_number_of_features_is_refused() -> None:
    for layout in LAYOUTS:
        layer = SparseLinear(8, 8, 0.5, layout=layout)
        for wrong in (16, 4, 9):
            with pytest.raises((RuntimeError, ValueError)):
                layer(torch.zeros(3, wrong))


@pytest.mark.parametrize("joined", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_number_of_channels_is_refused(layout: Any, joined: int) -> None:
    """Twice the channels must not pass as twice the batch."""
    layer = SparseConv2d(8, 8, 3, Fraction(joined, 4), blocks=4, layout=layout)
    for wrong in (16, 4, 9):
        with pytest.raises((RuntimeError, ValueError)):
            layer(torch.zeros(2, wrong, 5, 5))


def linear(**changes: Any) -> SparseLinear:
    return SparseLinear(**{"in_features": 32, "out_features": 32, "density": 0.25, "blocks": 8, **changes})


def conv(**changes: Any) -> SparseConv2d:
    start = {"in_channels": 32, "out_channels": 32, "kernel_size": 3, "density": 0.25, "blocks": 8}
    return SparseConv2d(**{**start, **changes})


INPUTS = {linear: torch.randn(2, 32), conv: torch.randn(2, 32, 5, 5)}


@pytest.mark.parametrize("make", [linear, conv])
def test_a_checkpoint_goes_round(make: Any, tmp_path: Path) -> None:
    layer, other = make(), make()
    x = INPUTS[make]
    assert not torch.equal(layer(x), other(x))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("make", [linear, conv])
def test_every_state_is_a_tensor(make: Any) -> None:
    """So that safetensors takes it."""
    assert all(isinstance(v, Tensor) for v in make().state_dict().values())


@pytest.mark.parametrize("make", [linear, conv])
def test_copies_are_equal_and_independent(make: Any) -> None:
    layer, x = make(layout="strided"), INPUTS[make]
    expected = layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    whole = torch.load(buffer, weights_only=False)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), whole):
        assert torch.equal(twin(x), expected)
        assert twin.pattern == layer.pattern
        with torch.no_grad():
            twin.weight.add_(1)
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("change", [{"seed": 1}, {"layout": "strided"}])
def test_a_checkpoint_of_another_pattern_is_refused(make: Any, change: dict[str, Any]) -> None:
    state = make(**change).state_dict()
    with pytest.raises(PatternError, match=r"the checkpoint's pattern is .*this layer's is .*recipe"):
        make().load_state_dict(state)


@pytest.mark.parametrize(("density", "fan_in"), [(1 / 16, 32), (0.25, 128), (1, 512)])
def test_weights_start_by_the_true_fan_in(density: float, fan_in: int) -> None:
    torch.manual_seed(0)
    layer = SparseLinear(512, 512, density)
    bound = 1 / math.sqrt(fan_in)
    for values in (layer.weight, layer.bias):
        assert values is not None
        assert 0.97 * bound < values.abs().max().item() <= bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_kernels_start_by_the_true_fan_in() -> None:
    torch.manual_seed(0)
    layer = SparseConv2d(64, 128, (3, 5), 0.25, groups=2)
    bound = 1 / math.sqrt(32 // 4 * 15)
    for values in (layer.weight, layer.bias):
        assert values is not None
        assert 0.97 * bound < values.abs().max().item() <= bound


def test_a_seed_gives_the_pattern_and_torch_the_weights() -> None:
    torch.manual_seed(1)
    a = linear(seed=4)
    torch.manual_seed(1)
    b = linear(seed=4)
    assert a.pattern == b.pattern
    assert torch.equal(a.weight, b.weight)


def test_a_pattern_object_counts_with_its_own_numbers() -> None:
    pattern = BlockPattern(32, 16, 3, 8, "strided", seed=2)
    layer = SparseLinear(32, 16, 0.9, pattern=pattern)
    assert layer.pattern is pattern
    with pytest.raises(ConfigError, match="joins 32→16 neurons, the layer 16→16"):
        SparseLinear(16, 16, 0.5, pattern=pattern)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(DensityError, match="Possible: 1"):
        SparseLinear(7, 10, 0.5)
    with pytest.raises(DensityError, match="groups=3 does not divide 8 and 6"):
        SparseConv2d(8, 6, 3, 0.5, groups=3)
    with pytest.raises(DensityError, match="groups=0"):
        SparseConv2d(8, 6, 3, 0.5, groups=0)
    with pytest.raises(ConfigError, match="unknown pattern 'magic'"):
        SparseLinear(8, 8, 0.5, pattern="magic")
    with pytest.raises(ConfigError, match="layout must be one of"):
        SparseLinear(8, 8, 0.5, layout="zigzag")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='"same" or "valid", not \'full\''):
        SparseConv2d(8, 8, 3, 0.5, padding="full")


@pytest.mark.parametrize("wrong", [{"padding_mode": "mirror"}, {"padding": "same", "stride": 2}], ids=str)
def test_what_a_dense_convolution_refuses_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"padding|stride"):
        nn.Conv2d(8, 8, 3, **wrong)
    with pytest.raises(ConfigError, match=r"padding|stride"):
        SparseConv2d(8, 8, 3, 0.5, **wrong)


def test_layers_print_what_they_are() -> None:
    shown = "SparseLinear(32, 32, density=1/4, blocks=8, layout=contiguous, bias=True)"
    assert repr(linear()) == shown
    assert "groups=1, density=1/4, blocks=8, layout=strided" in repr(conv(layout="strided"))


def test_device_and_dtype_are_passed_on() -> None:
    layer = SparseLinear(16, 16, 0.25, device="meta", dtype=torch.float16)
    assert layer.weight.device.type == "meta"
    assert layer.weight.dtype == torch.float16
    assert layer.joins.device.type == "meta"
