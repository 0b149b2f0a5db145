"""A bundle as a model repository of NVIDIA Triton: one ONNX model per stage and decoder, ensembles for the tails.

Triton reaches the same tails under the same names, so an edge needs no change. Ensembles share their stages: each
weight is stored and loaded once, and requests that entered at different cuts are batched at the stages they share.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from offramp.bundle.bundle import Bundle
from offramp.bundle.manifest import Graph, Manifest, TensorSpec
from offramp.errors import BundleError, ConfigError, ExportError
from offramp.runtime.tail import TailModel, tail_models
from offramp.serving.wire import DATATYPES

__all__ = ["check_whole", "triton_configs", "write_triton"]

_VERSION = "1"


def write_triton(bundle: Bundle, target: str | Path, *, max_batch: int = 32) -> tuple[TailModel, ...]:
    """Writes a model repository, whole or not at all; gives the models that a client may call.

    Ensembles answer with `logits` alone, always of the last exit: nothing leaves early inside Triton, and Triton
    ignores the request parameters `digest` and `final`. The digest stands in each ensemble's `parameters`.

    Args:
        bundle: The whole bundle.
        target: A directory that is empty, or not there yet.
        max_batch: The most samples that run at once, and that a request may hold.

    Raises:
        ConfigError: `max_batch` below 1.
        ExportError: An edge copy, or tensors that Triton cannot take.
        BundleError: The target is in use or cannot be written, or the bundle was altered.
    """
    configs = triton_configs(bundle.manifest, max_batch)
    check_whole(bundle)
    graphs = dict(_components(bundle.manifest))
    root = Path(target).resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise BundleError(f"{root} exists and is not an empty directory; choose another place or remove it")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as place:
            fresh = Path(place) / "fresh"
            for name, config in configs.items():
                version = fresh / name / _VERSION
                version.mkdir(parents=True)
                (fresh / name / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
                if name in graphs:
                    (version / "model.onnx").write_bytes(bundle.read(graphs[name]))
                else:  # Triton wants a version of an ensemble too, and object stores hold no empty directories
                    (version / ".keep").touch()
            os.replace(fresh, root)
    except OSError as error:
        raise BundleError(f"cannot write a model repository to {root}: {error}") from error
    return tail_models(bundle.manifest)


def triton_configs(manifest: Manifest, max_batch: int) -> dict[str, Any]:
    """By name a `ModelConfig` for every stage, decoder and ensemble of a bundle.

    Raises:
        ConfigError: `max_batch` below 1.
        ExportError: Tensors that Triton cannot take.
    """
    if max_batch < 1:
        raise ConfigError(f"a batch holds at least one sample, so --max-batch is at least 1, not {max_batch}")
    _check_tensors(manifest)
    configs = {}
    for name, graph in _components(manifest):
        config = _config(name, graph.inputs, graph.outputs, max_batch)
        config.backend, config.default_model_filename = "onnxruntime", "model.onnx"
        config.dynamic_batching.SetInParent()  # with no delay: what waits anyway is joined
        warmup = config.model_warmup.add(name="zeros", batch_size=1)  # the first run of a graph is its slowest
        for described in config.input:
            warmup.inputs[described.name].data_type = described.data_type
            warmup.inputs[described.name].dims.extend(described.dims)
            warmup.inputs[described.name].zero_data = True
        configs[name] = config
    for model in tail_models(manifest):
        logits = tuple(output for output in model.outputs if output.name == "logits")
        config = _config(model.name, model.inputs, logits, max_batch)
        config.platform = "ensemble"
        config.parameters["digest"].string_value = manifest.digest
        for name, graph in _chain(manifest, model):
            step = config.ensemble_scheduling.step.add(model_name=name, model_version=-1)  # the newest
            for tensor in graph.inputs:
                step.input_map[tensor.name] = tensor.name
            for tensor in graph.outputs:
                last = tensor == manifest.final_exit().logits
                step.output_map[tensor.name] = "logits" if last else tensor.name
        configs[model.name] = config
    return configs


def check_whole(bundle: Bundle) -> None:
    """Refuses an edge copy.

    Raises:
        ExportError: Stages are missing.
    """
    stages = bundle.manifest.last + 1
    if bundle.held < stages:
        raise ExportError(
            f"{bundle.path} is an edge copy with {bundle.held} of {stages} stages; export the whole bundle"
        )


def _components(manifest: Manifest) -> Iterator[tuple[str, Graph]]:
    """What runs: the stages and the decoders, with their names in the repository."""
    for i in range(manifest.last + 1):
        yield _stage(manifest, i)
    for codec in manifest.codecs:
        yield _decoder(manifest, codec.cut, codec.mode)


def _chain(manifest: Manifest, model: TailModel) -> Iterator[tuple[str, Graph]]:
    """What a tail runs, in order."""
    if model.mode != "float":
        yield _decoder(manifest, model.cut, model.mode)
    for i in range(model.cut + 1, manifest.last + 1):
        yield _stage(manifest, i)


def _stage(manifest: Manifest, index: int) -> tuple[str, Graph]:
    return f"{manifest.name}-stage-{index}", manifest.stages[index].graph


def _decoder(manifest: Manifest, cut: int, mode: str) -> tuple[str, Graph]:
    codec = manifest.codec(cut, mode)
    assert codec is not None  # the caller has the mode from the manifest
    where = "input" if cut == -1 else str(cut)
    return f"{manifest.name}-decode-{where}-{mode}", codec.decoder


def _config(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], max_batch: int) -> Any:
    """With a `max_batch_size`, Triton itself puts the batch's axis before `dims`."""
    config = ModelConfig(name=name, max_batch_size=max_batch)
    for tensors, described in ((inputs, config.input), (outputs, config.output)):
        for tensor in tensors:
            kind = DataType.Value(f"TYPE_{DATATYPES[tensor.dtype]}")
            described.add(name=tensor.name, data_type=kind, dims=tensor.shape)
    return config


def _check_tensors(manifest: Manifest) -> None:
    tensors = [t for _, graph in _components(manifest) for t in (*graph.inputs, *graph.outputs)]
    bare = next((t.name for t in tensors if not t.shape), None)
    if bare is not None:
        raise ExportError(
            f"tensor {bare!r} holds one value per sample and has no axis beside the batch; Triton needs one: "
            "let the network take and hand on shape (N, 1)"
        )
    if any(tensor.name == "logits" for tensor in manifest.inputs):
        raise ExportError(
            "an input of the network is called 'logits', as the answer is; rename it and export anew"
        )
