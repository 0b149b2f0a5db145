"""Tensors of a graph that can change the order of their channels together.

A region grows from one tensor in both directions. Operations that act on every channel alone pass the order
on, at its border dense weights have their rows or columns reordered and gathers their lists; then nothing
outside notices. If any tensor of it cannot change (it enters or leaves the graph, or something unknown reads
it), the region cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Order", "Region", "Stuck", "gather_axis", "gather_index", "passes_through", "set_constant", "size_of"]


class Stuck(Exception):  # noqa: N818  # no error: it ends a search and never leaves this package
    """A tensor cannot change its order."""


@dataclass(frozen=True, eq=False)
class Order:
    """How a tensor is reordered: new = take(old, index, axis), a permutation."""

    axis: int
    index: NDArray[np.int64]

    def same(self, other: Order) -> bool:
        """Whether both reorder alike."""
        return self.axis == other.axis and np.array_equal(self.index, other.index)

    def on(self, axis: int) -> Order:
        """The same on another axis."""
        return Order(axis, self.index)

    def spread(self, before: int, after: int) -> Order:
        """The order of a coarser or finer axis over the same values.

        Args:
            before: The values per entry of this axis.
            after: The values per entry of the other one.

        Raises:
            Stuck: The other axis does not keep what belongs together.
        """
        if before % after == 0:
            k = before // after
            return Order(self.axis, (self.index[:, None] * k + np.arange(k)).ravel())
        k = after // before
        coarse = Order(self.axis, self.index[::k] // k)
        _only(after % before == 0 and coarse.spread(after, before).same(self))
        return coarse


class Region:
    """Tensors with their new orders, and the constants and gathers that change with them.

    Every operation has a rule. It is called with a node and where an ordered tensor touches it (the place of
    an input, or −1 for the output), and gives orders to the node's other tensors and to its constants.
    """

    def __init__(self) -> None:
        self._orders: dict[ir.Value, Order] = {}
        self._waiting: list[ir.Value] = []
        #: By node and place: a constant's orders, by axis.
        self._constants: dict[tuple[ir.Node, int], dict[int, Order]] = {}
        #: By gather: the orders of its input (0) and its output (−1).
        self._gathers: dict[ir.Node, dict[int, Order]] = {}

    def grow(self, seed: ir.Value, order: Order) -> None:
        """Finds all that changes with one tensor; for a region that is still empty.

        Raises:
            Stuck: Something cannot change.
        """
        self._join(seed, order)
        while self._waiting:
            value = self._waiting.pop()
            maker = value.producer()
            assert maker is not None
            for node, place in ((maker, -1), *value.uses()):
                rule = _RULES.get(node.op_type)
                _only(not node.domain and len(node.outputs) == 1 and node.graph is maker.graph)
                if rule is None:
                    raise Stuck
                rule(self, node, place, self._orders[value])

    def gathers_saved(self) -> int:
        """By how much fewer gathers would be left; negative if more."""
        saved = 0
        for node in self._gathers:
            old = gather_index(node)
            assert old is not None
            saved += passes_through(node, self._new_index(node)) - passes_through(node, old)
        return saved

    def values_added(self) -> int:
        """How many constant values a file would hold besides those that it holds now."""
        users: dict[ir.Value, list[tuple[tuple[int, bytes], ...]]] = {}
        for (node, place), orders in self._constants.items():
            value = node.inputs[place]
            assert value is not None
            edit = tuple((axis, orders[axis].index.tobytes()) for axis in sorted(orders))
            users.setdefault(value, []).append(edit)
        added = 0
        for value, edits in users.items():
            copies = len(set(edits)) + (len(edits) < len(value.uses()) or value.is_graph_output())
            added += (copies - 1) * (size_of(value) or 0)
        return added

    def apply(self) -> None:
        """Changes the constants and the gathers."""
        for node in self._gathers:
            set_constant(node, 1, self._new_index(node))
        for (node, place), orders in self._constants.items():
            array = _constant(node.inputs[place])
            for order in orders.values():
                array = np.take(array, order.index, order.axis)
            set_constant(node, place, array)

    def _new_index(self, node: ir.Node) -> NDArray[np.int64]:
        index, orders = gather_index(node), self._gathers[node]
        assert index is not None
        if 0 in orders:
            index = np.argsort(orders[0].index)[index]  # the inverse: where each channel went
        return index[orders[-1].index] if -1 in orders else index

    # --- what rules are made of -------------------------------------------------------------------------

    def _join(self, value: ir.Value | None, order: Order) -> None:
        if value is None or value.producer() is None or value.is_graph_output():
            raise Stuck
        _only(_shape(value)[order.axis] == len(order.index))
        if value not in self._orders:
            self._orders[value] = order
            self._waiting.append(value)
        _only(self._orders[value].same(order))

    def _pass(self, node: ir.Node, into: Order, out: Order) -> None:
        self._join(node.inputs[0], into)
        self._join(node.outputs[0], out)

    def _permute(self, node: ir.Node, place: int, order: Order) -> None:
        _only(_is_constant(node.inputs[place]))
        orders = self._constants.setdefault((node, place), {})
        _only(orders.setdefault(order.axis, order).same(order))

    def _broadcast(self, node: ir.Node, place: int, order: Order) -> None:
        """Gives an input the order of the output, to whose shape it is broadcast."""
        value = node.inputs[place]
        shape = _shape(value)
        axis = order.axis - len(_shape(node.outputs[0])) + len(shape)
        if axis < 0 or shape[axis] == 1:
            return
        if _is_constant(value):
            self._permute(node, place, order.on(axis))
        else:
            self._join(value, order.on(axis))

    # --- rules ------------------------------------------------------------------------------------------

    def _elementwise(self, node: ir.Node, place: int, order: Order) -> None:
        if place >= 0:
            order = order.on(order.axis + len(_shape(node.outputs[0])) - len(_shape(node.inputs[place])))
        self._join(node.outputs[0], order)
        for i, value in enumerate(node.inputs):
            if value is not None:
                self._broadcast(node, i, order)

    def _batch_norm(self, node: ir.Node, place: int, order: Order) -> None:
        self._pool(node, place, order)
        for i in range(1, len(node.inputs)):
            self._permute(node, i, order.on(0))

    def _pool(self, node: ir.Node, place: int, order: Order) -> None:
        _only(place <= 0 and order.axis == 1)
        self._pass(node, order, order)

    def _pad(self, node: ir.Node, place: int, order: Order) -> None:
        rank = len(_shape(node.outputs[0]))
        axes = _constant(node.inputs[3]) % rank if len(node.inputs) > 3 else np.arange(rank)
        pads = _constant(node.inputs[1]).reshape(2, -1)
        _only(place <= 0 and not pads[:, axes == order.axis].any())
        self._pass(node, order, order)

    def _reduce(self, node: ir.Node, place: int, order: Order) -> None:
        _only(place <= 0 and len(node.inputs) == 2)  # without axes it reduces everything, or nothing
        rank = len(_shape(node.inputs[0]))
        gone = {int(axis) % rank for axis in _constant(node.inputs[1])}
        stay = [axis for axis in range(rank) if axis not in gone or _attribute(node, "keepdims", 1)]
        axis = order.axis if place == 0 else stay[order.axis]
        _only(bool(gone) and axis not in gone)
        self._pass(node, order.on(axis), order.on(stay.index(axis)))

    def _reshape(self, node: ir.Node, place: int, order: Order) -> None:
        (_, *before), (_, *after) = _shape(node.inputs[0]), _shape(node.outputs[0])
        # One sample stays one sample; in it, a channel is a run of this many values, before and after.
        each, now = math.prod(before[1:]), math.prod(after[1:])
        _only(place <= 0 and order.axis == 1 and each * now > 0 and math.prod(before) == math.prod(after))
        if place == 0:
            self._pass(node, order, order.spread(each, now))
        else:
            self._pass(node, order.spread(now, each), order)

    def _transpose(self, node: ir.Node, place: int, order: Order) -> None:
        way = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else []
        _only(bool(way))
        axis = order.axis if place == 0 else way[order.axis]
        self._pass(node, order.on(axis), order.on(way.index(axis)))

    def _conv(self, node: ir.Node, place: int, order: Order) -> None:
        _only(place <= 0 and order.axis == 1)
        groups, (right, left, *_) = _attribute(node, "group", 1), _shape(node.inputs[1])
        if groups > 1:  # depthwise: every channel has outputs of its own
            _only(left == 1)
            into = order if place == 0 else order.spread(1, right // groups)
            order = order if place < 0 else order.spread(right // groups, 1)
            self._pass(node, into, order)
        elif place == 0:
            self._permute(node, 1, order.on(1))
            return
        for i in range(1, len(node.inputs)):
            self._permute(node, i, order.on(0))

    def _gemm(self, node: ir.Node, place: int, order: Order) -> None:
        _only(place <= 0 and order.axis == 1 and not _attribute(node, "transA", 0))
        left = _attribute(node, "transB", 0)
        self._permute(node, 1, order.on(left if place == 0 else 1 - left))
        if place < 0 and len(node.inputs) > 2:
            self._broadcast(node, 2, order)

    def _matmul(self, node: ir.Node, place: int, order: Order) -> None:
        rank = len(_shape(node.inputs[0]))
        _only(place <= 0 and order.axis == rank - 1 and len(_shape(node.inputs[1])) == 2)
        self._permute(node, 1, order.on(1 if place < 0 else 0))

    def _gather(self, node: ir.Node, place: int, order: Order) -> None:
        _only(place <= 0 and gather_index(node) is not None and order.axis == gather_axis(node))
        self._gathers.setdefault(node, {})[place] = order


_RULES: dict[str, Callable[[Region, ir.Node, int, Order], None]] = {
    **dict.fromkeys(("Abs", "Add", "Cast", "Celu", "Clip", "Div", "Elu", "Erf", "Exp"), Region._elementwise),
    **dict.fromkeys(("Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log"), Region._elementwise),
    **dict.fromkeys(("Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Relu", "Selu"), Region._elementwise),
    **dict.fromkeys(("Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Tanh"), Region._elementwise),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), Region._pool),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), Region._reduce),
    **dict.fromkeys(("Flatten", "Reshape"), Region._reshape),
    "BatchNormalization": Region._batch_norm,
    "Conv": Region._conv,
    "Gather": Region._gather,
    "Gemm": Region._gemm,
    "MatMul": Region._matmul,
    "Pad": Region._pad,
    "Transpose": Region._transpose,
}


# --- gathers --------------------------------------------------------------------------------------------


def gather_index(node: ir.Node) -> NDArray[np.int64] | None:
    """What a gather by a constant list takes, each at least 0; None for any other node."""
    if node.op_type != "Gather" or node.domain or not _is_constant(node.inputs[1]):
        return None
    source, index = node.inputs[0], _constant(node.inputs[1])
    if index.ndim != 1 or source is None or source.shape is None:
        return None
    size = source.shape[gather_axis(node)]
    return np.where(index < 0, index + size, index).astype(np.int64) if isinstance(size, int) else None


def gather_axis(node: ir.Node) -> int:
    """A gather's axis, at least 0."""
    return _attribute(node, "axis", 0) % len(_shape(node.inputs[0]))


def passes_through(node: ir.Node, index: NDArray[np.int64]) -> bool:
    """Whether a gather by this list changes nothing and may go; what leaves the graph keeps its maker."""
    size = _shape(node.inputs[0])[gather_axis(node)]
    return np.array_equal(index, np.arange(size)) and not node.outputs[0].is_graph_output()


# --- values ---------------------------------------------------------------------------------------------


def set_constant(node: ir.Node, place: int, array: NDArray[Any]) -> None:
    """Gives a node a constant of its own."""
    old, graph = node.inputs[place], node.graph
    assert isinstance(graph, ir.Graph)
    assert old is not None
    name = f"{old.name}.reordered"
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(new)
    node.replace_input_with(place, new)


def size_of(value: ir.Value) -> int | None:
    """The number of values in a tensor, or None if it varies."""
    shape = value.shape
    return None if shape is None or not shape.is_static() else math.prod(shape.numpy())


def _shape(value: ir.Value | None) -> list[int]:
    """A tensor's shape, −1 where it varies.

    Raises:
        Stuck: It is unknown.
    """
    if value is None or value.shape is None:
        raise Stuck
    return [size if isinstance(size, int) else -1 for size in value.shape]


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.is_graph_input()


def _constant(value: ir.Value | None) -> NDArray[Any]:
    if value is None or value.const_value is None or not _is_constant(value):
        raise Stuck
    return value.const_value.numpy()


def _attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def _only(possible: bool) -> None:
    if not possible:
        raise Stuck
