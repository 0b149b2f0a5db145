"""An ONNX file from anywhere, made ready to be cut; whatever stands in the way is said with its way out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import ModelProto, checker, helper, inliner, numpy_helper

from offramp.bundle.dataflow import graph_inputs
from offramp.bundle.external import load_external
from offramp.bundle.shapes import Form, feed_of, forms_at, session
from offramp.errors import ExportError

__all__ = ["BATCH", "load_onnx", "prepared"]

#: What a prepared graph calls its first axis.
BATCH = "N"
_EXPORT_AGAIN = "export the model again with a dynamic batch"
_FIX_SIZE = "python -m onnxruntime.tools.make_dynamic_shape_fixed"


def load_onnx(path: str | Path, *, free_batch: bool = False) -> ModelProto:
    """Reads an ONNX file with all its weights, and tries it in ONNX Runtime.

    Weights may lie in other files, but only in the model's own folder or below it.

    Args:
        path: The file.
        free_batch: Make a batch that is fixed in the file dynamic, if a run shows that nothing else changes.

    Raises:
        ExportError: The file cannot be read, is no ONNX model or an empty one, does not run in ONNX Runtime, or
            has a fixed batch that cannot be made dynamic.
        ExternalDataError: Weights outside the model's folder, behind a link, or missing.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read {file}: {error.strerror or error}") from error
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ExportError(f"{file} is no ONNX file, or only a part of one ({error}); copy it again") from error
    if not model.ir_version or not model.opset_import:
        raise ExportError(f"{file} is no ONNX file, or only a part of one (no opset); copy it again")
    _check_there(model)
    load_external(model, file.parent)
    try:
        checker.check_model(model)
    except Exception as error:  # the checker raises several kinds, depending on what is broken
        reason = " ".join(str(error).split())
        raise ExportError(f"{file} is no valid ONNX model: {reason}{_asks(model)}") from error
    try:
        session(model)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        # Its messages begin with a code and the place in its sources.
        reason = re.sub(
            r"^\[ONNXRuntimeError\] : \d+ : \w+ : (/\S+ .*\) (?=[A-Z]))?", "", " ".join(str(error).split())
        )
        raise ExportError(f"ONNX Runtime {ort.__version__} cannot run {file}: {reason}{_asks(model)}") from error
    return _freed(model) if free_batch else model


def prepared(model: ModelProto) -> ModelProto:
    """A copy of a model that says the shape of everything that can cross a cut, and calls its batch N.

    Raises:
        ExportError: An empty graph, a fixed batch, or a shape that is dynamic beyond the batch.
    """
    _check_there(model)
    whole = _plain(model)
    _check_sizes(whole)
    fixed = _fixed_batches(whole)
    if fixed:
        listed = ", ".join(f"{size} of input {name!r}" for name, size in fixed.items())
        raise ExportError(
            f"the batch is fixed in the file: {listed}. Export it with a dynamic first axis; or let offramp try: "
            "--free-batch makes it dynamic, if a run shows that nothing else changes"
        )
    for value in whole.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    _say_shapes(whole)
    return whole


def _plain(model: ModelProto) -> ModelProto:
    """A copy without local functions, whose inputs all have to be fed."""
    plain = ModelProto()
    plain.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
    fed = {v.name for v in graph_inputs(plain)}
    for value in [v for v in plain.graph.input if v.name not in fed]:
        plain.graph.input.remove(value)  # an initialiser that is listed as an input too: a constant
    return plain


def _check_there(model: ModelProto) -> None:
    if not model.graph.node:
        raise ExportError("the graph is empty: it has no nodes, so there is nothing to cut")
    if not graph_inputs(model):
        raise ExportError("the graph takes no input; there is nothing to send")
    if not model.graph.output:
        raise ExportError("the graph has no output; there is nothing to answer with")


def _asks(model: ModelProto) -> str:
    """What a model that did not load asks for, and what to do."""
    asks = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    return (
        f" (the model asks for IR {model.ir_version} and opsets {asks}). Export it again for an older opset, "
        "out of standard operators, or upgrade onnxruntime"
    )


# --- shapes ---------------------------------------------------------------------------------------------


def _check_sizes(model: ModelProto) -> None:
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise ExportError(f"input {value.name!r} has no shape in the file; export it again with its shapes")
        if not tensor.shape.dim:
            raise ExportError(f"input {value.name!r} is a single number; make it a constant of the graph")
        for axis, dim in enumerate(tensor.shape.dim):
            if axis == 0 or dim.dim_value > 0:
                continue
            called, how = "", "export it again with a fixed size there"
            if dim.dim_param:
                called = f" ({dim.dim_param!r})"
                how = f"fix it: {_FIX_SIZE} --dim_param {dim.dim_param} --dim_value SIZE MODEL.onnx FIXED.onnx"
            raise ExportError(
                f"axis {axis}{called} of input {value.name!r} is dynamic; only the batch (axis 0) may be. "
                f"To cut the graph, {how}"
            )


def _say_shapes(model: ModelProto) -> None:
    """Writes down the shape of every tensor that has the batch first and is otherwise of one size."""
    at = [forms_at(model, batch) for batch in (2, 3)]
    outputs = {v.name for v in model.graph.output}
    said = []
    for name in (n for node in model.graph.node for n in node.output if n):
        two, three = (forms.get(name) for forms in at)
        if two is not None and three is not None and _per_sample(two, three):
            said.append(helper.make_tensor_value_info(name, two.kind, [BATCH, *two.sizes[1:]]))
    of = {v.name: v for v in said}
    for value in model.graph.output:
        if value.name in of:
            value.CopyFrom(of[value.name])
        else:
            value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    model.graph.value_info.extend(v for v in said if v.name not in outputs)


def _per_sample(two: Form, three: Form) -> bool:
    return (
        two.sizes[:1] == (2,)
        and three.sizes[:1] == (3,)
        and two.sizes[1:] == three.sizes[1:]
        and two.kind == three.kind
    )


# --- a batch that is fixed in the file ------------------------------------------------------------------


def _fixed_batches(model: ModelProto) -> dict[str, int]:
    first = {v.name: v.type.tensor_type.shape.dim[0] for v in model.graph.input}
    return {name: dim.dim_value for name, dim in first.items() if dim.dim_value > 0}


def _freed(model: ModelProto) -> ModelProto:
    original = _plain(model)
    _check_sizes(original)
    sizes = sorted(set(_fixed_batches(original).values()))
    if not sizes:
        return model
    if len(sizes) > 1:
        raise ExportError(f"the inputs have batches of different fixed sizes, {sizes}; {_EXPORT_AGAIN}")
    free = ModelProto()
    free.CopyFrom(original)
    _free_reshapes(free, sizes[0])
    for value in free.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for value in free.graph.output:
        value.type.tensor_type.ClearField("shape")
    del free.graph.value_info[:]
    _check_freed(original, free, sizes[0])
    return free


def _free_reshapes(model: ModelProto, batch: int) -> None:
    """Lets reshapes to a constant shape that begins with the fixed batch copy that size instead."""
    forms = forms_at(model, batch)
    constants = {t.name: t for t in model.graph.initializer}
    for node in (n for n in model.graph.node if n.op_type == "Constant"):
        constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    for i, node in enumerate(model.graph.node):
        if node.op_type != "Reshape" or node.domain or node.input[-1] not in constants:
            continue
        shape, source = numpy_helper.to_array(constants[node.input[-1]]), forms.get(node.input[0])
        kept = any(a.name == "allowzero" and a.i for a in node.attribute)
        if source is None or source.sizes[:1] != (batch,) or kept or shape[:1].tolist() != [batch]:
            continue
        name = f"{node.output[0]}.free_shape.{i}"
        model.graph.initializer.append(numpy_helper.from_array(np.concatenate([[0], shape[1:]]), name))
        node.input[1] = name


def _check_freed(original: ModelProto, free: ModelProto, size: int) -> None:
    """Runs two batches of the fixed size apart in the one graph and together in the other."""
    feeds = [feed_of(free, size, seed) for seed in (0, 1)]
    both = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    try:
        apart = [session(original).run(None, feed) for feed in feeds]
        together = session(free).run(None, both)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        reason = " ".join(str(error).split())
        raise ExportError(f"the batch cannot be made dynamic: {reason}; {_EXPORT_AGAIN}") from error
    for value, got, *parts in zip(free.graph.output, together, *apart, strict=True):
        expected = np.concatenate([np.atleast_1d(part) for part in parts])
        if got.shape != expected.shape or not np.allclose(got, expected, rtol=1e-4, atol=1e-5):
            raise ExportError(
                f"the batch cannot be made dynamic: output {value.name!r} of {2 * size} samples together is not "
                f"what it is for {size} and {size}; {_EXPORT_AGAIN}"
            )
