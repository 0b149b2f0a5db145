"""Cutting one ONNX graph into stages and exits, at ONNX level, so that any framework's model can be cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, shape_inference

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
        One stage more than cuts, an exit per cut, and the depth ℓ at the end of every stage.

    Raises:
        ExportError: A name that the graph does not have, or a cut that does not separate it.
    """
    source = [i.name for i in model.graph.input]
    if len(source) != 1:
        raise ExportError(f"the graph takes {len(source)} inputs ({', '.join(source)}); one is supported")
    if len(exits) != len(cuts):
        raise ExportError(f"{len(cuts)} cuts need as many exits (None for none), not {len(exits)}")
    cutter = _Cutter(model)
    edges = [source, *[list(cut) for cut in cuts], [final]]
    stages = tuple(
        cutter.piece(begin, end, f"stage {i}") for i, (begin, end) in enumerate(itertools.pairwise(edges))
    )
    heads = tuple(
        None if name is None else cutter.piece(cut, [name], f"exit {i}")
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


class _Cutter:
    """Takes pieces out of a graph, between named tensors."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._makers = {name: node for node in model.graph.node for name in node.output if name}
        self._weights = {t.name: t for t in model.graph.initializer}
        graph = model.graph
        self._values = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        #: What depends on the graph's input; anything else is constant and may stand in several pieces.
        self._live = {i.name for i in graph.input}
        for node in graph.node:  # ONNX keeps nodes in topological order
            if self._live.intersection(_needs(node)):
                self._live.update(node.output)

    def piece(self, inputs: Sequence[str], outputs: Sequence[str], what: str) -> ModelProto:
        """The part of the graph that computes `outputs` from `inputs` alone."""
        missing = [name for name in (*inputs, *outputs) if name not in self._values]
        if missing:
            raise ExportError(
                f"{what}: the graph has no tensor {', '.join(missing)}, or does not say its type and shape"
            )
        earlier = self._ancestors(inputs)
        found: set[str] = set()
        waiting = list(outputs)
        while waiting:
            name = waiting.pop()
            if name in found or name in inputs:
                continue
            if name in self._live and (name in earlier or name not in self._makers):
                raise ExportError(
                    f"{what} needs the tensor {name!r} besides {', '.join(inputs)}: the cut does not separate "
                    "the graph; let that tensor cross too, or cut elsewhere"
                )
            found.add(name)
            if name in self._makers:
                waiting += _needs(self._makers[name])
        loose = [name for name in outputs if name not in self._makers or name in inputs]
        if loose:
            raise ExportError(f"{what}: the graph computes no tensor {', '.join(loose)} from {', '.join(inputs)}")
        piece = ModelProto()
        piece.CopyFrom(self._model)
        graph = piece.graph
        for part in ("node", "initializer", "value_info", "input", "output"):
            graph.ClearField(part)
        graph.node.extend(n for n in self._model.graph.node if found.intersection(n.output))
        graph.initializer.extend(t for name, t in self._weights.items() if name in found)
        inner = found.difference(outputs, self._weights)
        graph.value_info.extend(v for v in self._model.graph.value_info if v.name in inner)
        graph.input.extend(self._values[name] for name in inputs)
        graph.output.extend(self._values[name] for name in outputs)
        return piece

    def _ancestors(self, names: Sequence[str]) -> set[str]:
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            maker = self._makers.get(waiting.pop())
            fresh = [] if maker is None else [n for n in _needs(maker) if n not in found]
            found.update(fresh)
            waiting += fresh
        return found


def _needs(node: NodeProto) -> list[str]:
    """The tensors that a node reads, those that its branches and bodies take from outside included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            for inner in body.node:
                names += [name for name in _needs(inner) if name not in own]
                own.update(inner.output)
            names += [v.name for v in body.output if v.name not in own]
    return names


def _depths(model: ModelProto) -> dict[str, int]:
    """By tensor, the most convolution and linear layers on a path from the input."""
    live = {i.name for i in model.graph.input}  # anything else is constant: weights, and what is made of them
    depth: dict[str, int] = {}
    for node in model.graph.node:  # ONNX keeps nodes in topological order
        if live.intersection(_needs(node)):
            live.update(node.output)
        layer = node.op_type in ("Conv", "Gemm") or (
            node.op_type == "MatMul" and any(name not in live for name in node.input)
        )
        here = max((depth.get(name, 0) for name in _needs(node)), default=0) + int(layer)
        depth.update((name, here) for name in node.output if name)
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
