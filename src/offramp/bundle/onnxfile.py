"""A look into an ONNX file without the onnx package: does it point to data outside itself?

Only the fields on the way to tensors are declared; protobuf skips the rest. Field numbers are those of
onnx.proto (github.com/onnx/onnx, onnx/onnx.proto).
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

__all__ = ["external_data"]

_Field = descriptor_pb2.FieldDescriptorProto
#: message → field → (number, "one" or "many", message or "int")
_SCHEMA = {
    "Model": {"graph": (7, "one", "Graph"), "functions": (25, "many", "Function")},
    "Function": {"node": (7, "many", "Node"), "attribute_proto": (11, "many", "Attribute")},
    "Graph": {
        "node": (1, "many", "Node"),
        "initializer": (5, "many", "Tensor"),
        "sparse_initializer": (15, "many", "Sparse"),
    },
    "Node": {"attribute": (5, "many", "Attribute")},
    "Attribute": {
        "t": (5, "one", "Tensor"),
        "g": (6, "one", "Graph"),
        "tensors": (10, "many", "Tensor"),
        "graphs": (11, "many", "Graph"),
        "sparse_tensor": (22, "one", "Sparse"),
        "sparse_tensors": (23, "many", "Sparse"),
    },
    "Sparse": {"values": (1, "one", "Tensor"), "indices": (2, "one", "Tensor")},
    "Tensor": {"external_data": (13, "many", "Entry"), "data_location": (14, "one", "int")},
    "Entry": {},
}


def _model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="offramp_onnx_view.proto", package="offramp.onnx_view", syntax="proto2"
    )
    for name, fields in _SCHEMA.items():
        described = file.message_type.add(name=name)
        for field, (number, label, kind) in fields.items():
            described.field.add(
                name=field,
                number=number,
                label=_Field.LABEL_REPEATED if label == "many" else _Field.LABEL_OPTIONAL,
                type=_Field.TYPE_INT32 if kind == "int" else _Field.TYPE_MESSAGE,
                type_name=None if kind == "int" else f".offramp.onnx_view.{kind}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("offramp.onnx_view.Model"))


def external_data(onnx_bytes: bytes) -> bool:
    """Whether any tensor of the model, wherever it is nested, lies outside these bytes.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    model = _model_class()()
    try:
        model.ParseFromString(onnx_bytes)
    except message.DecodeError as error:
        raise ValueError(f"not an ONNX file: {error}") from error
    return _points_outside(model)


def _points_outside(part: Any) -> bool:
    if part.DESCRIPTOR.name == "Tensor":
        return bool(part.external_data) or part.data_location == 1
    for field, value in part.ListFields():
        if field.message_type is None:
            continue
        inner = [value] if hasattr(value, "DESCRIPTOR") else value
        if any(_points_outside(v) for v in inner):
            return True
    return False
