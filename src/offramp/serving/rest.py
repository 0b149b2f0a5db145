"""Inference over HTTP: JSON, and the binary tensor extension, to questions and from answers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from offramp.errors import InputError
from offramp.serving.service import Answer, Question
from offramp.serving.wire import DATATYPES, described_tensor, raw_tensor

__all__ = ["HEADER_LENGTH", "JSON_SHARE", "RestRequest", "read_request", "write_answer"]

#: The header that says how many bytes of JSON stand before the tensors' bytes.
HEADER_LENGTH = "Inference-Header-Content-Length"
#: Read JSON takes about eight times its bytes, so it may be an eighth of the largest message.
JSON_SHARE = 8
_NUMBERS: dict[str, set[type]] = {"FP32": {int, float}, "INT64": {int}, "UINT8": {int}, "BOOL": {bool}}
_Parameters = dict[str, bool | int | float | str]


class _Tensor(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str
    datatype: str
    shape: list[int]
    parameters: _Parameters = {}
    data: list[Any] | None = None


class _Output(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str
    parameters: _Parameters = {}


class _Request(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str = ""
    parameters: _Parameters = {}
    inputs: list[_Tensor]
    outputs: list[_Output] = []


class RestRequest(NamedTuple):
    """A request as it was read.

    Attributes:
        question: What is asked.
        call_id: The client's own name for it; it comes back.
        binary: Whether an output travels as bytes, by its name.
        binary_default: The same for outputs that were not named.
    """

    question: Question
    call_id: str
    binary: Mapping[str, bool]
    binary_default: bool


def read_request(model: str, version: str, body: bytes, header_length: str | None, max_json: int) -> RestRequest:
    """A request from a body, whose JSON ends where the header says, or with the body.

    Args:
        model: The model's name, from the path.
        version: Its version, from the path; may be empty.
        body: JSON, then the bytes of the tensors that have a `binary_data_size`, in their order.
        header_length: The header `HEADER_LENGTH`.
        max_json: The most bytes of JSON.

    Raises:
        InputError: What cannot be read, or a tensor that does not fit its own description.
    """
    length = _json_length(body, header_length)
    if length > max_json:
        raise InputError(
            f"{length} bytes of JSON; at most {max_json} are read: send tensors as bytes (binary_data_size)"
        )
    try:
        asked = _Request.model_validate_json(body[:length])
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise InputError(f"{place}: {first['msg']}") from error
    except RecursionError as error:
        raise InputError("the body: JSON in too many levels") from error
    try:
        tensors = _tensors(asked.inputs, body[length:])
    except ValueError as error:
        raise InputError(str(error)) from error
    for output in asked.outputs:
        if output.parameters.get("classification"):
            raise InputError(f"output {output.name!r}: the classification extension is not spoken here")
    question = Question(
        model=model,
        tensors=tensors,
        version=version,
        digest=_parameter(asked.parameters, "digest", str),
        final=_parameter(asked.parameters, "final", bool) or False,
        outputs=tuple(output.name for output in asked.outputs),
    )
    all_binary = _parameter(asked.parameters, "binary_data_output", bool) or False
    binary = {
        output.name: _parameter(output.parameters, "binary_data", bool, all_binary) for output in asked.outputs
    }
    return RestRequest(question, asked.id, binary, all_binary)


def write_answer(request: RestRequest, answer: Answer) -> tuple[bytes, int | None]:
    """A response's body, and where its JSON ends if tensors' bytes follow."""
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, tensor in answer.tensors.items():
        output: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
        }
        if request.binary.get(name, request.binary_default):
            content = np.asarray(tensor, tensor.dtype.newbyteorder("<")).tobytes()
            output["parameters"] = {"binary_data_size": len(content)}
            raw.append(content)
        else:
            output["data"] = tensor.reshape(-1).tolist()
        outputs.append(output)
    body: dict[str, Any] = {
        "model_name": request.question.model,
        "model_version": answer.version,
        "parameters": {"server_ms": answer.server_ms, "queue_ms": answer.queue_ms},
        "outputs": outputs,
    }
    if request.call_id:
        body["id"] = request.call_id
    header = to_json(body)
    return (b"".join([header, *raw]), len(header)) if raw else (header, None)


def _json_length(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    # Python counts digits of every script as such, and takes as many as there are.
    if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 10:
        raise InputError(f"{HEADER_LENGTH} is a number of bytes, not {header_length!r}")
    if int(header_length) > len(body):
        raise InputError(f"{HEADER_LENGTH} is {header_length}, the body has {len(body)} bytes")
    return int(header_length)


def _parameter(parameters: _Parameters, name: str, kind: type, default: Any = None) -> Any:
    value = parameters.get(name, default)
    if value is not default and type(value) is not kind:
        raise InputError(f"parameter {name!r} is a {kind.__name__}, not {value!r}")
    return value


def _tensors(given: list[_Tensor], raw: bytes) -> dict[str, NDArray[np.generic]]:
    found: dict[str, NDArray[np.generic]] = {}
    start = 0
    for tensor in given:
        if tensor.name in found:
            raise ValueError(f"tensor {tensor.name!r} comes twice")
        size = _parameter(tensor.parameters, "binary_data_size", int)
        if (size is None) == (tensor.data is None):
            raise ValueError(f"tensor {tensor.name!r} needs either `data` or `binary_data_size`")
        if size is None:
            found[tensor.name] = _from_json(tensor)
            continue
        if not 0 <= size <= len(raw) - start:
            raise ValueError(f"tensor {tensor.name!r} of {size} bytes: {len(raw) - start} bytes are left")
        content = raw[start : start + size]
        found[tensor.name] = raw_tensor(tensor.name, tensor.datatype, tensor.shape, content)
        start += size
    if start != len(raw):
        raise ValueError(f"{len(raw) - start} bytes belong to no tensor")
    return found


def _from_json(tensor: _Tensor) -> NDArray[np.generic]:
    """Values in a flat list, or nested as the shape says; both are the protocol's."""
    dtype, wanted = described_tensor(tensor.name, tensor.datatype, tensor.shape)
    values: list[Any] = tensor.data or []
    for depth, size in enumerate(tensor.shape):
        if not values or type(values[0]) is not list:
            break
        # What is nested any other way comes apart here: rows of other lengths, or numbers beside rows.
        inner = tensor.shape[depth + 1] if depth + 1 < len(tensor.shape) else None
        if (depth == 0 and len(values) != size) or any(type(v) is not list or len(v) != inner for v in values):
            raise ValueError(f"tensor {tensor.name!r} is not nested as its shape {tuple(tensor.shape)} says")
        values = list(chain.from_iterable(values))
    if len(values) != wanted:
        raise ValueError(f"tensor {tensor.name!r} of shape {tuple(tensor.shape)} holds {len(values)} values")
    if not set(map(type, values)) <= _NUMBERS[tensor.datatype]:
        raise ValueError(f"tensor {tensor.name!r} is {tensor.datatype} and holds other values")
    if tensor.datatype == "UINT8" and values and not (min(values) >= 0 and max(values) <= 255):
        raise ValueError(f"tensor {tensor.name!r} is UINT8 and holds values outside 0 to 255")
    try:
        with np.errstate(over="ignore"):  # infinity is refused like every other
            return np.array(values, dtype).reshape(tensor.shape)
    except OverflowError as error:
        raise ValueError(f"tensor {tensor.name!r} is {tensor.datatype} and holds larger values") from error
