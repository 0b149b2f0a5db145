"""What every tensor of a graph is like at a given batch, and what every node multiplies."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, shape_inference

from offramp.bundle.dataflow import graph_inputs
from offramp.errors import ExportError

__all__ = ["Form", "feed_of", "forms_at", "macs_of", "multiplies", "node_macs", "session"]


class Form(NamedTuple):
    """A tensor's ONNX element type, and its sizes."""

    kind: int
    sizes: tuple[int, ...]


def forms_at(model: ModelProto, batch: int, wanted: Collection[str] | None = None) -> dict[str, Form]:
    """What a graph's tensors are like when it is fed `batch` samples.

    Shapes are inferred, and where inference gives up on a tensor that is wanted, measured by a run on ones.

    Args:
        model: The graph.
        batch: The size of the first axis of every input.
        wanted: Names; everything that a node makes, if left out.

    Returns:
        By name; tensors of which nothing could be found out are left out.

    Raises:
        ExportError: Shapes that contradict each other at this batch.
    """
    fixed = ModelProto()
    fixed.CopyFrom(model)
    for value in graph_inputs(fixed):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    try:
        inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph
    except Exception as error:  # onnx raises several kinds, some of them bare RuntimeErrors
        raise ExportError(f"the graph's shapes contradict each other at a batch of {batch}: {error}") from error
    found = {v.name: form for v in (*inferred.input, *inferred.value_info, *inferred.output) if (form := _form(v))}
    found.update({t.name: Form(t.data_type, tuple(t.dims)) for t in fixed.graph.initializer})
    names = [n for node in fixed.graph.node for n in node.output if n] if wanted is None else wanted
    missing = [name for name in names if name not in found]
    if missing and all(_form(value) for value in graph_inputs(fixed)):
        found.update(_measured(fixed, missing))
    return found


def macs_of(node: NodeProto, forms: Mapping[str, Form]) -> int:
    """The multiply-accumulates of one node; 0 for what multiplies no weights or tensors with each other.

    Convolutions, matrix products, einsums and recurrent layers count; branches and bodies do not.

    Raises:
        ExportError: A shape that is not known.
    """
    if not multiplies(node):
        return 0
    try:
        return _COUNTED[node.op_type](node, forms)
    except KeyError as error:
        raise ExportError(
            f"cannot infer the shapes of {node.op_type} node {node.name!r}: nothing is known of tensor {error}"
        ) from error


def multiplies(node: NodeProto) -> bool:
    """Whether a node's multiply-accumulates count."""
    return node.op_type in _COUNTED and node.domain in ("", "ai.onnx")


def node_macs(model: ModelProto) -> list[int]:
    """The multiply-accumulates of every node for one sample.

    Raises:
        ExportError: A shape that is not known.
    """
    forms = forms_at(model, 1, wanted=())
    try:
        return [macs_of(node, forms) for node in model.graph.node]
    except ExportError:  # a run may know what inference does not
        forms = forms_at(model, 1)
        return [macs_of(node, forms) for node in model.graph.node]


def session(model: ModelProto, *, optimise: bool = True) -> ort.InferenceSession:
    """A graph in ONNX Runtime, with one thread and without its warnings.

    Raises:
        Exception: ONNX Runtime's own; the caller says what they mean.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feed_of(model: ModelProto, batch: int, seed: int | None = None) -> dict[str, NDArray[Any]]:
    """An input for a graph whose sizes are fixed but for the batch: ones, or numbers drawn from a seed."""
    rng = np.random.default_rng(seed)
    feed = {}
    for value in graph_inputs(model):
        form = _form(value, batch)
        assert form is not None
        dtype = helper.tensor_dtype_to_np_dtype(form.kind)
        if seed is None:
            feed[value.name] = np.ones(form.sizes, dtype)
        elif np.issubdtype(dtype, np.floating):
            feed[value.name] = rng.random(form.sizes).astype(dtype)
        else:  # an index, a mask, a pixel: 0 and 1 are valid in all of them
            feed[value.name] = rng.integers(0, 2, form.sizes).astype(dtype)
    return feed


def _form(value: ValueInfoProto, batch: int | None = None) -> Form | None:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.elem_type or not tensor.HasField("shape"):
        return None
    dims = list(tensor.shape.dim)
    sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in dims]
    if batch is not None and sizes:
        sizes[0] = batch
    return Form(tensor.elem_type, tuple(sizes)) if all(size >= 0 for size in sizes) else None


def _measured(model: ModelProto, names: list[str]) -> dict[str, Form]:
    """The forms that tensors have in a run; those that are no tensors, and all if it fails, are left out."""
    probe = ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(ValueInfoProto(name=name) for name in names)
    batch = graph_inputs(model)[0].type.tensor_type.shape.dim[0].dim_value
    try:
        values = session(probe, optimise=False).run(names, feed_of(model, batch))
    except (
        Exception
    ):  # ONNX Runtime's exceptions share no base class; what is needed and unknown is reported later
        return {}
    found = {}
    for name, value in zip(names, values, strict=True):
        if isinstance(value, np.ndarray) and value.dtype != object:
            found[name] = Form(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
    return found


# --- what each operator multiplies ----------------------------------------------------------------------


def _convolution(node: NodeProto, forms: Mapping[str, Form], weight: int = 1) -> int:
    return math.prod(forms[node.output[0]].sizes) * math.prod(forms[node.input[weight]].sizes[1:])


def _transposed_convolution(node: NodeProto, forms: Mapping[str, Form]) -> int:
    return math.prod(forms[node.input[0]].sizes) * math.prod(forms[node.input[1]].sizes[1:])


def _product(node: NodeProto, forms: Mapping[str, Form]) -> int:
    left = forms[node.input[0]].sizes
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(forms[node.output[0]].sizes) * left[0 if turned else -1]


def _recurrent(node: NodeProto, forms: Mapping[str, Form]) -> int:
    # X is (sequence, batch, features), or with layout=1 (batch, sequence, features).
    steps = math.prod(forms[node.input[0]].sizes[:2])
    return steps * sum(math.prod(forms[node.input[i]].sizes) for i in (1, 2))


def _einsum(node: NodeProto, forms: Mapping[str, Form]) -> int:
    if len(node.input) < 2:
        return 0
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    size: dict[str, int] = {}
    for term, name in zip(equation.partition("->")[0].split(","), node.input, strict=True):
        sizes = forms[name].sizes
        before, dots, after = term.partition("...")
        if dots:  # the axes without a letter are matched from the right
            rest = range(len(before), len(sizes) - len(after))
            letters = [*before, *(f"{len(rest) - k}" for k in range(len(rest))), *after]
        else:
            letters = list(term)
        for letter, here in zip(letters, sizes, strict=True):
            size[letter] = max(size.get(letter, 1), here)
    return math.prod(size.values())


_COUNTED = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": lambda node, forms: _convolution(node, forms, 3),
    "ConvTranspose": _transposed_convolution,
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"), _product),
    "Einsum": _einsum,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
