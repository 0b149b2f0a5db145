"""From any ONNX file to a bundle: cut it at chosen tensors, without torch and without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from offramp.bundle.assembly import assemble, made_with
from offramp.bundle.bundle import Bundle
from offramp.bundle.cuts import CutGraph
from offramp.bundle.dataflow import Dataflow
from offramp.bundle.manifest import CLOSED, Preprocessing, Tuning, cut_name, wire_name
from offramp.bundle.onnxload import load_onnx, prepared
from offramp.bundle.partition import forget_origin, partition
from offramp.errors import ConfigError, ExportError

__all__ = ["bundle_from_onnx"]


def bundle_from_onnx(
    model: str | Path | ModelProto,
    cuts: Sequence[str],
    path: str | Path,
    *,
    exits: Mapping[int, str] | None = None,
    output: str | None = None,
    free_batch: bool = False,
    samples: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
    name: str | None = None,
    classes: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
) -> Bundle:
    """Cuts an ONNX model into a verified bundle.

    Opsets and the IR version stay as they are. The tensors that cross get the bundle's names; which ones they
    were stands in the manifest's provenance, under `metrics`. Thresholds keep everything from leaving early until
    `tuning.json` says otherwise.

    Args:
        model: A file, or what was read from one. It gives logits (N, classes).
        cuts: Per cut the tensors that cross, joined by "+", in any order.
        path: The bundle's directory; an older bundle there is replaced.
        exits: By the number of a cut, counted from the input, the name of its exit's logits.
        output: The network's own logits; the graph's last output if left out.
        free_batch: As `load_onnx` says; for a file.
        samples: Inputs (N, …) by which the modes of each cut are fitted; of several inputs by name. Without them,
            cuts travel as `float`.
        name: The bundle's name on the wire; made from the directory's name if left out.
        classes: The classes' names.
        preprocessing: How an image becomes an input.

    Raises:
        ConfigError: A name that is not there, cuts side by side, or an exit of a cut that is not there.
        ExportError: A model that cannot be read, run, or cut; an output that holds no logits.
        ExternalDataError: Weights outside the model's folder.
        InputError: Samples that the network cannot take.
        BundleError: The bundle cannot be written, or does not hold together.
    """
    name = wire_name(path, name)
    source = model if isinstance(model, ModelProto) else load_onnx(model, free_batch=free_batch)
    whole = prepared(source)
    graph = CutGraph(whole, output)
    chosen = graph.at(cuts)
    heads = dict(exits or {})
    unknown = [number for number in heads if number not in range(len(chosen))]
    if unknown:
        raise ConfigError(f"there is no cut {unknown[0]} for an exit; cuts are numbered 0 to {len(chosen) - 1}")
    last = len(chosen)
    for answer in (*heads.values(), graph.output):
        _check_logits(whole, answer)
    names = [[t.name for t in cut.tensors] for cut in chosen]
    pieces = partition(whole, names, [heads.get(i) for i in range(last)], final=graph.output, bundle_names=True)
    for piece in (*pieces.stages, *(head for head in pieces.exits if head is not None)):
        forget_origin(piece)
    there = [i in heads for i in range(last)]
    return assemble(
        path,
        pieces,
        name=name,
        classes=classes,
        preprocessing=preprocessing,
        densities=(1.0,) * len(pieces.stages),
        samples=samples,
        tuning=Tuning(
            temperatures=(*(1.0 if here else None for here in there), 1.0),
            thresholds=(*(CLOSED if here else None for here in there), None),
        ),
        provenance=made_with("onnx", metrics={"cut_at": {cut_name(i): cut.name for i, cut in enumerate(chosen)}}),
    )


def _check_logits(model: ModelProto, name: str) -> None:
    flow = Dataflow(model)
    value, maker = flow.values.get(name), flow.makers.get(name)
    if value is None or maker is None:
        raise ConfigError(f"the graph computes no tensor {name!r} for an exit; `--exit` names one of its outputs")
    dims = value.type.tensor_type.shape.dim
    if len(dims) != 2:
        shape = [d.dim_param or d.dim_value for d in dims]
        raise ExportError(
            f"the output {name!r} has shape {shape}; a bundle answers with logits (N, classes). Name such a "
            "tensor: --output NAME"
        )
    if maker.op_type == "Softmax":
        raise ExportError(
            f"the output {name!r} holds probabilities, but exits need the logits before the Softmax; name them: "
            f"--output {maker.input[0]}"
        )
