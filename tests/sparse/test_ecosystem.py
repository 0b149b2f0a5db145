"""Layers go through torch's own machinery like dense ones: compile, export, autocast, devices, optimisers."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import nn

from offramp.sparse.convolution import SparseConv2d
from offramp.sparse.layers import SparseLinear


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled() -> None:
    """Values and gradients of a network of several kinds of layers, in one graph without breaks."""
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseConv2d(16, 16, 3, 0.5, blocks=4, layout="strided", seed=1),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(64, 32, 0.5, blocks=4, layout="strided", seed=1),
        SparseLinear(32, 16, 0.25, pattern="structured"),
    )
    x = torch.randn(3, 16, 4, 4)
    expected = model(x)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch._dynamo.reset()
    out = torch.compile(model, fullgraph=True)(x)
    out.square().sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_exported_with_any_batch(case: Any, strict: bool) -> None:
    layer = case.make().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (case.inputs(2),), dynamic_shapes=({0: batch},), strict=strict)
    for n in (1, 5):
        torch.testing.assert_close(program.module()(case.inputs(n)), layer(case.inputs(n)))


def test_autocast_gives_what_a_dense_layer_gives(case: Any) -> None:
    layer = case.make()
    dense = layer.to_dense()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = layer(case.inputs()), dense(case.inputs())
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.isfinite().all()


def test_casts_leave_the_joins_alone(case: Any) -> None:
    layer = case.make()
    joins = layer.joins.clone()
    for cast in (layer.double, layer.bfloat16, layer.float, layer.share_memory):
        cast()
        assert torch.equal(layer.joins, joins)
        assert layer.joins.dtype == joins.dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(case: Any) -> None:
    layer = case.make()
    expected = layer(case.inputs())
    on_gpu = layer.to("cuda")
    assert {t.device.type for t in (*on_gpu.parameters(), *on_gpu.buffers())} == {"cuda"}
    torch.testing.assert_close(on_gpu(case.inputs().cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    on_gpu(case.inputs().cuda()).sum().backward()
    other = case.make(device="cuda")
    other.load_state_dict(on_gpu.state_dict())
    assert torch.equal(other(case.inputs().cuda()), on_gpu(case.inputs().cuda()))


def test_functional_calls_and_vmap(case: Any) -> None:
    layer, x = case.make(), case.inputs()
    values = {name: p.detach() * 2 for name, p in layer.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(layer, values, (x,)), 2 * layer(x))
    torch.testing.assert_close(torch.func.vmap(layer)(torch.stack([x, -x]))[0], layer(x))


def test_training_lowers_the_loss(case: Any) -> None:
    torch.manual_seed(0)
    layer, x = case.make(), case.inputs(16)
    target = case.make()(x).detach()
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (layer(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert int((layer.dense_weight() != 0).sum()) <= layer.weight.numel()


def test_gradients_are_right_by_finite_differences(case: Any) -> None:
    layer = case.make(dtype=torch.float64)
    weight = layer.weight.detach()[..., :1].clone().requires_grad_()

    def first_column(values: torch.Tensor) -> torch.Tensor:
        full = torch.cat([values, layer.weight.detach()[..., 1:]], dim=-1)
        return torch.func.functional_call(layer, {"weight": full}, (case.inputs(1, torch.float64),))

    assert torch.autograd.gradcheck(first_column, weight, fast_mode=True)
