"""Gathers of single features that stay after folding, as cheaper data movement.

A runtime's Gather along the last axis copies value by value. Most of the lists that sparse layers leave have a
structure: rows of w values, each with the same step s between its values. Read the axis as a table of
(n / (w·s), w, s); then a row is a column of one of the tables. So a transposition (none if s = 1) makes every
row contiguous, and a Gather of whole rows (none if they already stand in order) puts them into place:

    a strided layout        w = n/G, s = G        Reshape, Transpose, Reshape
    and its way back        w = G, s = n/G        Reshape, Transpose, Reshape
    joined blocks           w = n/G, s = 1        Reshape, Gather of rows, Reshape
    strided joined blocks   w = n/G, s = G        Reshape, Transpose, Gather of rows, Reshape

With one thread at widths from 256 to 4096 this was faster than the list at every batch from 1 to 256, and so
was every w from 2. Channels of a convolution's maps already are whole rows, and a Gather of them the fastest form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from offramp.bundle.reorder import gather_axis, gather_index

__all__ = ["Rows", "lower_gathers"]

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """A list of features as rows of equal length with one step inside.

    Attributes:
        width: w, the values per row.
        step: s, from one value of a row to the next.
        order: Which row of the tables stands in each place; row q·s + r is column r of table q.
    """

    width: int
    step: int
    order: Index

    @classmethod
    def of(cls, index: Index, size: int) -> Rows | None:
        """The longest rows that a list of features out of `size` consists of; None if there are none."""
        if len(index) < 2:
            return None
        step = int(index[1] - index[0])
        # To transpose an axis costs its whole length, even if little of it is taken.
        if step < 1 or (step > 1 and len(index) < size):
            return None
        for width in range(min(len(index), size // step), 1, -1):
            if len(index) % width or size % (width * step):
                continue
            rows = index.reshape(-1, width)
            table, place = np.divmod(rows[:, 0], width * step)
            if (np.diff(rows, axis=1) == step).all() and (place < step).all():
                return cls(width, step, table * step + place)
        return None


def lower_gathers(model: ir.Model) -> int:
    """Writes gathers along the last axis as reshapes, transpositions and gathers of rows where their list allows.

    Outputs keep their names and, to the bit, their values.

    Returns:
        The number of gathers that were written anew.
    """
    lowered = sum(_lowered(node) for node in list(model.graph))
    common.RemoveUnusedNodesPass()(model)
    common.DeduplicateInitializersPass()(model)
    return lowered


def _lowered(node: ir.Node) -> bool:
    index = gather_index(node)
    if index is None:
        return False
    source, old, graph = node.inputs[0], node.outputs[0], node.graph
    assert source is not None
    assert source.shape is not None
    assert isinstance(graph, ir.Graph)
    axis, size = gather_axis(node), source.shape[-1]
    if axis != source.shape.rank() - 1 or not isinstance(size, int):
        return False
    rows = Rows.of(index, size)
    if rows is None:
        return False
    chain = _Chain(graph, source, f"{old.name}.lowered")
    tables = size // (rows.width * rows.step)
    if rows.step > 1:
        chain.reshape(*([tables] if tables > 1 else []), rows.width, rows.step)
        chain.swap()
    if not np.array_equal(rows.order, np.arange(size // rows.width)):
        if rows.step == 1 or tables > 1:
            chain.reshape(size // rows.width, rows.width)
        chain.gather(rows.order)
    chain.reshape(len(index))
    ir.convenience.replace_nodes_and_values(graph, node, [node], chain.nodes, [old], [chain.value])
    return True


class _Chain:
    """Nodes one after another that change the last axis of a tensor, at first one axis, and nothing else."""

    def __init__(self, graph: ir.Graph, source: ir.Value, name: str) -> None:
        assert source.shape is not None
        self.nodes: list[ir.Node] = []
        self.value = source
        self._graph, self._name = graph, name
        self._leading = list(source.shape)[:-1]
        #: The sizes of the axes that have become of the last one.
        self._last: tuple[int, ...] = ()

    def reshape(self, *last: int) -> None:
        """Reads the last axis in another form."""
        # A 0 copies the size that stands there, whatever the batch is.
        shape = self._constant("shape", np.array([0] * len(self._leading) + list(last), np.int64))
        self._add("Reshape", last, shape)

    def swap(self) -> None:
        """Exchanges the last two axes."""
        *before, rows, columns = self._last
        rank = len(self._leading) + len(self._last)
        self._add("Transpose", (*before, columns, rows), perm=[*range(rank - 2), rank - 1, rank - 2])

    def gather(self, order: Index) -> None:
        """Takes whole rows: entries of the last axis but one."""
        *before, _, width = self._last
        axis = len(self._leading) + len(before)
        self._add("Gather", (*before, len(order), width), self._constant("rows", order), axis=axis)

    def _add(self, kind: str, last: tuple[int, ...], *constants: ir.Value, **how: int | list[int]) -> None:
        source, name = self.value, f"{self._name}.{len(self.nodes)}"
        sizes = [size if isinstance(size, int) else size.value for size in (*self._leading, *last)]
        self.value = ir.Value(name=name, type=source.type, shape=ir.Shape(sizes))
        self.nodes.append(ir.node(kind, [source, *constants], how, outputs=[self.value], name=name))
        self._last = last

    def _constant(self, what: str, array: Index) -> ir.Value:
        name = f"{self._name}.{len(self.nodes)}.{what}"
        tensor = ir.tensor(array, name=name)
        made = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self._graph.register_initializer(made)
        return made
