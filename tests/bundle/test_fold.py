"""Folding at export: the same numbers from fewer operations, and the smallest file."""

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
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser, shape_inference
from onnx_graphs import outputs
from torch import Tensor, nn

import offramp as off
from offramp.bundle.export import export_graph, quiet_exporter
from offramp.bundle.fold import fold_gathers, fold_weights

OPSET = 18
Array = NDArray[Any]


def operations(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def folded(model: ModelProto) -> ModelProto:
    """A copy, folded; checked to be valid, to store nothing twice, and to give the same outputs."""
    changed = ir.from_proto(model)
    fold_weights(changed)
    live = operations(ir.to_proto(changed))["Gather"]
    removed = fold_gathers(changed)
    after = ir.to_proto(changed)
    onnx.checker.check_model(after, full_check=True)
    assert [o.name for o in after.graph.output] == [o.name for o in model.graph.output]
    assert live - operations(after)["Gather"] == removed >= 0
    read = {name for node in after.graph.node for name in node.input}
    assert read >= {t.name for t in after.graph.initializer}
    assert len({(tuple(t.dims), t.raw_data) for t in after.graph.initializer}) == len(after.graph.initializer)
    shape = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.RandomState(1).randn(*shape).astype(np.float32)
    for old, new in zip(outputs(model, x), outputs(after, x), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-6 * max(1, np.abs(old).max()))
    return after


# --- by hand: one rule at a time ------------------------------------------------------------------------

C, SIDE = 8, 4
_RNG = np.random.RandomState(0)
ORDER = np.array([3, 0, 6, 1, 7, 5, 2, 4])


def _normal(*shape: int) -> Array:
    return (_RNG.randn(*shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


#: What the graphs below may read.
CONSTANTS: dict[str, Array] = {
    "order": ORDER,
    "other": np.array([1, 2, 3, 4, 5, 6, 7, 0]),
    "back": np.argsort(ORDER),
    "negative": ORDER - C,
    "twice": np.repeat(ORDER, 2),
    "features": (ORDER[:, None] * SIDE**2 + np.arange(SIDE**2)).ravel(),
    "mixed": np.random.RandomState(2).permutation(C * SIDE**2),
    "w": _normal(C, C, 3, 3),
    "w2": _normal(C, C, 1, 1),
    "w3": _normal(C, C, 1, 1),
    "w16": _normal(C, 2 * C, 1, 1),
    "grouped": _normal(C, C // 2, 3, 3),
    "depthwise": _normal(C, 1, 3, 3),
    "widened": _normal(2 * C, 1, 3, 3),
    "bias": _normal(C),
    "bias16": _normal(2 * C),
    "var": np.abs(_normal(C)) + 1,
    "slope": _normal(C, 1, 1),
    "plane": _normal(SIDE, SIDE),
    "half": np.float32(0.5),
    "high": np.float32(0.7),
    "per_image": _normal(1, C, SIDE, SIDE),
    "left": _normal(C, 5),
    "right": _normal(5, C),
    "row": _normal(5),
    "flat": _normal(5, C * SIDE**2),
    "squares": np.array([2, 3]),
    "channels": np.array([1]),
    "rows": np.array([0, C * SIDE**2]),
    "planes": np.array([0, C, SIDE**2]),
    "shape4": np.array([0, C, SIDE, SIDE]),
    "tokens": np.array([0, SIDE**2, C]),
    "pads": np.array([0, 0, 1, 0, 0, 0, 0, 1]),
    "places": np.array([0, 1]),
    "place_axes": np.array([2, 3]),
    "place_pads": np.array([1, 0, 0, 1]),
    "size": np.array([C, C, 1, 1]),
    "index": np.tile(np.array([[0, 3]]), (C, 1)).reshape(C, 2, 1, 1),
    "kept": _normal(C, 2, 1, 1),
    "large": _normal(64, 65),
}


def graph(body: str, *extra: str, x: tuple[int, ...] = (C, SIDE, SIDE)) -> ModelProto:
    """A model from x to y (and more outputs), its nodes in ONNX's own notation."""
    text = f'<ir_version: 9, opset_import: ["" : {OPSET}]> g (float x) => (float y) {{ {body} }}'
    model = parser.parse_model(text)
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in CONSTANTS.items() if k in read)
    model.graph.ClearField("input")
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *x]))
    model.graph.ClearField("output")
    for name in ("y", *extra):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def gathers_left(body: str, *extra: str, x: tuple[int, ...] = (C, SIDE, SIDE)) -> int:
    return operations(folded(graph(body, *extra, x=x)))["Gather"]


ALONG = {
    **{
        name: f"b = {name} (a)"
        for name in ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Softplus", "HardSwish", "HardSigmoid", "Erf")
    },
    "Identity": "b = Identity (a)",
    "Clip": "b = Clip (a, half, high)",
    "Cast": "c = Cast <to = 11> (a) b = Cast <to = 1> (c)",
    "PRelu": "b = PRelu (a, slope)",
    "a scalar": "b = Mul (half, a)",
    "a plane": "b = Add (a, plane)",
    "per channel": "b = Sub (slope, a)",
    "per channel and place": "b = Mul (a, per_image)",
    "BatchNormalization": "b = BatchNormalization (a, bias, bias, bias, var)",
    "MaxPool": "b = MaxPool <kernel_shape = [2, 2]> (a)",
    "AveragePool": "b = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (a)",
    "GlobalAveragePool": "b = GlobalAveragePool (a)",
    "ReduceMean": "b = ReduceMean <keepdims = 1> (a, squares)",
    "Pad": "b = Pad (a, pads)",
    "Pad by axes": "b = Pad (a, place_pads, , place_axes)",
    "depthwise": "b = Conv <group = 8> (a, depthwise, bias)",
    "depthwise and back": "c = Conv <group = 8> (a, widened, bias16) d = MaxPool <kernel_shape = [1, 1]> (c)"
    "b = Conv (d, w16)",
    "Reshape": "c = Reshape (a, planes) b = Reshape (c, shape4)",
    "Transpose": "c = Transpose <perm = [0, 2, 3, 1]> (a) d = Tanh (c) b = Transpose <perm = [0, 3, 1, 2]> (d)",
    "SiLU": "c = Sigmoid (a) b = Mul (a, c)",
    "GELU": "c = Div (a, high) d = Erf (c) e = Add (d, half) f = Mul (half, e) b = Mul (a, f)",
    "squeeze and excite": "c = GlobalAveragePool (a) d = Conv (c, w2) e = Sigmoid (d) b = Mul (a, e)",
    "a residual of dense layers": "c = Conv (a, w2) d = Relu (c) b = Add (a, d)",
}


@pytest.mark.parametrize("along", ALONG.values(), ids=ALONG)
def test_an_order_moves_along_to_a_dense_convolution(along: str) -> None:
    assert gathers_left(f"a = Gather <axis = 1> (x, order) {along} y = Conv <pads = [1, 1, 1, 1]> (b, w)") == 0


@pytest.mark.parametrize("along", ALONG.values(), ids=ALONG)
def test_an_order_moves_back_to_a_dense_convolution(along: str) -> None:
    conv = "y = Conv <group = 2, pads = [1, 1, 1, 1]> (g, grouped)"
    assert gathers_left(f"a = Conv (x, w2, bias) {along} g = Gather <axis = 1> (b, order) {conv}") == 0


@pytest.mark.parametrize(
    "along",
    [
        "b = Flatten (a) y = Gemm <transB = 1> (b, flat, row)",
        "b = Reshape (a, rows) c = Relu (b) y = Gemm <transB = 1> (c, flat)",
        "b = GlobalAveragePool (a) c = Flatten (b) y = Gemm (c, left, row)",
        "b = ReduceMean <keepdims = 0> (a, squares) c = MatMul (b, left) y = Add (c, row)",
        "b = Reshape (a, planes) c = Transpose <perm = [0, 2, 1]> (b) y = MatMul (c, left)",
        "b = Reshape (a, planes) c = Transpose <perm = [0, 2, 1]> (b) d = ReduceMean <keepdims = 0> (c, channels)"
        "y = MatMul (d, left)",
    ],
    ids=["Flatten", "Reshape", "pooled", "MatMul", "tokens", "mean of tokens"],
)
def test_an_order_of_channels_becomes_one_of_features(along: str) -> None:
    assert gathers_left(f"a = Gather <axis = 1> (x, order) {along}") == 0


@pytest.mark.parametrize(
    "layer",
    [
        "a = Gemm (x, right, bias)",
        "a = Gemm <transB = 1> (x, left, half)",
        "m = MatMul (x, right) a = Add (bias, m)",
    ],
)
def test_an_order_moves_back_to_a_linear_layer(layer: str) -> None:
    assert gathers_left(f"{layer} b = Tanh (a) g = Gather <axis = -1> (b, order) y = Softmax (g)", x=(5,)) == 0


@pytest.mark.parametrize(("index", "left"), [("features", 0), ("mixed", 1)])
def test_an_order_of_features_moves_back_only_if_it_keeps_channels_whole(index: str, left: int) -> None:
    body = f"a = Conv (x, w2) b = Flatten (a) g = Gather <axis = 1> (b, {index}) y = Softmax (g)"
    assert gathers_left(body) == left


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Gather <axis = 1> (x, order) b = Gather <axis = 1> (a, back) y = Softmax (b)", 0),
        ("a = Gather <axis = 1> (x, negative) b = Gather <axis = 1> (a, back) y = Softmax (b)", 0),
        ("a = Gather <axis = 1> (x, order) b = Gather <axis = 1> (a, other) y = Softmax (b)", 1),
        ("a = Gather <axis = 1> (x, twice) b = Gather <axis = 1> (a, order) y = Softmax (b)", 1),
        ("a = Gather <axis = 1> (x, order) b = Relu (a) c = Gather <axis = 1> (b, twice) y = Softmax (c)", 1),
        ("a = Gather <axis = 1> (x, twice) b = Relu (a) c = Gather <axis = 1> (b, order) y = Softmax (c)", 2),
        ("a = Gather <axis = 1> (x, order) b = Gather <axis = 2> (a, places) y = Softmax (b)", 2),
        ("a = Gather <axis = 1> (x, order) b = Softmax (a) y = Gather <axis = 1> (a, back)", 1),
    ],
)
def test_gathers_compose(body: str, left: int) -> None:
    assert gathers_left(body) == left


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        ("a = Gather <axis = 1> (x, order) b = Softmax (a) c = Conv (a, w2) y = Add (b, c)", ()),
        ("a = Gather <axis = 1> (x, order) b = Relu (a) y = Conv (b, w2)", ("b",)),
        ("a = Gather <axis = 1> (x, order) y = Conv (a, w2)", ("a",)),
        ("b = Conv (x, w2) g = Gather <axis = 1> (b, order) y = Softmax (g)", ("b",)),
        ("b = Conv (x, w2) y = Gather <axis = 1> (b, order)", ()),
        ("b = Conv (x, w2) c = Softmax (b) g = Gather <axis = 1> (b, order) d = Softmax (g) y = Add (c, d)", ()),
        ("a = Gather <axis = 1> (x, order) y = Conv <group = 2> (a, grouped)", ()),
        ("b = Conv <group = 2> (x, grouped) g = Gather <axis = 1> (b, order) y = Softmax (g)", ()),
        ("a = Gather <axis = 1> (x, order) b = Add (a, x) y = Conv (b, w2)", ()),
        ("a = Gather <axis = 1> (x, twice) y = Conv (a, w16)", ()),
        ("b = Conv (x, w2) g = Gather <axis = 1> (b, twice) y = Conv (g, w16)", ()),
        ("a = Gather <axis = 1> (x, order) b = Softmax <axis = 1> (a) y = Conv (b, w2)", ()),
        ("a = Gather <axis = 1> (x, order) y = ReduceMean (a, channels)", ()),
        ("a = Gather <axis = 2> (x, places) y = Conv (a, w2)", ()),
        ("a = Gather <axis = 1> (x, order) z = ConstantOfShape <value = float[1] {0.0}> (size)"
         "s = ScatterElements <axis = 1> (z, index, kept) y = Conv (a, s)", ()),
    ],
    ids=["two readers", "an output between", "itself an output", "an output before", "last", "two readers before",
         "grouped after", "grouped before", "a residual of the input", "repeats after", "repeats before",
         "mixes channels", "reduces channels", "another axis", "a computed weight"],
)  # fmt: skip
def test_nothing_moves_where_something_would_notice(body: str, extra: tuple[str, ...]) -> None:
    before = graph(body, *extra)
    assert operations(folded(before)) == operations(before)


def test_a_weight_that_others_read_is_copied_only_if_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "a = Gather <axis = 1> (x, order) b = Conv (a, w2) c = Softmax (b) y = Conv (c, w2)"
    after = folded(graph(body))
    assert (operations(after)["Gather"], len(after.graph.initializer)) == (0, 2)
    monkeypatch.setattr("offramp.bundle.fold._SMALL", C * C - 1)
    assert gathers_left(body) == 1
    body = "a = Gather <axis = 1> (x, order) b = Conv (a, w2) c = Conv (a, w2) y = Mul (b, c)"
    assert gathers_left(body) == 0  # both readers want the same


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = MatMul (x, cut) y = Relu (a)", 0),
        ("a = MatMul (x, cut) b = MatMul (x, rest) y = Concat <axis = 1> (a, b)", 0),
        ("a = MatMul (x, cut) b = MatMul (x, whole) y = Concat <axis = 1> (a, b)", 1),
        ("a = MatMul (x, cut) b = MatMul (x, rest) c = MatMul (x, most) y = Concat <axis = 1> (a, b, c)", 3),
    ],
    ids=["part", "all parts", "a part and the whole", "parts that overlap"],
)
def test_a_weight_is_cut_only_if_the_file_does_not_grow(
    body: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"zero": 0, "middle": 32, "early": 4, "end": 65, "one": 1}
    for name, value in ends.items():
        monkeypatch.setitem(CONSTANTS, name, np.array([value]))
    slices = {"cut": "zero, middle", "rest": "middle, end", "most": "early, end"}
    for name, ends_of in slices.items():
        if f"{name})" in body:
            body = f"{name} = Slice (large, {ends_of}, one) {body}"
    before = graph(body.replace("whole", "large"), x=(64,))
    monkeypatch.setattr("offramp.bundle.fold._SMALL", 0)
    after = folded(before)
    assert operations(after)["Slice"] == left
    assert after.ByteSize() < before.ByteSize() + 200


# --- random graphs --------------------------------------------------------------------------------------


def random_body(rng: np.random.RandomState) -> tuple[str, list[str]]:
    """A random graph over tensors of C channels, with gathers, diamonds, residuals and outputs in between."""
    lines, values, extra = [], ["x"], []
    steps = [
        "{o} = Gather <axis = 1> ({i}, order)",
        "{o} = Gather <axis = 1> ({i}, other)",
        "{o} = Gather <axis = 1> ({i}, back)",
        "{o}t = Gather <axis = 1> ({i}, twice) {o} = Conv ({o}t, w16)",
        "{o} = Conv ({i}, w2, bias)",
        "{o} = Conv ({i}, w3)",
        "{o} = Conv <pads = [1, 1, 1, 1]> ({i}, w)",
        "{o} = Conv <group = 2, pads = [1, 1, 1, 1]> ({i}, grouped)",
        "{o} = Conv <group = 8, pads = [1, 1, 1, 1]> ({i}, depthwise, bias)",
        "{o} = Tanh ({i})",
        "{o} = BatchNormalization ({i}, bias, bias, bias, var)",
        "{o} = PRelu ({i}, slope)",
        "{o}s = Sigmoid ({i}) {o} = Mul ({o}s, {i})",
        "{o} = Add ({i}, {j})",
        "{o} = Add ({i}, per_image)",
    ]
    for n in range(12):
        i = values[-1] if rng.rand() < 0.8 else values[rng.randint(len(values))]
        j = values[rng.randint(len(values))]
        lines.append(steps[rng.randint(len(steps))].format(o=f"v{n}", i=i, j=j))
        values.append(f"v{n}")
        if rng.rand() < 0.1:
            extra.append(values[-1])
    return " ".join([*lines, f"f = Flatten ({values[-1]}) y = Gemm <transB = 1> (f, flat, row)"]), extra


def test_random_graphs_compute_the_same() -> None:
    removed = 0
    for seed in range(80):
        body, extra = random_body(np.random.RandomState(seed))
        before = graph(body, *extra)
        removed += operations(before)["Gather"] - operations(folded(before))["Gather"]
    assert removed > 80


# --- networks -------------------------------------------------------------------------------------------


def exported(net: nn.Module, x: Tensor) -> ModelProto:
    """What torch gives, before any folding."""
    with quiet_exporter():
        program = torch.onnx.export(
            net.eval(),
            (torch.cat([x, x]),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def test_strided_layers_keep_only_the_gather_between_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        off.SparseConv2d(16, 16, 3, 0.25, layout="strided", padding=1),
        nn.BatchNorm2d(16),
        nn.GELU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.MaxPool2d(2),
        off.SparseConv2d(16, 32, 1, 0.5, layout="strided"),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(32 * 9, 24),
        nn.Tanh(),
        off.SparseLinear(24, 16, 0.25, layout="strided"),
        nn.ReLU(),
        nn.Linear(16, 5),
    )
    before = exported(net, torch.randn(1, 3, 10, 10))
    assert (operations(before)["Gather"], operations(folded(before))["Gather"]) == (6, 1)


def test_joins_of_several_blocks_keep_one_gather_per_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        off.SparseConv2d(16, 16, 3, Fraction(3, 8), layout="strided", padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        off.SparseConv2d(16, 32, 3, Fraction(3, 8), padding="same"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        off.SparseLinear(32, 32, Fraction(3, 8), layout="strided"),
        nn.Hardswish(),
        nn.Linear(32, 5),
    )
    before = exported(net, torch.randn(1, 3, 10, 10))
    assert (operations(before)["Gather"], operations(folded(before))["Gather"]) == (5, 3)


def test_files_follow_the_density() -> None:
    """Blocks store |W| values, the other patterns |W| values and as many indices of 4 bytes."""
    n = 1024
    net = nn.Sequential(off.SparseLinear(n, n, 0.25), off.SparseLinear(n, n, 0.25, pattern="structured"))
    after = folded(exported(net, torch.randn(1, n)))
    assert not {"Slice", "Squeeze"} & set(operations(after))
    assert {"ConstantOfShape", "ScatterElements", "Cast"} <= set(operations(after))
    sizes = Counter[str]()
    for t in after.graph.initializer:
        sizes["index" if t.data_type == TensorProto.INT32 else "float"] += len(t.raw_data)
    dense = 4 * n * n
    assert sizes["index"] == dense * 0.25
    assert after.ByteSize() <= 1.05 * 0.25 * dense + 2.2 * 0.25 * dense


def test_exits_and_cuts_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("a", nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()))
    model.add_module("b", nn.Sequential(off.SparseConv2d(16, 16, 3, 0.25, layout="strided"), nn.BatchNorm2d(16)))
    model.add_module("c", nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 1), off.SparseConv2d(16, 16, 3, 0.25)))
    model.add_module("d", nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 5)))
    x = torch.randn(2, 3, 10, 10)
    net = off.MultiExit(model, {"a": off.PooledHead(5), "b": off.PooledHead(5)}, example_input=x).eval()
    graph = export_graph(net, x)
    assert [o.name for o in graph.graph.output] == ["cut_0", "exit_0", "cut_1", "exit_1", "exit_2"]
    with torch.no_grad():
        (cut_0, cut_1), logits = net.forward_features(x)
    for got, expected in zip(
        outputs(graph, x.numpy()), (cut_0, logits[0], cut_1, logits[1], logits[2]), strict=True
    ):
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    assert operations(graph)["Gather"] == 2  # cut 0 is an output before one, cut 1 an output after the other
