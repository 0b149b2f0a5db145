"""What a graph's tensors are made from: which of them depend on its input, and what only knows the batch.

Exporters write `x.reshape(len(x), -1)` as a chain of operations on `Shape(x)`. Such a tensor does not hold
anything of a sample, so it need not cross a cut: where every axis but the batch is fixed, each piece can make
it anew from the batch of whatever it takes in. It counts as constant here.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

__all__ = ["Dataflow", "graph_inputs", "needs"]


class Dataflow:
    """A graph by its tensors' names.

    Attributes:
        model: The graph. ONNX keeps its nodes in topological order.
        inputs: What has to be fed, in order; initialisers that are listed as inputs too do not count.
        makers: The node that makes a tensor.
        weights: The initialisers.
        values: The tensors whose type and shape the graph says.
        live: Everything that depends on what is in a sample.
    """

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.inputs = [v.name for v in graph_inputs(model)]
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.weights = {t.name: t for t in graph.initializer}
        self.values: dict[str, ValueInfoProto] = {
            v.name: v for v in (*graph.value_info, *graph.input, *graph.output)
        }
        self.live = set(self.inputs)
        for node in graph.node:
            if not self.only_batch(node) and self.live.intersection(needs(node)):
                self.live.update(name for name in node.output if name)

    def only_batch(self, node: NodeProto) -> bool:
        """Whether a node gives the sizes of a tensor of which nothing but the batch can change."""
        return node.op_type == "Shape" and not node.domain and self._sizes(node.input[0]) is not None

    def batch_from(self, node: NodeProto, anchor: str) -> tuple[list[NodeProto], list[TensorProto]]:
        """Nodes and constants that give the same sizes, but read the batch off another tensor.

        Args:
            node: A node for which `only_batch` holds.
            anchor: Any tensor with the batch first.
        """
        sizes, name = self._sizes(node.input[0]), node.output[0]
        assert sizes is not None
        ends = {a.name: a.i for a in node.attribute}
        here = list(enumerate([-1, *sizes]))[ends.get("start", 0) : ends.get("end")]
        fixed = helper.make_tensor(
            f"{name}.fixed", TensorProto.INT64, [sum(i > 0 for i, _ in here)], [s for i, s in here if i > 0]
        )
        if not any(i == 0 for i, _ in here):
            return [helper.make_node("Identity", [fixed.name], [name])], [fixed]
        first = helper.make_tensor(f"{name}.first", TensorProto.INT64, [1], [0])
        nodes = [
            helper.make_node("Shape", [anchor], [f"{name}.all"]),
            helper.make_node("Gather", [f"{name}.all", first.name], [f"{name}.batch"]),
            helper.make_node("Concat", [f"{name}.batch", fixed.name], [name], axis=0),
        ]
        return nodes, [first, fixed]

    def _sizes(self, name: str) -> list[int] | None:
        """The sizes of every axis but the first, where that is the batch and they are fixed."""
        names = {self._batch_name(entry) for entry in self.inputs}
        value = self.values.get(name)
        if value is None or len(names) != 1 or None in names or self._batch_name(name) not in names:
            return None
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]
        return sizes if all(size > 0 for size in sizes) else None

    def _batch_name(self, name: str) -> str | None:
        """What the graph calls a tensor's first axis; None where that has a fixed size, or no name."""
        dims = self.values[name].type.tensor_type.shape.dim
        return dims[0].dim_param or None if dims else None


def graph_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """What has to be fed: the graph's inputs that are no initialisers."""
    constant = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in constant]


def needs(node: NodeProto) -> list[str]:
    """The tensors that a node reads, those that its branches and bodies take from outside included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {v.name for v in body.input} | {t.name for t in body.initializer}
            for inner in body.node:
                names += [name for name in needs(inner) if name not in own]
                own.update(inner.output)
            names += [v.name for v in body.output if v.name not in own]
    return names
