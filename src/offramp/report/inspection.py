"""What a bundle holds, as a table."""

from __future__ import annotations

from typing import Any

from offramp.bundle.bundle import Bundle
from offramp.bundle.manifest import Exit, Graph, TensorSpec
from offramp.tables import bytes_text, count_text, table_text

__all__ = ["inspection", "inspection_text"]


def inspection(bundle: Bundle) -> dict[str, Any]:
    """A bundle's parts as JSON values: one entry per stage, with its exit and the cut behind it."""
    manifest, tuning = bundle.manifest, bundle.tuning
    stages = []
    for i, stage in enumerate(manifest.stages):
        found = manifest.exits[i]
        last = i == manifest.last
        stages.append(
            {
                "stage": i,
                "held": i < bundle.held,
                "parameters": stage.graph.parameters,
                "macs": stage.graph.macs,
                "bytes": stage.graph.bytes,
                "density": stage.density,
                "depth": stage.depth,
                "exit": None if found is None else _exit(i, found, tuning.temperatures[i], tuning.thresholds[i]),
                "cut": None if last else [_tensor(t) for t in manifest.cut(i)],
                "modes": {} if last else {mode: _sent(bundle, i, mode) for mode in manifest.modes(i)},
            }
        )
    return {
        "name": manifest.name,
        "path": str(bundle.path),
        "format": manifest.format,
        "digest": bundle.digest,
        "classes": list(manifest.classes),
        "inputs": [_tensor(t) for t in manifest.inputs],
        "input_modes": {mode: _sent(bundle, -1, mode) for mode in manifest.modes(-1)},
        "mode": tuning.mode,
        "confidence": tuning.confidence,
        "held": bundle.held,
        "bytes": bundle.stored_bytes(),
        "stages": stages,
        "provenance": manifest.provenance.model_dump(mode="json"),
    }


def inspection_text(facts: dict[str, Any]) -> str:
    """The same as a table in text."""
    heads = ["stage", "weights", "MACs", "file", "density", "exit", "depth", "temperature", "threshold"]
    heads += ["cut", "sent as"]
    rows = []
    for stage in facts["stages"]:
        found = stage["exit"]
        cut = stage["cut"]
        rows.append(
            [
                str(stage["stage"]) + ("" if stage["held"] else " (not held)"),
                count_text(stage["parameters"]),
                count_text(stage["macs"]),
                bytes_text(stage["bytes"]),
                f"{stage['density']:.3f}",
                "-" if found is None else f"{count_text(found['macs'])} MACs" if found["head"] else "the last",
                str(stage["depth"]),
                "-" if found is None or found["temperature"] is None else f"{found['temperature']:.3f}",
                "-" if found is None or found["threshold"] is None else f"{found['threshold']:.3f}",
                "-" if cut is None else ", ".join("x".join(map(str, t["shape"])) for t in cut),
                ", ".join(f"{mode} {bytes_text(size)}" for mode, size in stage["modes"].items()) or "-",
            ]
        )
    sizes = ", ".join(f"{mode} {bytes_text(size)}" for mode, size in facts["input_modes"].items())
    inputs = " + ".join(f"{t['name']} {t['dtype']} {'x'.join(map(str, t['shape']))}" for t in facts["inputs"])
    caption = (
        f"{inputs}, sent as {sizes}; "
        f"{bytes_text(facts['bytes'])} of graphs; confidence {facts['confidence']}; digest {facts['digest'][:16]}…"
    )
    return table_text(f"{facts['name']}: {facts['path']}", heads, rows, caption=caption)


def _exit(index: int, found: Exit, temperature: float | None, threshold: float | None) -> dict[str, Any]:
    graph: Graph | None = found.graph
    return {
        "exit": index,
        "head": graph is not None,
        "parameters": 0 if graph is None else graph.parameters,
        "macs": 0 if graph is None else graph.macs,
        "temperature": temperature,
        "threshold": threshold,
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _sent(bundle: Bundle, cut: int, mode: str) -> int:
    codec = bundle.manifest.codec(cut, mode)
    tensors = bundle.manifest.cut(cut) if codec is None else codec.encoder.outputs
    return sum(t.bytes for t in tensors)
