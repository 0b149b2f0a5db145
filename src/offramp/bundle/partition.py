"""Cutting one ONNX graph into stages and exits, at ONNX level, so that any framework's model can be cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, shape_inference
from onnx.utils import Extractor

from offramp.bundle.manifest import Graph, TensorSpec
from offramp.errors import ExportError

__all__ = ["Cost", "Partition", "describe", "graph_cost", "partition"]

_DTYPES: dict[int, Literal["float32", "uint8", "int64"]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT64: "int64",
}


@dataclass(frozen=True)
class Partition:
    """A graph in pieces: stage i runs from cut i−1 to cut i, exit i hangs off cut i (None without one)."""

    stages: tuple[ModelProto, ...]
    exits: tuple[ModelProto | None, ...]
    depths: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What a graph costs for one sample: multiply-accumulates and stored parameters."""

    macs: int
    parameters: int


def partition(
    model: ModelProto, cuts: Sequence[Sequence[str]], exits: Sequence[str | None], *, final: str
) -> Partition:
    """Cuts a graph at named tensors.

    Args:
        model: The whole graph, with one input.
        cuts: Per cut the names of the tensors that cross, in the order in which they are computed.
        exits: Per cut the name of its exit's logits, or None.
        final: The name of the network's own output.

    Returns:
        One stage more than cuts, an exit per cut, and the depth ℓ of every exit, the last included.

    Raises:
        ExportError: A name that the graph does not have, or a cut that does not separate it.
    """
    source = [i.name for i in model.graph.input]
    if len(source) != 1:
        raise ExportError(f"the graph takes {len(source)} inputs ({', '.join(source)}); one is supported")
    if len(exits) != len(cuts):
        raise ExportError(f"{len(cuts)} cuts need as many exits (None for none), not {len(exits)}")
    extractor = Extractor(model)
    edges = [source, *[list(cut) for cut in cuts], [final]]
    stages = tuple(
        _extract(extractor, begin, end, f"stage {i}") for i, (begin, end) in enumerate(itertools.pairwise(edges))
    )
    heads = tuple(
        None if name is None else _extract(extractor, cut, [name], f"exit {i}")
        for i, (cut, name) in enumerate(zip(edges[1:-1], exits, strict=True))
    )
    depth = _depths(model)
    return Partition(stages, heads, tuple(max(depth[name] for name in edge) for edge in edges[1:]))


def graph_cost(model: ModelProto) -> Cost:
    """Counts the multiply-accumulates of convolutions and matrix products, and the stored parameters.

    Raises:
        ExportError: A shape that cannot be inferred.
    """
    single = ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del single.graph.value_info[:]
    inferred = shape_inference.infer_shapes(single, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    shapes.update({t.name: list(t.dims) for t in inferred.initializer})
    macs = 0
    for node in inferred.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        out, weight = shapes.get(node.output[0], [0]), shapes.get(node.input[1], [0])
        left = shapes.get(node.input[0], [0])
        if 0 in out or 0 in weight or 0 in left:
            raise ExportError(f"cannot infer the shapes of {node.op_type} node {node.name!r}")
        if node.op_type == "Conv":
            per_output = int(np.prod(weight[1:]))
        else:
            per_output = left[0] if _flag(node, "transA") else left[-1]
        macs += int(np.prod(out)) * per_output
    # Shapes, axes and the like are initialisers too; only real numbers are parameters.
    parameters = sum(int(np.prod(t.dims)) for t in inferred.initializer if t.data_type == TensorProto.FLOAT)
    return Cost(macs, parameters)


def describe(model: ModelProto, file: str, content: bytes, sha256: str) -> Graph:
    """The manifest's entry for one graph.

    Raises:
        ExportError: A shape that is dynamic beyond the batch, or an element type that cannot travel.
    """
    cost = graph_cost(model)
    return Graph(
        file=file,
        sha256=sha256,
        bytes=len(content),
        inputs=tuple(_spec(v) for v in model.graph.input),
        outputs=tuple(_spec(v) for v in model.graph.output),
        parameters=cost.parameters,
        macs=cost.macs,
    )


def _extract(extractor: Extractor, inputs: Sequence[str], outputs: Sequence[str], what: str) -> ModelProto:
    try:
        piece = extractor.extract_model(list(inputs), list(outputs))
    except (KeyError, ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(f"cannot extract {what} ({inputs} → {outputs}): {error}") from error
    known = {i.name for i in piece.graph.input} | {t.name for t in piece.graph.initializer}
    made = {name for node in piece.graph.node for name in node.output}
    for node in piece.graph.node:
        for name in node.input:
            if name and name not in known and name not in made:
                raise ExportError(
                    f"{what} needs the tensor {name!r} besides {', '.join(inputs)}: the cut does not separate "
                    "the graph; let that tensor cross too, or cut elsewhere"
                )
    loose = [name for name in outputs if name not in made]
    if loose:
        raise ExportError(f"{what}: the graph computes no tensor {', '.join(loose)} from {', '.join(inputs)}")
    return piece


def _depths(model: ModelProto) -> dict[str, int]:
    """By tensor, the most convolution and linear layers on a path from the input."""
    weights = {t.name for t in model.graph.initializer}
    depth: dict[str, int] = {}
    for node in model.graph.node:  # ONNX keeps nodes in topological order
        layer = node.op_type in ("Conv", "Gemm") or (
            node.op_type == "MatMul" and any(name in weights for name in node.input)
        )
        here = max((depth.get(name, 0) for name in node.input), default=0) + int(layer)
        depth.update(dict.fromkeys(node.output, here))
    return depth


def _flag(node: NodeProto, name: str) -> bool:
    return any(a.name == name and a.i for a in node.attribute)


def _spec(value: ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    dims = tensor.shape.dim
    if dtype is None:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ExportError(f"tensor {value.name!r} is {kind}; {', '.join(_DTYPES.values())} can travel")
    if not dims or any(d.dim_value < 1 for d in dims[1:]):
        shape = [d.dim_param or d.dim_value for d in dims]
        raise ExportError(f"tensor {value.name!r} has shape {shape}; only the batch (the first) may be dynamic")
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(d.dim_value for d in dims[1:]))
