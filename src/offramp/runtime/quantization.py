"""Chosen stages of a bundle as int8, and what that changes. Needs the onnx package, not torch."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto

from offramp.bundle.bundle import Bundle, check_place, write_bundle
from offramp.bundle.feed import by_name
from offramp.bundle.int8 import int8_graph, is_int8
from offramp.bundle.manifest import Manifest
from offramp.bundle.shapes import session
from offramp.errors import ConfigError, ExportError
from offramp.runtime.comparison import Comparison, compare
from offramp.runtime.evaluation import batches, class_indices, sample_count
from offramp.runtime.stages import Stages

__all__ = ["Quantized", "quantize_stages"]

#: Samples that are run at once for calibration.
_BATCH = 50


@dataclass(frozen=True)
class Quantized:
    """A bundle with int8 stages, and what it does differently.

    Attributes:
        bundle: The new bundle.
        stages: The stages that are int8 now and were not.
        kept: The stages that stay float though they were chosen: they hold no weights to quantise.
        comparison: Bytes, times and accuracies, before and after.
    """

    bundle: Bundle
    stages: tuple[int, ...]
    kept: tuple[int, ...]
    comparison: Comparison


def quantize_stages(
    bundle: Bundle,
    path: str | Path,
    *,
    calibration: Any,
    inputs: Any,
    labels: NDArray[np.integer],
    stages: Collection[int] | None = None,
    data: str = "",
    on_batch: Callable[[int], None] = lambda n: None,
) -> Quantized:
    """Writes a bundle whose chosen stages compute with 8-bit integers, and measures it beside the old one.

    Stages still take and give float, so cuts, codecs, exits and their thresholds stay as they are; the digest is
    another one. Each stage is calibrated on what the stages before it give once they are quantised themselves.
    What was measured is written into the manifest's provenance, under `int8`.

    Args:
        bundle: The whole bundle.
        path: The new bundle's directory; an older bundle there is replaced, but not this one.
        calibration: (N, …) what the network usually sees, from which the ranges of activations are taken; as
            `exit_logits` takes inputs.
        inputs: (N, …) others, on which accuracies are measured.
        labels: (N,) their classes' indices.
        stages: Which stages; all if left out.
        data: What both kinds of inputs are, in words, for the record.
        on_batch: Told how many inputs have been run since it was last told: `calibration` once for every chosen
            stage, `inputs` twice.

    Raises:
        ConfigError: Stages that are not there or int8 already, an edge copy, no inputs to calibrate on or to
            measure by, the bundle itself as the new place, or no stage with weights to quantise.
        InputError: Inputs of wrong shape or dtype or not finite, or labels that are no class indices.
        ExportError: A stage that ONNX Runtime's quantiser refuses.
        BundleError: The bundle cannot be written.
        StageError: ONNX Runtime failed.
    """
    manifest = bundle.manifest
    root = check_place(path)
    if root == bundle.path.resolve():
        raise ConfigError(
            f"{root} is the bundle itself; give the int8 one another place, so that the float one stays"
        )
    chosen = _chosen(bundle, stages)
    if not sample_count(by_name(calibration, manifest.inputs)):
        raise ConfigError("there are no samples to calibrate on")
    count = sample_count(by_name(inputs, manifest.inputs))
    labels = class_indices(labels, count, manifest.final_exit().logits.shape[-1])
    before = Stages(bundle)
    done = _quantised(before, chosen, calibration, on_batch)
    if not done:
        raise ConfigError(
            f"{bundle.path} has no weights that can be quantised in {_listed(chosen)}; nothing is written"
        )
    files = {graph.file: bundle.read(graph) for graph in manifest.graphs()}
    for i, content in done.items():
        files[manifest.stages[i].graph.file] = content
    fresh = _described(manifest, done)
    with tempfile.TemporaryDirectory(prefix="offramp-int8-") as folder:
        trial = Path(folder) / "trial.bundle"
        write_bundle(trial, fresh, bundle.tuning, files)
        comparison = compare(before, Stages(Bundle.load(trial)), inputs, labels, on_batch=on_batch)
    record = {
        "stages": list(done),
        "calibration_samples": sample_count(by_name(calibration, manifest.inputs)),
        "data": data,
        "onnxruntime": ort.__version__,
        "measured": comparison.to_dict(),
    }
    write_bundle(root, _recorded(fresh, record), bundle.tuning, files)
    kept = tuple(i for i in chosen if i not in done)
    return Quantized(Bundle.load(path), tuple(done), kept, comparison)


def _chosen(bundle: Bundle, stages: Collection[int] | None) -> tuple[int, ...]:
    """The stages to quantise, ascending; the bundle is whole, and none of them is int8."""
    last = bundle.manifest.last
    if bundle.held <= last:
        raise ConfigError(f"{bundle.path} is an edge copy; quantise the whole bundle, and copy that for the edge")
    chosen = tuple(sorted(set(range(last + 1) if stages is None else stages)))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] <= last:
        raise ConfigError(f"{bundle.path} has stages 0 to {last}; chosen: {', '.join(map(str, chosen)) or 'none'}")
    there = [i for i in chosen if is_int8(_model(bundle, i))]
    if there:
        rest = [i for i in range(last + 1) if i not in there]
        advice = f"; choose among {_listed(rest)}" if rest else ""
        raise ConfigError(f"{bundle.path} is int8 already in {_listed(there)}{advice}")
    return chosen


def _quantised(
    before: Stages, chosen: tuple[int, ...], calibration: Any, on_batch: Callable[[int], None]
) -> dict[int, bytes]:
    """By stage the int8 graph, where there is something to quantise; each sees what the ones before it give."""
    bundle = before.bundle
    done: dict[int, bytes] = {}
    seen = list(batches(bundle.manifest, calibration, _BATCH))
    count = sum(len(batch[0]) for batch in seen)
    for i in range(chosen[-1] + 1):
        graph = bundle.manifest.stages[i].graph
        names = [t.name for t in graph.inputs]
        found = None
        if i in chosen:
            try:
                found = int8_graph(_model(bundle, i), (dict(zip(names, b, strict=True)) for b in seen))
                if found is not None:
                    done[i] = found.SerializeToString(deterministic=True)
                    runner = session(found)
                    ends = [t.name for t in graph.outputs]
                    seen = [runner.run(ends, dict(zip(names, b, strict=True))) for b in seen]
            except ExportError as error:
                raise ExportError(f"stage {i} of {bundle.path}: {error}; leave it out with --stages") from error
            on_batch(count)
        if found is None:
            seen = [before.stage(i, batch)[0] for batch in seen]
    return done


def _described(manifest: Manifest, done: dict[int, bytes]) -> Manifest:
    """The manifest with other files for some stages; weights, work and depth count as before."""
    stages = list(manifest.stages)
    for i, content in done.items():
        told = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        stages[i] = stages[i].model_copy(update={"graph": stages[i].graph.model_copy(update=told)})
    return manifest.model_copy(update={"stages": tuple(stages)})


def _recorded(manifest: Manifest, record: dict[str, object]) -> Manifest:
    """The manifest with one more record of what has been quantised."""
    origin = manifest.provenance
    earlier = origin.metrics.get("int8")
    records = [*(earlier if isinstance(earlier, list) else []), record]
    metrics = {**origin.metrics, "int8": records}
    return manifest.model_copy(update={"provenance": origin.model_copy(update={"metrics": metrics})})


def _model(bundle: Bundle, index: int) -> ModelProto:
    model = ModelProto()
    model.ParseFromString(bundle.read(bundle.manifest.stages[index].graph))
    return model


def _listed(stages: Collection[int]) -> str:
    return f"{'stage' if len(stages) == 1 else 'stages'} {', '.join(map(str, stages))}"
