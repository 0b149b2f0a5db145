"""Residual sums right after a cut, in a form that keeps a runtime's blocked memory layout.

On x86, ONNX Runtime runs convolutions on maps whose channels are cut into blocks of 8 or 16 (NCHWc), and adds a
residual inside the convolution if both terms are in that layout. What enters a graph is not. So a sum of a
convolution and of what crossed the cut is left outside, and so is every later sum in the same run of residual
blocks, each with a reordering before and after. A 1×1 maximum changes no value, but its result is in blocks: what
crossed the cut is then reordered once, and the sums are fused as they are in the whole graph.
"""

from __future__ import annotations

from onnx import GraphProto, TensorProto, ValueInfoProto, helper

__all__ = ["keep_blocks"]

#: Channels per block with AVX-512; 8 with AVX2. A maximum over other numbers of channels would stay outside.
_BLOCK = 16


def keep_blocks(graph: GraphProto) -> None:
    """Passes each input that is added to a convolution's result through a 1×1 maximum; values stay to the bit.

    Args:
        graph: A piece of a network; changed in place.
    """
    makers = {name: node.op_type for node in graph.node for name in node.output}
    taken = {*makers, *(value.name for value in graph.input), *(weight.name for weight in graph.initializer)}
    added = {
        name
        for node in graph.node
        if node.op_type == "Add" and any(makers.get(n) in ("Conv", "BatchNormalization") for n in node.input)
        for name in node.input
    }
    for value in graph.input:
        if value.name not in added or not _in_blocks(value):
            continue
        blocked = ValueInfoProto()
        blocked.CopyFrom(value)
        while blocked.name in taken:
            blocked.name += "_blocked"
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == value.name:
                    node.input[i] = blocked.name
        pool = helper.make_node("MaxPool", [value.name], [blocked.name], name=blocked.name, kernel_shape=[1, 1])
        graph.node.insert(0, pool)
        graph.value_info.append(blocked)


def _in_blocks(value: ValueInfoProto) -> bool:
    """Whether it holds maps (N, C, H, W) of whole blocks."""
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    channels = dims[1].dim_value if len(dims) == 4 else 0
    return tensor.elem_type == TensorProto.FLOAT and channels > 0 and channels % _BLOCK == 0
