"""ONNX models as other people's exporters write them, made without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxscript import FLOAT, script
from onnxscript import opset17 as op


def outputs(model: ModelProto, x: NDArray[Any]) -> list[NDArray[Any]]:
    """Runs a model with one input, in one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x}))


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


class Builder:
    """Nodes one after another, each named after its number; weights drawn small enough to stay tame."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{kind.lower()}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def constant(self, array: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        scale = np.prod(shape[1:]) ** -0.5
        return self.constant((self._rng.normal(size=shape) * scale).astype(np.float32))

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def conv(self, x: str, before: int, after: int, size: int = 3, **attributes: Any) -> str:
        return self.add(
            "Relu",
            self.add(
                "Conv", x, self.weight(after, before, size, size), pads=[size // 2] * 4, **attributes
            ),
        )  # fmt: skip

    def linear(self, x: str, before: int, after: int) -> str:
        return self.add("Add", self.add("MatMul", x, self.weight(before, after)), self.weight(after))

    def model(
        self,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        opset: int = 17,
    ) -> ModelProto:
        graph = helper.make_graph(self.nodes, "foreign", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def unet() -> ModelProto:
    """Three levels; every skip connection crosses all that lies below it."""
    b = Builder()
    skips, x, width = [], "image", 3
    for after in (4, 8):
        x = b.conv(b.conv(x, width, after), after, after)
        skips.append((x, after))
        x, width = b.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), after
    x = b.conv(x, width, 16)
    width = 16
    for skip, after in reversed(skips):
        up = b.add("ConvTranspose", x, b.weight(width, after, 2, 2), strides=[2, 2])
        x, width = b.conv(b.add("Concat", up, skip, axis=1), 2 * after, after), after
    x = b.add("Conv", x, b.weight(2, width, 1, 1))
    return b.model([value("image", "batch", 3, 16, 16)], [value(x, "batch", 2, 16, 16)])


def classifier() -> ModelProto:
    """A U-Net whose output is pooled to logits: its first skip crosses every cut."""
    model = unet()
    out = model.graph.output[0].name
    model.graph.node.append(helper.make_node("GlobalAveragePool", [out], ["pooled"]))
    model.graph.node.append(helper.make_node("Flatten", ["pooled"], ["logits"]))
    model.graph.output.append(value("logits", "batch", 2))
    return model


def encoder(layers: int = 2, tokens: int = 6, width: int = 8, heads: int = 2) -> ModelProto:
    """A transformer encoder over token ids, with an attention mask that every layer reads.

    Its reshapes are written as exporters write them, from the shape of an early tensor.
    """
    b = Builder()
    minus_one = b.constant(np.array(1, np.float32))
    off = b.add("Sub", b.add("Cast", "mask", to=TensorProto.FLOAT), minus_one)
    off = b.add("Unsqueeze", b.add("Mul", off, b.constant(np.array(1e4, np.float32))), b.ints(1, 2))
    x = b.add("Gather", b.weight(20, width), "ids")
    sizes = b.add("Shape", x)
    batch = b.add("Gather", sizes, b.ints(0))
    split = b.add("Concat", batch, b.ints(tokens, heads, width // heads), axis=0)
    joined = b.add("Concat", batch, b.ints(tokens, width), axis=0)
    for _ in range(layers):
        q, k, v = (b.add("Reshape", b.linear(x, width, width), split) for _ in range(3))
        q, v = (b.add("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        scores = b.add("Add", b.add("MatMul", q, b.add("Transpose", k, perm=[0, 2, 3, 1])), off)
        mixed = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
        mixed = b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = b.add("Add", x, b.linear(mixed, width, width))
        x = b.add("LayerNormalization", x, b.weight(width), axis=-1)
        x = b.add("Add", x, b.linear(b.add("Relu", b.linear(x, width, 2 * width)), 2 * width, width))
    x = b.linear(b.add("ReduceMean", x, axes=[1], keepdims=0), width, 3)
    inputs = [value(name, "batch", tokens, kind=TensorProto.INT64) for name in ("ids", "mask")]
    return b.model(inputs, [value(x, "batch", 3)])


def inception() -> ModelProto:
    """Two modules of parallel branches, the second one densely connected, with an auxiliary output between."""
    b = Builder()
    x = b.add("MaxPool", b.conv("input", 3, 8), kernel_shape=[2, 2], strides=[2, 2])
    branches = [
        b.conv(x, 8, 4, 1),
        b.conv(b.conv(x, 8, 2, 1), 2, 4, 3),
        b.conv(b.conv(x, 8, 2, 1), 2, 4, 5),
        b.conv(b.add("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4), 8, 4, 1),
    ]
    x = b.add("Concat", *branches, axis=1)
    pooled = b.add("Flatten", b.add("GlobalAveragePool", x))
    b.nodes.append(helper.make_node("Gemm", [pooled, b.weight(16, 5)], ["aux"]))
    width = 16
    for _ in range(3):
        x = b.add("Concat", x, b.conv(x, width, 4), axis=1)
        width += 4
    x = b.conv(x, width, 12, strides=[2, 2])
    b.nodes.append(helper.make_node("Gemm", [b.add("Flatten", x), b.weight(12 * 16, 5)], ["logits"]))
    return b.model([value("input", "N", 3, 16, 16)], [value("aux", "N", 5), value("logits", "N", 5)])


_W1, _W2, _W3 = (
    numpy_helper.from_array(np.random.default_rng(i).normal(size=shape).astype(np.float32), f"w{i}")
    for i, shape in enumerate([(10, 16), (16, 4), (4, 3)])
)


@script()
def _scripted(x: FLOAT["batch", 10]) -> FLOAT["batch", 3]:  # type: ignore[name-defined]  # noqa: F821, UP037
    hidden = op.Tanh(op.MatMul(x, op.Constant(value=_W1)))
    shape = op.Shape(x)
    n = op.Gather(shape, op.Constant(value_ints=[0]))
    narrow = op.MatMul(hidden, op.Constant(value=_W2))
    folded = op.Reshape(narrow, op.Concat(n, op.Constant(value_ints=[2, 2]), axis=0))
    flat = op.Reshape(op.Abs(folded), op.Concat(n, op.Constant(value_ints=[-1]), axis=0))
    return op.MatMul(flat, op.Constant(value=_W3))


def scripted() -> ModelProto:
    """A model of onnxscript's, constants in the graph and shapes nowhere."""
    model: ModelProto = _scripted.to_model_proto()
    model.ir_version = 8
    return model


def branch(size: int = 5) -> ModelProto:
    """An `If` whose branches take tensors from outside, between two products."""

    def body(name: str, kind: str) -> onnx.GraphProto:
        node = helper.make_node(kind, [name], ["y"])
        return helper.make_graph([node], kind, [], [value("y", "N", size)])

    b = Builder()
    a = b.add("MatMul", "x", b.weight(size, size))
    mean = b.add("ReduceMean", a, keepdims=0)
    more = b.add("Greater", mean, b.constant(np.array(0, np.float32)))
    chosen = b.add("If", more, then_branch=body(a, "Relu"), else_branch=body(a, "Neg"))
    out = b.add("MatMul", chosen, b.weight(size, 3))
    return b.model([value("x", "N", size)], [value(out, "N", 3)])


MODELS = {f.__name__: f for f in (unet, encoder, inception, scripted, branch)}
