"""Every layer exports to standard ONNX operators, and computes the same in onnxruntime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from offramp.sparse.layers import SparseLinear

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def exported(layer: nn.Module, x: Tensor, path: Path) -> onnx.ModelProto:
    torch.onnx.export(
        layer.eval(),
        (x,),
        path,
        dynamo=True,
        opset_version=18,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    return onnx.load(path)


def run(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(np.asarray(out))


def test_standard_operators_and_equal_values_at_any_batch(case: Any, tmp_path: Path) -> None:
    layer = case.make()
    model = exported(layer, case.inputs(2), tmp_path / "layer.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [(o.domain, o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")] == [("", 18)]
    onnx.checker.check_model(model, full_check=True)
    for n in (1, 2, 5):
        expected = layer(case.inputs(n)).detach()
        torch.testing.assert_close(run(tmp_path / "layer.onnx", case.inputs(n)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize(("density", "blocks"), [(0.25, 4), (0.5, 8), (0.25, 16)])
def test_a_block_linear_layer_has_one_product_per_block(
    layout: Any, density: float, blocks: int, tmp_path: Path
) -> None:
    layer = SparseLinear(64, 64, density, blocks=blocks, layout=layout)
    operators = Counter(n.op_type for n in exported(layer, torch.zeros(2, 64), tmp_path / "l.onnx").graph.node)
    assert operators["MatMul"] == blocks
    assert operators["Gather"] <= 2


def test_more_blocks_than_products_still_compute_the_same(tmp_path: Path) -> None:
    layer = SparseLinear(64, 64, 0.25, blocks=32, layout="strided")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    exported(layer, x[:2], tmp_path / "l.onnx")
    torch.testing.assert_close(run(tmp_path / "l.onnx", x), layer(x).detach(), rtol=1e-5, atol=1e-5)


def test_leading_dimensions(tmp_path: Path) -> None:
    layer = SparseLinear(32, 32, 0.5, blocks=4, layout="strided")
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    exported(layer, x[:2], tmp_path / "l.onnx")
    torch.testing.assert_close(run(tmp_path / "l.onnx", x), layer(x).detach(), rtol=1e-5, atol=1e-5)


def test_files_shrink_with_the_density(tmp_path: Path) -> None:
    x = torch.zeros(2, 1024)
    exported(nn.Linear(1024, 1024), x, tmp_path / "dense.onnx")
    dense = (tmp_path / "dense.onnx").stat().st_size
    for layout in ("contiguous", "strided"):
        for density, blocks in ((0.25, 4), (0.25, 8)):
            exported(SparseLinear(1024, 1024, density, blocks=blocks, layout=layout), x, tmp_path / "s.onnx")
            assert (tmp_path / "s.onnx").stat().st_size <= 1.05 * density * dense
