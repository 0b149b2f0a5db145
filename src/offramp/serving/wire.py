"""Tensors on the wire: NumPy arrays to and from Open Inference Protocol v2 messages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from offramp.errors import InputError, ProtocolError

__all__ = [
    "DATATYPES",
    "MAX_PORT",
    "described_tensor",
    "endpoint",
    "from_outputs",
    "from_request",
    "grpc_options",
    "raw_tensor",
    "request_message",
    "response_message",
]

#: NumPy's name → the protocol's
DATATYPES = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64", "bool": "BOOL"}
_DTYPES = {theirs: np.dtype(ours).newbyteorder("<") for ours, theirs in DATATYPES.items()}
MAX_PORT = 65535
#: NumPy 1's own limit.
_MOST_DIMENSIONS = 32

_Described = tuple[tuple[str, str, tuple[int, ...]], ...]
#: By dtype object: looking its name up costs more than all the rest of a small message.
_NAMES = {np.dtype(ours).newbyteorder("<"): theirs for ours, theirs in DATATYPES.items()}
_TYPED_FIELDS = {
    "FP32": "fp32_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "BOOL": "bool_contents",
}


def endpoint(host: str, port: int) -> str:
    """An address as gRPC and URLs have it, IPv6 in brackets: `10.0.0.7:8001`, `[::1]:8001`."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def grpc_options(max_message_mb: int) -> list[tuple[str, int]]:
    """Message limits for both sides; gRPC's own is 4 MiB."""
    size = max_message_mb * 2**20
    return [("grpc.max_send_message_length", size), ("grpc.max_receive_message_length", size)]


def request_message(
    model: str, tensors: Mapping[str, NDArray[np.generic]], digest: str | None, final: bool
) -> Any:
    """A ModelInferRequest.

    Raises:
        InputError: A tensor of a type that cannot travel.
    """
    described, raw = _packed(tensors)
    message = pb.ModelInferRequest()
    message.CopyFrom(_request_head(model, digest, final, described))
    message.raw_input_contents.extend(raw)
    return message


def response_message(
    model: str,
    version: str,
    call_id: str,
    tensors: Mapping[str, NDArray[np.generic]],
    server_ms: float,
    queue_ms: float = 0.0,
) -> Any:
    """A ModelInferResponse with the server's computing time, and the time in its queue."""
    described, raw = _packed(tensors)
    message = pb.ModelInferResponse()
    message.CopyFrom(_response_head(model, version, described))
    message.raw_output_contents.extend(raw)
    if call_id:
        message.id = call_id
    message.parameters["server_ms"].double_param = server_ms
    if queue_ms:
        message.parameters["queue_ms"].double_param = queue_ms
    return message


# What stands before the bytes is the same from call to call; copying it costs a tenth of building it.
@lru_cache(maxsize=256)
def _request_head(model: str, digest: str | None, final: bool, described: _Described) -> Any:
    head = pb.ModelInferRequest(model_name=model)
    for name, datatype, shape in described:
        head.inputs.add(name=name, datatype=datatype, shape=shape)
    if digest is not None:
        head.parameters["digest"].string_param = digest
    if final:
        head.parameters["final"].bool_param = True
    return head


@lru_cache(maxsize=256)
def _response_head(model: str, version: str, described: _Described) -> Any:
    head = pb.ModelInferResponse(model_name=model, model_version=version)
    for name, datatype, shape in described:
        head.outputs.add(name=name, datatype=datatype, shape=shape)
    return head


def _packed(tensors: Mapping[str, NDArray[np.generic]]) -> tuple[_Described, list[bytes]]:
    described, raw = [], []
    for name, given in tensors.items():
        tensor = given if given.dtype in _NAMES else given.astype(given.dtype.newbyteorder("<"))
        datatype = _NAMES.get(tensor.dtype)
        if datatype is None:
            raise InputError(f"tensor {name!r} is {given.dtype}; {', '.join(DATATYPES)} can travel")
        described.append((name, datatype, tensor.shape))
        raw.append(tensor.tobytes())
    return tuple(described), raw


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
        name, datatype, shape = entry.name, entry.datatype, entry.shape[:]
        if name in found:
            raise ValueError(f"tensor {name!r} comes twice")
        if raw:
            found[name] = raw_tensor(name, datatype, shape, raw[i])  # each look copies
            continue
        dtype, wanted = described_tensor(name, datatype, shape)
        values = getattr(entry.contents, _TYPED_FIELDS[datatype])
        if len(values) != wanted:
            raise ValueError(f"tensor {name!r} of shape {tuple(shape)} holds {len(values)} values")
        if datatype == "UINT8" and any(value > 255 for value in values):
            raise ValueError(f"tensor {name!r} is UINT8 and holds values above 255")
        found[name] = np.asarray(values, dtype).reshape(shape)
    return found


def raw_tensor(name: str, datatype: str, shape: Sequence[int], content: bytes) -> NDArray[np.generic]:
    """The tensor of little-endian bytes, not copied.

    Raises:
        ValueError: They do not fit their description.
    """
    dtype, wanted = described_tensor(name, datatype, shape)
    if len(content) != wanted * dtype.itemsize:
        raise ValueError(
            f"tensor {name!r} of shape {tuple(shape)} needs {wanted * dtype.itemsize} bytes, got {len(content)}"
        )
    if dtype == np.bool_ and content.translate(None, b"\0\1"):
        raise ValueError(f"tensor {name!r} is BOOL and holds bytes other than 0 and 1")
    return np.ndarray(shape, dtype, content)


def described_tensor(name: str, datatype: str, shape: Sequence[int]) -> tuple[np.dtype[Any], int]:
    """The dtype and the number of elements of a tensor as its sender describes it.

    Raises:
        ValueError: No tensor of ours is like that.
    """
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        raise ValueError(f"tensor {name!r} is {datatype or 'of no type'}; known: {', '.join(_DTYPES)}")
    if len(shape) > _MOST_DIMENSIONS:  # the product of a million of them would take hours
        raise ValueError(f"tensor {name!r} has {len(shape)} dimensions; at most {_MOST_DIMENSIONS} are taken")
    if shape and min(shape) < 0:
        raise ValueError(f"tensor {name!r} has shape {tuple(shape)}")
    return dtype, math.prod(shape)
