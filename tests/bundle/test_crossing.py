"""What crosses a cut besides the tensor that is tapped."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto
from onnx_graphs import Builder, encoder, value

from offramp.bundle.crossing import crossings, made_of_inputs
from offramp.bundle.dataflow import Dataflow
from offramp.bundle.onnxload import prepared
from offramp.bundle.partition import partition
from offramp.bundle.shapes import session
from offramp.errors import ExportError

TEXT = {"ids": np.arange(12).reshape(2, 6), "mask": np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])}


def test_made_of_inputs_without_products_and_tables() -> None:
    model = prepared(encoder())
    flow = Dataflow(model)
    found = made_of_inputs(flow)
    mask = {name for name, sources in found.items() if sources == {"mask"}}
    assert mask == {"mask", "cast_0", "sub_1", "mul_2", "unsqueeze_3"}
    assert {name for name, sources in found.items() if "ids" in sources} == {"ids"}  # an embedding is a table


def test_a_mask_made_ready_once_crosses_as_it_came() -> None:
    model = prepared(encoder())
    norms = [n.output[0] for n in model.graph.node if n.op_type == "LayerNormalization"]
    final = model.graph.output[0].name
    cuts = crossings(Dataflow(model), norms, norms, final)
    assert cuts == [[norms[0], "mask"], [norms[1]]]
    pieces = partition(model, cuts, [None, None], final=final, bundle_names=True)
    ends = [[v.name for v in stage.graph.input] for stage in pieces.stages]
    assert ends == [["ids", "mask"], ["cut_0_0", "cut_0_1"], ["cut_1"]]
    tensors = list(TEXT.values())
    for stage in pieces.stages:
        feed = {v.name: x for v, x in zip(stage.graph.input, tensors, strict=True)}
        tensors = session(stage).run(None, feed)
    np.testing.assert_allclose(tensors[0], session(model).run(None, TEXT)[0], atol=1e-6)


def towers() -> ModelProto:
    """Two branches, each from its own input, that meet at the end; the first has a skip."""
    b = Builder()
    left = b.add("MatMul", "left", b.weight(4, 4))
    top = b.add("Add", b.add("MatMul", left, b.weight(4, 4)), left)
    right = b.add("MatMul", "right", b.weight(5, 4))
    both = b.add("Add", top, b.add("Relu", right))
    out = b.add("MatMul", both, b.weight(4, 3))
    return prepared(b.model([value("left", "N", 4), value("right", "N", 5)], [value(out, "N", 3)]))


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        (["matmul_1"], [["matmul_1", "right", "matmul_0"]]),
        (["add_2"], [["add_2", "right"]]),
        (["matmul_3"], [["matmul_3", "left"]]),
        # A tap beside the one before it: what the earlier one found out is handed on.
        (["matmul_3", "add_2"], [["matmul_3", "left"], ["add_2", "matmul_3"]]),
        (["add_2", "matmul_3"], [["add_2", "right"], ["matmul_3", "add_2"]]),
        (["add_2", "add_5"], [["add_2", "right"], ["add_5"]]),
    ],
)
def test_other_inputs_and_skips_cross_too(taps: list[str], expected: list[list[str]]) -> None:
    model = towers()
    final = model.graph.output[0].name
    cuts = crossings(Dataflow(model), taps, taps, final)
    assert cuts == expected
    pieces = partition(model, cuts, [None] * len(cuts), final=final, bundle_names=True)
    rng = np.random.default_rng(0)
    feed = {"left": rng.random((3, 4), np.float32), "right": rng.random((3, 5), np.float32)}
    tensors = list(feed.values())
    for stage in pieces.stages:
        tensors = session(stage).run(None, {v.name: x for v, x in zip(stage.graph.input, tensors, strict=True)})
    np.testing.assert_allclose(tensors[0], session(model).run(None, feed)[0], atol=1e-6)


def test_an_exit_may_need_an_input() -> None:
    b = Builder()
    x = b.add("MatMul", "x", b.weight(4, 4))
    early = b.add("Mul", x, "weights")
    out = b.add("MatMul", x, b.weight(4, 4))
    model = prepared(
        b.model([value("x", "N", 4), value("weights", "N", 4)], [value(early, "N", 4), value(out, "N", 4)])
    )
    assert crossings(Dataflow(model), [x], [early], out) == [[x, "weights"]]


def test_work_is_not_repeated() -> None:
    """Even where every input crosses, so that all could be made anew behind the cut."""
    model = prepared(encoder())
    first = {node.op_type: node.output[0] for node in reversed(model.graph.node)}
    norm, mixed = first["LayerNormalization"], first["Softmax"]
    with pytest.raises(ExportError, match=f"stage 1 needs the tensor '{mixed}' besides ids, mask, {norm}"):
        partition(model, [["ids", "mask", norm]], [None], final=mixed)


def test_a_bool_crosses_as_it_is() -> None:
    b = Builder()
    kept = b.add("Cast", b.add("Not", "drop"), to=TensorProto.FLOAT)
    x = b.add("Mul", b.add("MatMul", "x", b.weight(4, 4)), kept)
    out = b.add("Mul", b.add("MatMul", x, b.weight(4, 4)), kept)
    inputs = [value("x", "N", 4), value("drop", "N", 4, kind=TensorProto.BOOL)]
    model = prepared(b.model(inputs, [value(out, "N", 4)]))
    assert crossings(Dataflow(model), [x], [x], out) == [[x, "drop"]]
