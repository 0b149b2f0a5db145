from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from offramp.bundle.blocked import keep_blocks
from offramp.bundle.partition import graph_cost, partition

SIDE = 5


def residual_run(channels: int = 16, *, blocks: int = 3, rank: int = 4, joined: str = "Add") -> ModelProto:
    """x → relu(x + conv(x)) → … three times; the last sum is called `y`, those before `s0` and `s1`."""
    rng = np.random.default_rng(0)
    places = [SIDE] * (rank - 2)
    nodes, weights, x = [], [], "x"
    for i in range(blocks):
        kernel = rng.normal(size=(channels, channels, *[3] * (rank - 2))).astype(np.float32) / channels
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        last = i == blocks - 1
        nodes += [
            helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], pads=[1] * 2 * (rank - 2)),
            helper.make_node(joined, [f"c{i}", x], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], ["y" if last else f"s{i}"]),
        ]
        x = f"s{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, *places]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def optimised(model: ModelProto, path: Path) -> list[str]:
    """What ONNX Runtime makes of a model: the operators it runs, those in blocks as "nchwc:Conv"."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options)
    nodes = onnx.load(path).graph.node
    return [("nchwc:" if n.domain == "com.microsoft.nchwc" else "") + n.op_type for n in nodes]


def pools(model: ModelProto) -> list[tuple[str, str]]:
    return [(n.input[0], n.output[0]) for n in model.graph.node if n.op_type == "MaxPool"]


def test_what_crosses_a_cut_in_a_run_of_residual_blocks_is_pooled_once() -> None:
    first, second = partition(residual_run(), [["s0"]], [None], final="y").stages
    assert pools(first) == [("x", "x_blocked")]
    assert pools(second) == [("s0", "s0_blocked")]
    readers = [n.op_type for n in second.graph.node if "s0" in n.input]
    assert readers == ["MaxPool"]  # the convolution and the sum read its result


def test_the_chain_is_the_whole_graph_to_the_bit() -> None:
    model = residual_run()
    stages = partition(model, [["s0"], ["s1"]], [None, None], final="y").stages
    x = np.random.default_rng(1).normal(size=(2, 16, SIDE, SIDE)).astype(np.float32)
    tensor = x
    for stage in stages:
        onnx.checker.check_model(stage, full_check=True)
        tensor = run(stage, tensor)
    assert np.array_equal(tensor, run(partition(model, [], [], final="y").stages[0], x))
    np.testing.assert_allclose(tensor, run(model, x), atol=1e-5)


def test_every_sum_is_fused_where_the_runtime_has_blocks(tmp_path: Path) -> None:
    model = residual_run()
    without = optimised(model, tmp_path / "without.onnx")
    if "nchwc:Conv" not in without:
        pytest.skip("this processor's convolutions do not run in blocks")
    assert without.count("Add") == 3
    keep_blocks(model.graph)
    found = optimised(model, tmp_path / "with.onnx")
    assert "Add" not in found
    assert found.count("nchwc:ReorderInput") == 1


def test_work_and_weights_are_counted_as_before() -> None:
    model = residual_run()
    before = graph_cost(model)
    keep_blocks(model.graph)
    assert pools(model)
    assert graph_cost(model) == before


@pytest.mark.parametrize(
    "model",
    [residual_run(24), residual_run(16, rank=3), residual_run(16, joined="Mul"), residual_run(3)],
    ids=["no whole blocks", "no maps", "no sum", "an image"],
)
def test_what_would_gain_nothing_stays(model: ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    keep_blocks(model.graph)
    assert model.SerializeToString(deterministic=True) == before


def test_a_sum_without_a_convolution_stays() -> None:
    model = residual_run()
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.op_type = "Custom"
    keep_blocks(model.graph)
    assert pools(model) == []


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    model = residual_run()
    for node in model.graph.node:
        node.output[0] = node.output[0].replace("c0", "x_blocked")
        node.input[0] = node.input[0].replace("c0", "x_blocked")
    keep_blocks(model.graph)
    assert pools(model) == [("x", "x_blocked_blocked")]
    x = np.ones((1, 16, SIDE, SIDE), np.float32)
    assert np.array_equal(run(model, x), run(_kept(), x))


def _kept() -> ModelProto:
    model = residual_run()
    keep_blocks(model.graph)
    return model


@pytest.mark.parametrize("batch", [1, 3])
def test_a_maximum_of_one_changes_no_bit(batch: int) -> None:
    value = helper.make_tensor_value_info
    shape = ["N", 16, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[1, 1])],
        "g",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    bits = np.random.default_rng(2).integers(0, 2**32, size=(batch, 16, 4, 4), dtype=np.uint32)
    x = bits.view(np.float32)
    x[~np.isfinite(x)] = -0.0
    x[0, 0, 0] = [3.4e38, -3.4e38, 1e-45, -1e-45]
    assert np.array_equal(run(model, x).view(np.uint32), x.view(np.uint32))
