"""From the pieces of a cut graph to a bundle on disk."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from onnx import ModelProto

from offramp.bundle.bundle import Bundle, write_bundle
from offramp.bundle.manifest import (
    Codec,
    Exit,
    Graph,
    Manifest,
    Preprocessing,
    Provenance,
    Stage,
    Tuning,
    cut_name,
)
from offramp.bundle.modes import fitted_codecs
from offramp.bundle.partition import Partition, describe

__all__ = ["assemble", "made_with"]


def assemble(
    path: str | Path,
    pieces: Partition,
    *,
    name: str,
    classes: Sequence[str],
    preprocessing: Preprocessing | None,
    densities: Sequence[float],
    samples: Any,
    tuning: Tuning,
    provenance: Provenance,
) -> Bundle:
    """Describes and writes every piece, and the codecs of every cut if there are samples.

    Args:
        path: The bundle's directory; an older bundle there is replaced.
        pieces: The graph, cut, its tensors called as a bundle calls them.
        name: The bundle's name on the wire.
        classes: The classes' names.
        preprocessing: How an image becomes an input.
        densities: Per stage the kept fraction of its weights.
        samples: Inputs (N, …), by which the modes of each cut are fitted; None leaves every cut with `float` only.
        tuning: What is written beside the manifest; its usual mode is `uint8` wherever a cut has that.
        provenance: Where the network comes from.

    Raises:
        ExportError: A tensor that cannot travel.
        InputError: Samples that the network cannot take, or that make a cut's values infinite.
        BundleError: The bundle cannot be written, or does not hold together.
    """
    files: dict[str, bytes] = {}

    def add(model: ModelProto, file: str) -> Graph:
        content = files[file] = model.SerializeToString(deterministic=True)
        return describe(model, file, content, hashlib.sha256(content).hexdigest())

    graphs = [add(model, f"stages/stage_{i}.onnx") for i, model in enumerate(pieces.stages)]
    heads = [None if m is None else add(m, f"exits/exit_{i}.onnx") for i, m in enumerate(pieces.exits)]
    codecs = []
    for cut, mode, models in () if samples is None else fitted_codecs(pieces.stages, samples):
        ends = zip(("enc", "dec"), models, strict=True)
        encoder, decoder = (add(m, f"codecs/{cut_name(cut)}.{mode}.{end}.onnx") for end, m in ends)
        codecs.append(Codec(cut=cut, mode=mode, encoder=encoder, decoder=decoder))
    manifest = Manifest(
        name=name,
        classes=tuple(classes),
        preprocessing=preprocessing,
        inputs=graphs[0].inputs,
        stages=tuple(
            Stage(graph=graph, density=density, depth=depth)
            for graph, density, depth in zip(graphs, densities, pieces.depths, strict=True)
        ),
        exits=(
            *(None if head is None else Exit(logits=head.outputs[0], graph=head) for head in heads),
            Exit(logits=graphs[-1].outputs[0], graph=None),
        ),
        codecs=tuple(codecs),
        provenance=provenance,
    )
    usual = "uint8" if codecs else "float"  # indices and masks have no other mode
    write_bundle(path, manifest, tuning.model_copy(update={"mode": usual}), files)
    return Bundle.load(path)


def made_with(*packages: str, **told: Any) -> Provenance:
    """Provenance as of now: the versions of Python, offramp and other packages, and what else is told."""
    versions = {p: metadata.version(p) for p in ("offramp", *packages)}
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **versions},
        **told,
    )
