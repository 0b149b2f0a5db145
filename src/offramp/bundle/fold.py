"""Fewer operations for the same numbers: weights cut once, at export, and channels reordered in weights.

A gather that reorders channels copies a tensor at every inference. Where dense weights before or after it can
take over its order (`offramp.bundle.reorder`), it goes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from offramp.bundle.reorder import (
    Order,
    Region,
    Stuck,
    gather_axis,
    gather_index,
    passes_through,
    set_constant,
    size_of,
)

__all__ = ["fold_gathers", "fold_weights"]

#: What takes a weight apart or turns it round. Nothing else is folded: a `ScatterElements` of |W| values would
#: become a dense weight, and a `Cast` of its index would double that.
_CUTS = frozenset({"Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
#: Constants of up to this many values may lie in a file a second time.
_SMALL = 4096
#: Equal constants of up to this many values are found; two larger ones are hardly ever equal by chance.
_COMPARED = 2**16


def fold_weights(model: ir.Model) -> None:
    """Does once what would cut, turn or reshape weights at every load, where the file does not grow by it."""
    fold_constants(model, output_size_limit=2**62, should_fold=_keeps_the_size)
    _tidy(model)


def fold_gathers(model: ir.Model) -> int:
    """Removes gathers of whole channels that the tensors around them can absorb.

    Outputs keep their names, their channels' order, and their values up to the order of summation.

    Returns:
        The number of gathers removed.
    """
    before = len(_gathers(model.graph))
    while any(_passed_by(node) or _absorbed(node) for node in _gathers(model.graph)):
        common.RemoveUnusedNodesPass()(model)
    _tidy(model)
    return before - len(_gathers(model.graph))


def _keeps_the_size(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if source is None or not _is_cut(node):
        return False
    users = source.consumers()
    parts = [size_of(user.outputs[0]) for user in users if _is_cut(user)]
    if None in parts:
        return False
    # A weight that something else reads stays, and its parts would come on top.
    goes = len(parts) == len(users) and not source.is_graph_output()
    return sum(part or 0 for part in parts) <= max(_SMALL, (size_of(source) or 0) if goes else 0)


def _is_cut(node: ir.Node) -> bool:
    return node.op_type in _CUTS and not node.domain and len(node.outputs) == 1


def _gathers(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if gather_index(node) is not None]


def _passed_by(node: ir.Node) -> bool:
    """Goes round a gather that changes nothing, or one that only this gather reads; whether there was one."""
    source, index = node.inputs[0], gather_index(node)
    assert source is not None
    assert index is not None
    if passes_through(node, index):
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        return True
    first = source.producer()
    taken = None if first is None else gather_index(first)
    if first is None or taken is None or gather_axis(first) != gather_axis(node):
        return False
    if len(source.uses()) > 1 or source.is_graph_output():
        return False
    node.replace_input_with(0, first.inputs[0])
    set_constant(node, 1, taken[index])
    return True


def _absorbed(node: ir.Node) -> bool:
    """Lets the tensors after a gather, or those before it, take over its order; whether they could."""
    source, index, axis = node.inputs[0], gather_index(node), gather_axis(node)
    assert source is not None
    assert index is not None
    if source.shape is None or len(index) != source.shape[axis] or len(np.unique(index)) < len(index):
        return False  # a dense weight that took over a repetition would be larger
    undone = np.argsort(index)
    for seed, order in ((node.outputs[0], undone), (source, index)):
        region = Region()
        try:
            region.grow(seed, Order(axis, order))
        except Stuck:
            continue
        if region.gathers_saved() > 0 and region.values_added() <= _SMALL:
            region.apply()
            return True
    return False


def _tidy(model: ir.Model) -> None:
    common.RemoveUnusedNodesPass()(model)
    common.DeduplicateInitializersPass(_COMPARED)(model)
