"""Gathers as cheaper data movement: the same bits from other operations."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_graphs import outputs
from torch import nn

import offramp as off
from offramp.bundle.export import export_graph
from offramp.bundle.lower import Rows, lower_gathers
from offramp.sparse.block import BlockPattern

OPSET = 18
Array = NDArray[Any]

#: The operations of every form.
TURNED = ["Reshape", "Transpose", "Reshape"]
TAKEN = ["Reshape", "Gather", "Reshape"]
BOTH = ["Reshape", "Transpose", "Gather", "Reshape"]
TABLES = ["Reshape", "Transpose", "Reshape", "Gather", "Reshape"]
AS_IT_WAS = ["Gather"]


def operations(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def graph(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    x: tuple[int | str, ...],
    y: dict[str, tuple[int | str, ...]],
    elements: int = TensorProto.FLOAT,
) -> ModelProto:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", elements, x)],
        [helper.make_tensor_value_info(name, elements, shape) for name, shape in y.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def gather(index: Array, x: tuple[int | str, ...], axis: int = -1, **how: Any) -> ModelProto:
    """A model that is one gather."""
    y = list(x)
    y[axis] = len(index)
    node = helper.make_node("Gather", ["x", "index"], ["y"], axis=axis)
    return graph([node], {"index": index.astype(np.int64)}, x, {"y": tuple(y)}, **how)


def lowered(model: ModelProto, *batches: tuple[int, ...]) -> ModelProto:
    """A copy, lowered; checked to be valid, to keep its outputs' names, and to give the same bits."""
    changed = ir.from_proto(model)
    count = lower_gathers(changed)
    after = ir.to_proto(changed)
    onnx.checker.check_model(after, full_check=True)
    assert (count > 0) == (operations(after) != operations(model))
    assert [o.name for o in after.graph.output] == [o.name for o in model.graph.output]
    assert {t.name for t in after.graph.initializer} <= {name for node in after.graph.node for name in node.input}
    names = [name for node in after.graph.node for name in node.output] + [t.name for t in after.graph.initializer]
    assert len(set(names)) == len(names)
    dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    for shape in batches:
        x = (100 * np.random.RandomState(1).randn(*shape)).astype(dtype)
        for old, new in zip(outputs(model, x), outputs(after, x), strict=True):
            np.testing.assert_array_equal(new, old, strict=True)
    return after


# --- one list at a time ---------------------------------------------------------------------------------

N, G = 24, 4
STRIDED = np.arange(N).reshape(-1, G).T
BLOCKS = np.arange(N).reshape(G, -1)
#: By half, block, and place in the block.
HALVES = np.arange(N).reshape(2, -1, 4).swapaxes(1, 2)
LISTS: dict[str, tuple[Array, list[str]]] = {
    "strided": (STRIDED, TURNED),
    "back from strided": (np.argsort(STRIDED.ravel()), TURNED),
    "from the end": (STRIDED - N, TURNED),
    "strided in every half": (HALVES, TURNED),
    "joined blocks": (BLOCKS[[0, 2, 1, 3, 0, 1, 2, 3]], TAKEN),
    "fewer blocks": (BLOCKS[[3, 1]], TAKEN),
    "a slice": (np.arange(8, 20), TAKEN),
    "strided joined blocks": (STRIDED[[0, 2, 1, 3, 0, 1, 2, 3]], BOTH),
    "strided blocks in another order": (STRIDED[[2, 0, 3, 1]], BOTH),
    "strided blocks of two halves in turn": (HALVES.swapaxes(0, 1), TURNED),
    "strided joined blocks in every half": (HALVES[:, [0, 2, 1, 3, 0, 1, 2, 3]], TABLES),
    "strided, then by another number": (np.argsort(np.arange(N).reshape(-1, 2).T.ravel())[STRIDED], TURNED),
    "nothing to do": (np.arange(N), ["Reshape"]),
    "pairs": (np.array([8, 9, 0, 1, 22, 23, 0, 1]), TAKEN),
    "no structure": (np.random.RandomState(0).permutation(N), AS_IT_WAS),
    "rows between the places of rows": (np.arange(1, 23), AS_IT_WAS),
    "backwards": (np.arange(N)[::-1], AS_IT_WAS),
    "one again and again": (np.zeros(N), AS_IT_WAS),
    "one": (np.array([5]), AS_IT_WAS),
    "none": (np.zeros(0), AS_IT_WAS),
    "every fourth": (np.arange(0, N, 4), AS_IT_WAS),
}  # fmt: skip


@pytest.mark.parametrize(("index", "expected"), LISTS.values(), ids=LISTS)
def test_a_list_becomes_the_form_of_its_structure(index: Array, expected: list[str]) -> None:
    assert operations(lowered(gather(index.ravel(), ("N", N)), (1, N), (5, N))) == expected


@pytest.mark.parametrize("shape", [(), ("N",), ("N", 3), ("N", "T"), (2, "T", 3), (3,)])
@pytest.mark.parametrize("name", ["strided", "strided joined blocks", "strided joined blocks in every half"])
def test_leading_axes_stay_whatever_their_sizes(name: str, shape: tuple[int | str, ...]) -> None:
    index, expected = LISTS[name]
    sizes = [tuple(n if isinstance(size, str) else size for size in shape) for n in (0, 1, 4)]
    model = gather(index.ravel(), (*shape, N), axis=len(shape))
    assert operations(lowered(model, *[(*size, N) for size in sizes])) == expected


@pytest.mark.parametrize("elements", [TensorProto.FLOAT16, TensorProto.INT64, TensorProto.UINT8])
def test_any_type_of_values(elements: int) -> None:
    assert operations(lowered(gather(STRIDED.ravel(), ("N", N), elements=elements), (3, N))) == TURNED


@pytest.mark.parametrize(("axis", "x"), [(1, ("N", N, 3, 3)), (1, ("N", N, 1)), (0, (N, 5))])
def test_another_axis_is_left_alone(axis: int, x: tuple[int | str, ...]) -> None:
    model = gather(STRIDED.ravel(), x, axis=axis)
    assert operations(lowered(model, tuple(2 if isinstance(size, str) else size for size in x))) == AS_IT_WAS


def test_the_longest_rows_are_taken() -> None:
    index = np.arange(N).reshape(3, 8)[[2, 0]].ravel()  # rows of 2 and 4 would do as well
    found = Rows.of(index, N)
    assert found is not None
    assert (found.width, found.step, found.order.tolist()) == (8, 1, [2, 0])
    found = Rows.of(STRIDED[[1, 0, 3, 2]].ravel(), N)
    assert found is not None
    assert (found.width, found.step, found.order.tolist()) == (N // G, G, [1, 0, 3, 2])


def test_outputs_between_keep_their_names_and_readers_theirs() -> None:
    index = STRIDED.ravel()
    nodes = [
        helper.make_node("Gather", ["x", "index"], ["cut_0"], axis=-1),
        helper.make_node("Relu", ["cut_0"], ["r"]),
        helper.make_node("Gather", ["r", "back"], ["g"], axis=1),
        helper.make_node("Add", ["g", "cut_0"], ["exit_0"]),
    ]
    constants = {"index": index, "back": np.argsort(index)}
    shape: tuple[int | str, ...] = ("N", N)
    after = lowered(graph(nodes, constants, shape, dict.fromkeys(("cut_0", "exit_0"), shape)), (3, N))
    assert operations(after) == [*TURNED, "Relu", *TURNED, "Add"]


def test_layers_of_one_size_share_their_constants() -> None:
    index = STRIDED.ravel()
    nodes = [
        helper.make_node("Gather", ["x", "index"], ["a"], axis=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gather", ["b", "index"], ["y"], axis=1),
    ]
    after = lowered(graph(nodes, {"index": index}, ("N", N), {"y": ("N", N)}), (3, N))
    assert len(after.graph.initializer) == 2


def test_a_source_of_unknown_size_is_left_alone() -> None:
    model = gather(STRIDED.ravel(), ("N", "C"))
    assert operations(lowered(model, (2, N))) == AS_IT_WAS


# --- layers ---------------------------------------------------------------------------------------------


def layer_graph(pattern: BlockPattern, leading: tuple[int | str, ...], rng: np.random.RandomState) -> ModelProto:
    """What `SparseLinear` writes during an export: a gather, one product per block, a gather, the bias."""
    p = pattern
    constants: dict[str, Array] = {
        "left": p.left_of[:: p.n_right // p.blocks].ravel(),
        "right": p.right_order.argsort(),
        "bias": rng.randn(p.n_right).astype(np.float32),
    }
    parts = [f"part{i}" for i in range(p.blocks)]
    products = [f"product{i}" for i in range(p.blocks)]
    nodes = [
        helper.make_node("Gather", ["x", "left"], ["g"], axis=-1),
        helper.make_node("Split", ["g"], parts, axis=-1, num_outputs=p.blocks),
    ]
    for part, product in zip(parts, products, strict=True):
        constants[f"weight.{part}"] = rng.randn(p.d_in, p.n_right // p.blocks).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [part, f"weight.{part}"], [product]))
    nodes += [
        helper.make_node("Concat", products, ["c"], axis=-1),
        helper.make_node("Gather", ["c", "right"], ["o"], axis=-1),
        helper.make_node("Add", ["o", "bias"], ["y"]),
    ]
    return graph(nodes, constants, (*leading, p.n_left), {"y": (*leading, p.n_right)})


def test_random_layers_give_the_same_bits() -> None:
    rng = np.random.RandomState(0)
    left = 0
    for seed in range(40):
        blocks = int(rng.choice([2, 3, 4, 8]))
        n_left, n_right = (blocks * int(rng.randint(2, 9)) for _ in range(2))
        joined = int(rng.randint(1, min(3, blocks) + 1))
        layout: Any = ["contiguous", "strided"][rng.randint(2)]
        pattern = BlockPattern(n_left, n_right, joined, blocks, layout, seed)
        leading: tuple[int | str, ...] = [("N",), ("N", 3), ("N", "T")][rng.randint(3)]
        sizes = [tuple(n if isinstance(size, str) else size for size in leading) for n in (1, 5)]
        after = lowered(layer_graph(pattern, leading, rng), *[(*size, n_left) for size in sizes])
        for node in after.graph.node:
            if node.op_type == "Gather":  # what is left takes whole rows
                assert helper.get_node_attr_value(node, "axis") == len(leading)
                assert node.input[1].endswith(".rows")
                left += 1
    assert left > 10


@pytest.mark.parametrize(
    ("density", "layout", "expected"),
    [
        (Fraction(3, 8), "strided", {"Transpose": 2, "Gather": 1}),
        (Fraction(1, 4), "strided", {"Transpose": 2, "Gather": 0}),
        (Fraction(3, 8), "contiguous", {"Transpose": 0, "Gather": 1}),
    ],
)
def test_an_exported_network_transposes_instead(density: Fraction, layout: Any, expected: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ReLU(), off.SparseLinear(48, 64, density, layout=layout), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 5)
    )
    x = torch.randn(3, 48)
    net = off.MultiExit(model, {"0": nn.Identity()}, example_input=x).eval()
    exported = export_graph(net, x)
    assert [o.name for o in exported.graph.output] == ["cut_0", "exit_0", "exit_1"]
    # The cut before the layer and the normalisation after it keep folding from taking the gathers away.
    counts = Counter(operations(exported))
    assert {name: counts[name] for name in expected} == expected
    with torch.no_grad():
        expected_logits = net(x)[-1]
    for batch in (1, 3):
        np.testing.assert_allclose(outputs(exported, x[:batch].numpy())[-1], expected_logits[:batch], atol=1e-5)
