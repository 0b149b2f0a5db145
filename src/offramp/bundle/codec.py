"""Codecs: pairs of tiny graphs without weights that encode and decode the tensors of a cut."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, TensorProto, checker, helper

from offramp.bundle.manifest import TensorSpec

__all__ = ["IR_VERSION", "OPSET", "uint8_codec"]

#: Old enough for every supported onnxruntime.
OPSET, IR_VERSION = 18, 10


def uint8_codec(tensors: Sequence[TensorSpec], value_range: tuple[float, float]) -> tuple[ModelProto, ModelProto]:
    """Linear quantisation to 8 bits: one scale and zero point per cut.

    Args:
        tensors: The tensors that cross, float32.
        value_range: The smallest and largest value seen in calibration; values beyond are clipped.

    Returns:
        The encoder, from `cut_k` to `cut_k_uint8`, and the decoder back.
    """
    low, high = min(value_range[0], 0.0), max(value_range[1], 0.0)  # zero stays exact
    scale = (high - low) / 255 or 1.0
    zero = min(max(round(-low / scale), 0), 255)
    return _codec(tensors, "QuantizeLinear", scale, zero), _codec(tensors, "DequantizeLinear", scale, zero)


def _codec(tensors: Sequence[TensorSpec], operator: str, scale: float, zero: int) -> ModelProto:
    nodes, plain, packed = [], [], []
    for tensor in tensors:
        shape: list[str | int | None] = ["N", *tensor.shape]
        plain.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, shape))
        packed.append(helper.make_tensor_value_info(f"{tensor.name}_uint8", TensorProto.UINT8, shape))
        ends = (tensor.name, f"{tensor.name}_uint8")
        source, target = ends if operator == "QuantizeLinear" else ends[::-1]
        nodes.append(helper.make_node(operator, [source, "scale", "zero"], [target]))
    inputs, outputs = (plain, packed) if operator == "QuantizeLinear" else (packed, plain)
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [zero]),
    ]
    graph = helper.make_graph(nodes, operator, inputs, outputs, constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="offramp"
    )
    checker.check_model(model, full_check=True)
    return model
