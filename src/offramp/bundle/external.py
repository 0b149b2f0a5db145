"""Weights that an ONNX file keeps in other files, read from its own folder and from nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, external_data_helper, helper

from offramp.errors import ExportError, ExternalDataError

__all__ = ["load_external"]

#: protobuf holds no larger message.
_MOST_BYTES = 2**31 - 1


def load_external(model: ModelProto, folder: Path) -> None:
    """Reads all weights that lie in other files into the model.

    Args:
        model: As it was read; changed in place.
        folder: The model's own. Its files and those below it may hold weights.

    Raises:
        ExternalDataError: A path that leaves the folder, a link, or a file that is missing or too short.
        ExportError: More than fits into one ONNX file.
    """
    total = 0
    for tensor in _tensors(model.graph, *model.functions):
        if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        file = _inside(said.get("location", ""), folder, tensor.name)
        try:
            offset, size = int(said.get("offset", 0)), int(said.get("length", -1))
        except ValueError as error:
            raise ExternalDataError(f"tensor {tensor.name!r}: its place in {file.name} is no number") from error
        size = file.stat().st_size - offset if size < 0 else size
        if offset < 0 or offset + size > file.stat().st_size or size < _least_bytes(tensor):
            raise ExternalDataError(
                f"tensor {tensor.name!r} should be {max(size, _least_bytes(tensor))} bytes at {offset} of "
                f"{file.name}, which has {file.stat().st_size}; copy the file again"
            )
        total += size
        if total > _MOST_BYTES:
            raise ExportError(f"{file.parent} holds over 2 GB of weights, more than stages can hold inside")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # onnx checks paths too, and raises its own
            raise ExternalDataError(f"tensor {tensor.name!r} cannot be read from {file.name}: {error}") from error


def _inside(location: str, folder: Path, name: str) -> Path:
    """The file that holds a tensor; what leads out of the model's folder is refused."""
    where = PurePosixPath(location)
    what = f"tensor {name!r} lies in {location!r}"
    if not location or "\0" in location or "\\" in location or where.is_absolute() or ".." in where.parts:
        raise ExternalDataError(f"{what}: weights may only lie in the model's own folder; save them beside it")
    file = folder
    for part in where.parts:
        file = file / part
        if file.is_symlink():
            raise ExternalDataError(f"{what}, where {file.name} is a link; put a copy of the file there (cp -L)")
    if not file.is_file():
        raise ExternalDataError(f"{what}, which is not there; copy it beside the model")
    return file


def _least_bytes(tensor: TensorProto) -> int:
    """What a tensor's values take; 0 for types that several values share a byte of."""
    try:
        each = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return 0
    return int(math.prod(tensor.dims)) * each


def _tensors(*parts: object) -> Iterator[TensorProto]:
    """Every constant, in branches, bodies and functions too."""
    for part in parts:
        if isinstance(part, GraphProto):
            yield from part.initializer
            for sparse in part.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        nodes: list[NodeProto] = list(getattr(part, "node", ()))
        for attribute in (a for node in nodes for a in node.attribute):
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
        *attribute.sparse_tensors,
    ):
        yield from (sparse.values, sparse.indices)
    yield from _tensors(*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
