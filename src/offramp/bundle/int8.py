"""One graph's weights and activations as 8-bit integers, by ONNX Runtime's static quantisation.

Activations are uint8 per tensor, weights int8 per channel and symmetric, in the QDQ form: standard operators,
which a runtime fuses into its integer kernels. Weights take 7 of the 8 bits. So two products fit into the 16-bit
sums of x86 processors without VNNI, which otherwise saturate, and a graph gives the same on every processor.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from offramp.bundle.partition import forget_origin
from offramp.errors import ExportError

__all__ = ["int8_graph", "is_int8"]

Feed = Mapping[str, NDArray[np.generic]]

#: The first opset whose QuantizeLinear knows channels.
_OPSET = 13
_EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)
#: What stands between the products of queries and keys and their softmax: scales and masks, and what shapes them.
_BEFORE_SOFTMAX = frozenset(
    ("Add", "Sub", "Mul", "Div", "Where", "Max", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Slice")
)
#: How the operators of quantised graphs begin, whoever made them.
_MARKS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantize",
    "QLinear",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
)


def is_int8(model: ModelProto) -> bool:
    """Whether a graph computes with integers in place of real numbers anywhere."""
    return any(node.op_type.startswith(_MARKS) for node in model.graph.node)


def int8_graph(model: ModelProto, feeds: Iterable[Feed], **other: Any) -> ModelProto | None:
    """A graph that takes and gives the same tensors and computes with 8-bit integers between them.

    The range of every activation is what it takes over the feeds. What a linear layer gives stays float, so that
    logits have no steps; so do masked scores up to their softmax, since beside the −∞ of a mask, or a number that
    stands for it, 8 bits tell no scores apart.

    Args:
        model: The graph, of real numbers.
        feeds: Its inputs by name, several samples at once.
        other: Arguments of `onnxruntime.quantization.quantize_static` in place of those that are explained
            above, to measure what they are worth.

    Returns:
        The new graph; None if it holds no weights that can be quantised.

    Raises:
        ExportError: The quantiser, or ONNX Runtime with its result, refuses the graph, or an activation without a
            finite range.
    """
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET:
        raise ExportError(f"int8 needs opset {_OPSET} or newer, not {opset}; export the network for a newer opset")
    try:
        with tempfile.TemporaryDirectory(prefix="offramp-int8-") as folder, _quiet():
            found = _quantised(model, iter(feeds), Path(folder), other)
    except Exception as error:  # the quantiser raises several kinds, ONNX Runtime's among them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"ONNX Runtime {ort.__version__} cannot quantise the graph: {reason}") from error
    _check_ranges(found)
    # Zero points are 8-bit constants too, but they have one axis at most.
    if not any(t.data_type in _EIGHT_BITS and len(t.dims) > 1 for t in found.graph.initializer):
        return None
    # What the optimiser and the quantiser wrote of themselves would let older runtimes refuse the graph.
    found.ir_version = model.ir_version
    kept = {node.domain for node in found.graph.node} | {o.domain for o in model.opset_import}
    opsets = [o for o in found.opset_import if o.domain in kept]
    del found.opset_import[:]
    found.opset_import.extend(opsets)
    found.graph.ClearField("value_info")
    forget_origin(found)
    return found


def _quantised(model: ModelProto, feeds: Iterator[Feed], folder: Path, other: Mapping[str, Any]) -> ModelProto:
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    plain, ready, done = (folder / name for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # Batch normalisation goes into the convolution before it, which else would be quantised alone.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(plain)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = _read(plain)
    for i, node in enumerate(optimised.graph.node):
        node.name = f"{i}_{node.op_type}"  # the quantiser leaves nodes alone by name, and some have none
    add_pre_process_metadata(optimised)  # or the quantiser advises to do what has been done
    ready.write_bytes(optimised.SerializeToString())

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            feed = next(feeds, None)
            return None if feed is None else dict(feed)

    settings = {
        "quant_format": quantization.QuantFormat.QDQ,
        "activation_type": quantization.QuantType.QUInt8,
        "weight_type": quantization.QuantType.QInt8,
        "per_channel": True,
        "reduce_range": True,
        "calibrate_method": quantization.CalibrationMethod.MinMax,
        "nodes_to_exclude": _scores(optimised.graph),
        "extra_options": {"OpTypesToExcludeOutputQuantization": ["Gemm"]},
    }
    quantization.quantize_static(ready, done, Reader(), **{**settings, **other})
    return _read(done)


def _scores(graph: GraphProto) -> list[str]:
    """The names of every softmax, and of what masks and scales its scores."""
    makers = {name: node for node in graph.node for name in node.output}
    found: dict[str, NodeProto] = {}
    left = [node for node in graph.node if node.op_type == "Softmax"]
    while left:
        node = left.pop()
        if node.name not in found:
            found[node.name] = node
            before = [makers[name] for name in node.input if name in makers]
            left += [one for one in before if one.op_type in _BEFORE_SOFTMAX]
    return list(found)


def _check_ranges(model: ModelProto) -> None:
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        scale = constants.get(node.input[1]) if node.op_type == "QuantizeLinear" else None
        if scale is not None and not np.isfinite(numpy_helper.to_array(scale)).all():
            raise ExportError(
                f"the activation {node.input[0]!r} reaches infinity on the calibration samples, so it has no "
                "range; let the network keep it finite"
            )


def _read(file: Path) -> ModelProto:
    model = ModelProto()
    model.ParseFromString(file.read_bytes())
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice: it prints, and logs to the root logger, which it sets up if nobody has."""
    root, handler, level = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            yield
    finally:
        logging.disable(level)
        root.removeHandler(handler)
