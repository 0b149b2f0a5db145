"""Codecs: pairs of tiny graphs without weights that encode and decode the tensors of a cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from offramp.bundle.manifest import TensorSpec
from offramp.bundle.quantiser import Quantiser

__all__ = ["IR_VERSION", "OPSET", "make_codec"]

#: Old enough for every supported onnxruntime.
OPSET, IR_VERSION = 18, 10

_ELEMENTS = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}


def make_codec(
    tensors: Sequence[TensorSpec], quantisers: Sequence[Quantiser | None], mode: str
) -> tuple[ModelProto, ModelProto]:
    """Linear quantisation of the tensors of a cut; with 4 and 2 bits, values share bytes.

    A sample of M values of b bits travels as ceil(M·b/8) bytes: its first 8/b parts of equal length lie over each
    other, the first in the lowest bits.

    Args:
        tensors: The tensors that cross.
        quantisers: One for each; a tensor without one travels as it is.
        mode: The mode's name.

    Returns:
        The encoder, from `cut_k` to `cut_k_<mode>`, and the decoder back.
    """
    encoder, decoder = _Graph("encode"), _Graph("decode")
    for tensor, quantiser in zip(tensors, quantisers, strict=True):
        packed = TensorSpec(name=f"{tensor.name}_{mode}", dtype=tensor.dtype, shape=tensor.shape)
        if quantiser is None:
            encoder.node("Identity", [tensor.name], packed.name)
            decoder.node("Identity", [packed.name], tensor.name)
        else:
            size = math.prod(tensor.shape)
            shape = tensor.shape if quantiser.bits == 8 else (-(-size * quantiser.bits // 8),)
            packed = TensorSpec(name=packed.name, dtype="uint8", shape=shape)
            _encode(encoder, tensor, packed, quantiser)
            _decode(decoder, tensor, packed, quantiser)
        for graph, ends in ((encoder, (tensor, packed)), (decoder, (packed, tensor))):
            graph.ends.append(ends)
    return encoder.model(), decoder.model()


def _encode(graph: _Graph, tensor: TensorSpec, packed: TensorSpec, quantiser: Quantiser) -> None:
    name, bits = tensor.name, quantiser.bits
    levels = packed.name if bits == 8 else f"{name}/levels"
    graph.linear("QuantizeLinear", name, levels, name, quantiser)
    if bits == 8:
        return
    parts, spare = _parts(tensor, bits)
    # QuantizeLinear saturates at 255 only.
    top = graph.constant(f"{name}/top", np.uint8(2**bits - 1))
    flat = graph.constant(f"{name}/flat", np.array([0, -1]))
    graph.node("Clip", [levels, "", top], f"{name}/clipped")
    last = graph.node("Reshape", [f"{name}/clipped", flat], f"{name}/row")
    if spare:
        width = graph.constant(f"{name}/width", np.array([0, 0, 0, spare]))
        last = graph.node("Pad", [last, width], f"{name}/padded")
    planes = [f"{name}/plane_{i}" for i in range(parts)]
    graph.nodes.append(helper.make_node("Split", [last], planes, axis=1, num_outputs=parts))
    joined = planes[0]
    for i, plane in enumerate(planes[1:], start=1):
        by = graph.constant(f"{name}/by_{i}", np.array([bits * i], np.uint8))
        shifted = graph.node("BitShift", [plane, by], f"{plane}/shifted", direction="LEFT")
        target = packed.name if i == parts - 1 else f"{name}/joined_{i}"
        joined = graph.node("BitwiseOr", [joined, shifted], target)


def _decode(graph: _Graph, tensor: TensorSpec, packed: TensorSpec, quantiser: Quantiser) -> None:
    name, bits = tensor.name, quantiser.bits
    levels = packed.name
    if bits < 8:
        parts, spare = _parts(tensor, bits)
        low = graph.constant(f"{name}/low", np.array([2**bits - 1], np.uint8))
        planes = []
        for i in range(parts):
            plane = packed.name
            if i > 0:  # the first part lies in the lowest bits already, above the last one there is nothing
                by = graph.constant(f"{name}/by_{i}", np.array([bits * i], np.uint8))
                plane = graph.node("BitShift", [plane, by], f"{name}/shifted_{i}", direction="RIGHT")
            if i < parts - 1:
                plane = graph.node("BitwiseAnd", [plane, low], f"{name}/plane_{i}")
            planes.append(plane)
        last = graph.node("Concat", planes, f"{name}/row", axis=1)
        if spare:
            bounds = ((f"{name}/{what}", np.array([value])) for what, value in (("from", 0), ("to", -spare)))
            edges = [graph.constant(where, value) for where, value in bounds]
            axis = graph.constant(f"{name}/axis", np.array([1]))
            last = graph.node("Slice", [last, *edges, axis], f"{name}/cropped")
        shape = graph.constant(f"{name}/shape", np.array([0, *tensor.shape]))
        levels = graph.node("Reshape", [last, shape], f"{name}/levels")
    graph.linear("DequantizeLinear", levels, name, name, quantiser)


def _parts(tensor: TensorSpec, bits: int) -> tuple[int, int]:
    """How many values share a byte, and how many more would fill the last one."""
    parts = 8 // bits
    return parts, -math.prod(tensor.shape) % parts


class _Graph:
    """A graph as it is written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        #: What goes in and what comes out, tensor by tensor.
        self.ends: list[tuple[TensorSpec, TensorSpec]] = []

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def linear(self, operator: str, source: str, target: str, name: str, quantiser: Quantiser) -> None:
        shared = quantiser.axis is None
        scale, zero = ((v[0] if shared else v) for v in (quantiser.scale, quantiser.zero))
        constants = [self.constant(f"{name}/scale", scale), self.constant(f"{name}/zero", zero)]
        axis: dict[str, int] = {} if shared or quantiser.axis is None else {"axis": quantiser.axis + 1}
        self.node(operator, [source, *constants], target, **axis)

    def model(self) -> ModelProto:
        inputs, outputs = (
            [helper.make_tensor_value_info(t.name, _ELEMENTS[t.dtype], ["N", *t.shape]) for t in side]
            for side in zip(*self.ends, strict=True)
        )
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="offramp"
        )
        checker.check_model(model, full_check=True)
        return model
