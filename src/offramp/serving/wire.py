"""Tensors on the wire: NumPy arrays to and from Open Inference Protocol v2 messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError, ProtocolError

__all__ = ["DATATYPES", "MAX_PORT", "from_outputs", "from_request", "grpc_options", "put_tensors"]

#: NumPy's name → the protocol's
DATATYPES = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}
_DTYPES = {theirs: np.dtype(ours).newbyteorder("<") for ours, theirs in DATATYPES.items()}
MAX_PORT = 65535
#: By dtype object: looking its name up costs more than all the rest of a small message.
_NAMES = {np.dtype(ours).newbyteorder("<"): theirs for ours, theirs in DATATYPES.items()}
_TYPED_FIELDS = {"FP32": "fp32_contents", "INT64": "int64_contents", "UINT8": "uint_contents"}


def grpc_options(max_message_mb: int) -> list[tuple[str, int]]:
    """Message limits for both sides; gRPC's own is 4 MiB."""
    size = max_message_mb * 2**20
    return [("grpc.max_send_message_length", size), ("grpc.max_receive_message_length", size)]


def put_tensors(tensors: Mapping[str, NDArray[np.generic]], described: Any, raw: Any) -> None:
    """Adds tensors to a message: names, types and shapes to `described`, bytes to `raw`.

    Raises:
        InputError: A type that cannot travel; the wire's byte order is little-endian.
    """
    for name, given in tensors.items():
        tensor = given if given.dtype in _NAMES else given.astype(given.dtype.newbyteorder("<"))
        datatype = _NAMES.get(tensor.dtype)
        if datatype is None:
            raise InputError(f"tensor {name!r} is {given.dtype}; {', '.join(DATATYPES)} can travel")
        described.add(name=name, datatype=datatype, shape=tensor.shape)
        raw.append(tensor.tobytes())


def from_request(request: Any) -> dict[str, NDArray[np.generic]]:
    """The tensors of a ModelInferRequest.

    Raises:
        InputError: A tensor that does not fit its own description.
    """
    try:
        return _tensors(request.inputs, request.raw_input_contents)
    except ValueError as error:
        raise InputError(str(error)) from error


def from_outputs(response: Any) -> dict[str, NDArray[np.generic]]:
    """The tensors of a ModelInferResponse.

    Raises:
        ProtocolError: A tensor that does not fit its own description.
    """
    try:
        return _tensors(response.outputs, response.raw_output_contents)
    except ValueError as error:
        raise ProtocolError(f"the server's answer cannot be read: {error}") from error


def _tensors(described: Sequence[Any], raw: Sequence[bytes]) -> dict[str, NDArray[np.generic]]:
    if raw and len(raw) != len(described):
        raise ValueError(f"{len(raw)} raw contents for {len(described)} tensors")
    found: dict[str, NDArray[np.generic]] = {}
    for i, entry in enumerate(described):
        if entry.name in found:
            raise ValueError(f"tensor {entry.name!r} comes twice")
        dtype = _DTYPES.get(entry.datatype)
        if dtype is None:
            raise ValueError(
                f"tensor {entry.name!r} is {entry.datatype or 'of no type'}; known: {', '.join(_DTYPES)}"
            )
        shape = tuple(entry.shape)
        wanted = dtype.itemsize
        for size in shape:
            if size < 0:
                raise ValueError(f"tensor {entry.name!r} has shape {shape}")
            wanted *= size
        if raw:
            if len(raw[i]) != wanted:
                raise ValueError(f"tensor {entry.name!r} of shape {shape} needs {wanted} bytes, got {len(raw[i])}")
            found[entry.name] = np.frombuffer(raw[i], dtype).reshape(shape)
        else:
            values = getattr(entry.contents, _TYPED_FIELDS[entry.datatype])
            if len(values) * dtype.itemsize != wanted:
                raise ValueError(f"tensor {entry.name!r} of shape {shape} holds {len(values)} values")
            if entry.datatype == "UINT8" and any(value > 255 for value in values):
                raise ValueError(f"tensor {entry.name!r} is UINT8 and holds values above 255")
            found[entry.name] = np.asarray(values, dtype).reshape(shape)
    return found
