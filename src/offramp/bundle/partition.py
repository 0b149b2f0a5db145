"""Cutting one ONNX graph into stages and exits, at ONNX level, so that any framework's model can be cut."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, ValueInfoProto, compose, helper

from offramp.bundle.blocked import keep_blocks
from offramp.bundle.crossing import ancestors, made_of_inputs
from offramp.bundle.dataflow import Dataflow, needs
from offramp.bundle.manifest import Graph, TensorSpec, cut_name
from offramp.bundle.shapes import node_macs
from offramp.errors import ExportError

__all__ = ["Cost", "Partition", "depths", "describe", "forget_origin", "graph_cost", "partition", "tensor_spec"]

_DTYPES: dict[int, Literal["float32", "uint8", "int64", "bool"]] = {
    TensorProto.FLOAT: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}
#: The source of what is not made of inputs alone; no cut holds it.
_NOWHERE = frozenset([""])


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
    model: ModelProto,
    cuts: Sequence[Sequence[str]],
    exits: Sequence[str | None],
    *,
    final: str,
    bundle_names: bool = False,
) -> Partition:
    """Cuts a graph at named tensors.

    Args:
        model: The whole graph. Of several inputs, those that later stages need have to cross each cut before.
        cuts: Per cut the names of the tensors that cross. What crosses several cuts is handed on from stage to
            stage; what is made of inputs that cross, as `made_of_inputs` says, is made anew.
        exits: Per cut the name of its exit's logits, or None.
        final: The name of the network's own output.
        bundle_names: Call what enters and leaves the pieces `input`, `cut_0`, `exit_0` and so on, and where
            several tensors cross `cut_0_0`, `cut_0_1`; several inputs keep their names. Otherwise all do; what
            is handed on is called `NAME.cut_1` from cut 1 to stage 2.

    Returns:
        One stage more than cuts, an exit per cut, and the depth ℓ at the end of every stage.

    Raises:
        ExportError: A name that the graph does not have, a cut that does not separate it, or one of several inputs
            that is called like a cut or an exit of the bundle.
    """
    flow = Dataflow(model)
    if not flow.inputs:
        raise ExportError("the graph takes no input; there is nothing to send")
    if len(exits) != len(cuts):
        raise ExportError(f"{len(cuts)} cuts need as many exits (None for none), not {len(exits)}")
    if bundle_names and len(flow.inputs) > 1:
        taken = [name for name in flow.inputs if re.fullmatch(r"(cut|exit)_\d+(_\d+)?", name)]
        if taken:
            raise ExportError(f"the input {taken[0]!r} is called as bundles call a cut or an exit; rename it")
    cutter = _Cutter(flow)
    last = len(cuts)
    edges = [flow.inputs, *[list(cut) for cut in cuts], [final]]
    ends = [_ends(edges, i, bundle_names) for i in range(last + 1)]
    answers = [
        {} if name is None else {name: f"exit_{i}" if bundle_names else name}
        for i, name in enumerate([*exits, final])
    ]
    stages = tuple(
        cutter.piece(entering, leaving, f"stage {i}")
        for i, (entering, leaving) in enumerate(zip(ends, [*ends[1:], answers[-1]], strict=True))
    )
    heads = tuple(
        cutter.piece(ends[i + 1], answer, f"exit {i}") if answer else None for i, answer in enumerate(answers[:-1])
    )
    depth = depths(flow)
    return Partition(stages, heads, tuple(max(depth.get(name, 0) for name in edge) for edge in edges[1:]))


def _ends(edges: Sequence[Sequence[str]], edge: int, bundle_names: bool) -> dict[str, str]:
    """What the tensors of an edge (0 is the input, 1 is cut 0) are called between the pieces."""
    here = edges[edge]
    if bundle_names and edge == 0 and len(here) > 1:
        return {name: name for name in here}
    if bundle_names:
        called = cut_name(edge - 1)
        return {name: called if len(here) == 1 else f"{called}_{i}" for i, name in enumerate(here)}
    # ONNX Runtime gives an output that is an input the same memory, and nobody keeps that alive.
    earlier = {name for before in edges[:edge] for name in before}
    return {name: f"{name}.{cut_name(edge - 1)}" if name in earlier else name for name in here}


def graph_cost(model: ModelProto) -> Cost:
    """Counts the multiply-accumulates of a graph for one sample, and the stored parameters.

    Raises:
        ExportError: A shape that cannot be inferred.
    """
    # Shapes, axes and the like are initialisers too; only real numbers are parameters.
    weights = (t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
    return Cost(sum(node_macs(model)), sum(int(np.prod(t.dims)) for t in weights))


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
        inputs=tuple(tensor_spec(v) for v in model.graph.input),
        outputs=tuple(tensor_spec(v) for v in model.graph.output),
        parameters=cost.parameters,
        macs=cost.macs,
    )


def forget_origin(model: ModelProto) -> None:
    """Drops the exporter's notes: they hold this machine's paths, and the digest would depend on them."""

    def forget(graph: GraphProto | FunctionProto) -> None:
        for part in (graph, *graph.node, *graph.value_info):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        for node in graph.node:
            for attribute in node.attribute:
                bodies = [attribute.g] if attribute.HasField("g") else []
                for body in (*bodies, *attribute.graphs):
                    forget(body)

    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    for graph in (model.graph, *model.functions):
        forget(graph)


def depths(flow: Dataflow) -> dict[str, int]:
    """By tensor, the most convolution and linear layers on a path from the input."""
    depth: dict[str, int] = {}
    for node in flow.model.graph.node:
        layer = node.op_type in ("Conv", "ConvTranspose", "Gemm") or (
            node.op_type == "MatMul" and any(name not in flow.live for name in node.input)
        )
        here = max((depth.get(name, 0) for name in needs(node)), default=0) + int(layer)
        depth.update((name, here) for name in node.output if name)
    return depth


def tensor_spec(value: ValueInfoProto) -> TensorSpec:
    """What a graph says of a tensor, as the manifest has it.

    Raises:
        ExportError: A shape that is dynamic beyond the batch, or an element type that cannot travel.
    """
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    dims = tensor.shape.dim
    if dtype is None:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ExportError(
            f"tensor {value.name!r} is {kind}; {', '.join(_DTYPES.values())} can travel. Cut elsewhere; if it "
            "is an input, let the network take one of these and cast it itself"
        )
    if not dims or any(d.dim_value < 1 for d in dims[1:]):
        shape = [d.dim_param or d.dim_value for d in dims]
        raise ExportError(f"tensor {value.name!r} has shape {shape}; only the batch (the first) may be dynamic")
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(d.dim_value for d in dims[1:]))


class _Cutter:
    """Takes pieces out of a graph, between named tensors."""

    def __init__(self, flow: Dataflow) -> None:
        self._flow, self._sources = flow, made_of_inputs(flow)

    def piece(self, entering: Mapping[str, str], leaving: Mapping[str, str], what: str) -> ModelProto:
        """The part of the graph that computes some tensors from others alone.

        Args:
            entering: What it takes, by what that is called outside.
            leaving: What it gives, likewise.
            what: For errors.
        """
        flow, inputs, outputs = self._flow, list(entering), list(leaving)
        missing = [name for name in (*inputs, *outputs) if name not in flow.values]
        if missing:
            raise ExportError(
                f"{what}: the graph has no tensor {', '.join(missing)}, or does not say its type and shape"
            )
        found, sizes = self._needed(inputs, outputs, what)
        dead = [name for name in outputs if name not in flow.live]
        if dead:
            raise ExportError(f"{what}: the graph computes no tensor {', '.join(dead)} from {', '.join(inputs)}")
        piece = ModelProto()
        piece.CopyFrom(flow.model)
        graph = piece.graph
        for part in ("node", "initializer", "value_info", "input", "output"):
            graph.ClearField(part)
        for node in flow.model.graph.node:
            if not found.intersection(node.output):
                continue
            if node.output[0] in sizes and not found.union(inputs).issuperset(node.input):
                nodes, constants = flow.batch_from(node, inputs[0])
                graph.node.extend(nodes)
                graph.initializer.extend(constants)
            else:
                graph.node.append(node)
        graph.initializer.extend(t for name, t in flow.weights.items() if name in found)
        inner = found.difference(outputs, flow.weights)
        graph.value_info.extend(v for v in flow.model.graph.value_info if v.name in inner)
        graph.input.extend(flow.values[name] for name in inputs)
        graph.output.extend(flow.values[name] for name in outputs)
        keep_blocks(graph)
        _rename_ends(graph, entering, leaving)
        return piece

    def _needed(self, inputs: Sequence[str], outputs: Sequence[str], what: str) -> tuple[set[str], set[str]]:
        """The tensors that a piece makes, and those of them that only hold sizes."""
        flow, earlier = self._flow, ancestors(self._flow, inputs)
        found: set[str] = set()
        sizes: set[str] = set()
        waiting = [name for name in outputs if name not in inputs]
        while waiting:
            name = waiting.pop()
            if name in found or name in inputs:
                continue
            again = name in flow.makers and self._sources.get(name, _NOWHERE) <= set(inputs)
            if name in flow.live and not again and (name in earlier or name not in flow.makers):
                raise ExportError(
                    f"{what} needs the tensor {name!r} besides {', '.join(inputs)}: the cut does not separate "
                    "the graph; let that tensor cross too, or cut elsewhere"
                )
            found.add(name)
            maker = flow.makers.get(name)
            if maker is not None and flow.only_batch(maker):
                sizes.add(name)  # read off a tensor that is made here anyway, or off an input
            elif maker is not None:
                waiting += needs(maker)
        return found, sizes


def _rename_ends(graph: GraphProto, entering: Mapping[str, str], leaving: Mapping[str, str]) -> None:
    """Gives a piece other names at its ends. Identities stand between them and its own; runtimes drop most."""
    changed = [{old: new for old, new in ends.items() if old != new} for ends in (entering, leaving)]
    own = {name for node in graph.node for name in (*node.output, *needs(node))} | {*entering, *leaving}
    before = ""
    if own & {*changed[0].values(), *changed[1].values()}:  # it uses such a name for something of its own
        before = "graph."
        compose.add_prefix_graph(graph, before, inplace=True)
        changed = [dict(entering), dict(leaving)]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(helper.make_node("Identity", [new], [before + old]) for old, new in changed[0].items())
    graph.node.extend(nodes)
    graph.node.extend(helper.make_node("Identity", [before + old], [new]) for old, new in changed[1].items())
    for values, names in ((graph.input, changed[0]), (graph.output, changed[1])):
        for value in values:
            old = value.name.removeprefix(before)
            value.name = names.get(old, old)
