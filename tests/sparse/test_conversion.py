"""`from_dense` and `to_dense`: values where the pattern joins, and everything else that a layer carries."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from offramp.errors import ConfigError, InputError
from offramp.sparse.block import BlockPattern
from offramp.sparse.convolution import SparseConv1d, SparseConv2d
from offramp.sparse.layers import SparseLayer, SparseLinear
from offramp.sparse.registry import make_pattern

KINDS: dict[type[nn.Module], Any] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}


def test_there_and_back(case: Any) -> None:
    layer = case.make()
    again = type(layer).from_dense(layer.to_dense(), layer.pattern)
    assert type(again) is type(layer)
    assert again.pattern == layer.pattern
    assert torch.equal(again.weight, layer.weight)
    assert torch.equal(again.bias, layer.bias)
    assert torch.equal(again(case.inputs()), layer(case.inputs()))


def test_what_the_pattern_does_not_join_is_dropped(case: Any) -> None:
    layer = case.make()
    dense = copy.deepcopy(layer.to_dense())
    nn.init.normal_(dense.weight)
    pruned = type(layer).from_dense(dense, layer.pattern).to_dense()
    mask = torch.from_numpy(layer.pattern.mask())
    mask = mask.reshape(*mask.shape, *[1] * (dense.weight.dim() - 2))
    assert torch.equal(pruned.weight, dense.weight * mask)
    assert torch.equal(pruned.bias, dense.bias)


@pytest.mark.parametrize(
    "changes", [{"bias": False}, {"dtype": torch.float64}, {"dtype": torch.bfloat16}], ids=str
)
def test_bias_and_dtype_are_kept(case: Any, changes: dict[str, Any]) -> None:
    layer = case.make(**changes)
    dense = layer.to_dense()
    again = type(layer).from_dense(dense, layer.pattern)
    for one in (dense, again):
        assert (one.bias is None) == (layer.bias is None)
        assert one.weight.dtype == layer.weight.dtype
    x = case.inputs(dtype=layer.weight.dtype)
    tolerance = 0.02 if layer.weight.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(layer(x), dense(x), rtol=tolerance, atol=tolerance)
    assert layer(x).dtype == layer.weight.dtype


def test_training_flag_and_requires_grad_are_kept(case: Any) -> None:
    layer = case.make()
    assert layer.training
    dense = layer.eval().to_dense()
    assert not dense.training
    dense.weight.requires_grad_(False)
    assert dense.bias is not None
    dense.bias.requires_grad_(False)
    again = type(layer).from_dense(dense, layer.pattern)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    dense.bias.requires_grad_(True)
    frozen = type(layer).from_dense(dense, layer.pattern)
    assert [p.requires_grad for p in (frozen.weight, frozen.bias)] == [False, True]
    assert not frozen.to_dense().weight.requires_grad


def test_the_device_is_kept(case: Any) -> None:
    layer = case.make(device="meta")
    dense = layer.to_dense()
    assert dense.weight.device.type == "meta"
    again = type(layer).from_dense(dense, layer.pattern)
    assert {t.device.type for t in (*again.parameters(), *again.buffers())} == {"meta"}
    assert layer(case.inputs().to("meta")).shape == case.make()(case.inputs()).shape


def test_a_copy_shares_nothing(case: Any) -> None:
    dense = case.make().to_dense()
    layer = type(case.make()).from_dense(dense, case.make().pattern)
    before = layer.weight.clone()
    with torch.no_grad():
        dense.weight.add_(1)
    assert torch.equal(layer.weight, before)


def test_settings_of_a_convolution_are_kept() -> None:
    rest: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    dense = nn.Conv2d(16, 24, (3, 2), padding_mode="circular", **rest)
    again = SparseConv2d.from_dense(dense, make_pattern("structured", 8, 12, 0.5)).to_dense()
    for name in ("kernel_size", "padding_mode", *rest):
        assert getattr(again, name) == getattr(dense, name)


@pytest.mark.parametrize("dense", [nn.Linear(16, 8), nn.Conv1d(16, 8, 3), nn.Conv2d(16, 8, 3)], ids=repr)
def test_a_pattern_of_another_size_is_refused(dense: nn.Module) -> None:
    with pytest.raises(ConfigError, match="joins 8→16 neurons, the layer 16→8"):
        KINDS[type(dense)].from_dense(dense, BlockPattern(8, 16, 1, 4))


def test_the_size_of_one_group_counts() -> None:
    with pytest.raises(ConfigError, match="joins 16→8 neurons, the layer 8→4"):
        SparseConv2d.from_dense(nn.Conv2d(16, 8, 3, groups=2), BlockPattern(16, 8, 1, 4))


def test_exactly_as_many_parameters_as_connections(case: Any) -> None:
    layer = case.make(bias=False)
    (weight,) = layer.parameters()
    places = math.prod(getattr(layer, "kernel_size", ()))
    assert weight.numel() == layer.pattern.weights * places
    assert int((layer.dense_weight() != 0).sum()) == weight.numel()


def test_every_pattern_starts_by_the_true_fan_in(case: Any) -> None:
    torch.manual_seed(0)
    layer = case.make()
    fan_in = layer.pattern.d_in * math.prod(getattr(layer, "kernel_size", ()))
    assert layer.fan_in == fan_in
    assert int((layer.dense_weight()[0] != 0).sum()) == fan_in
    bound = 1 / math.sqrt(fan_in)
    largest = layer.weight.abs().max().item()
    assert 0.9 * bound < largest <= bound
    assert layer.bias.abs().max().item() <= bound
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    name=st.sampled_from(["structured", "clash_free"]),
    sides=st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4)),
    batch=st.sampled_from([(), (3,), (2, 3), (0,), (2, 0, 2), (1, 2, 1, 2)]),
    bias=st.booleans(),
    data=st.data(),
)
def test_linear_equals_the_dense_layer(
    name: str, sides: tuple[int, int, int], batch: tuple[int, ...], bias: bool, data: st.DataObject
) -> None:
    """Values and gradients, for the patterns that test_layers.py leaves out; any number of leading dimensions."""
    g, m, n = sides
    joined = data.draw(st.integers(1, g))
    pattern = make_pattern(name, g * m, g * n, joined / g, seed=joined)
    layer = SparseLinear(g * m, g * n, 1, pattern=pattern, bias=bias, dtype=torch.float64)
    dense = layer.to_dense()
    generator = torch.Generator().manual_seed(joined)
    x = torch.randn(*batch, g * m, dtype=torch.float64, generator=generator)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [one(i) for one, i in zip((layer, dense), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1])
    for out in outputs:
        (out * out).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(stored(layer), dense.weight.grad * torch.from_numpy(pattern.mask()))
    if bias:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def stored(layer: SparseLayer) -> Tensor:
    """The gradient of a layer of one row per right neuron, at its places."""
    dense = torch.zeros(layer.pattern.n_right, layer.pattern.n_left, dtype=torch.float64)
    assert layer.weight.grad is not None
    for right, joined in enumerate(layer.pattern.left_of.tolist()):
        for i, left in enumerate(joined):
            dense[right, left] = layer.weight.grad[right, i]
    return dense


def test_a_linear_layer_takes_any_leading_dimensions(pattern_settings: dict[str, Any]) -> None:
    layer = SparseLinear(32, 16, **pattern_settings)
    x = torch.randn(2, 3, 1, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), F.linear(x, layer.dense_weight(), layer.bias))
    torch.testing.assert_close(layer(x)[1, 2, 0], layer(x[1, 2, 0]))
    with pytest.raises(InputError, match=r"expected \(\.\.\., 32\) features, got shape \(2, 31\)"):
        layer(torch.zeros(2, 31))
