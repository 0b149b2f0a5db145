"""From the pieces of a cut graph to a bundle on disk."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from offramp.bundle.bundle import Bundle, write_bundle
from offramp.bundle.codec import make_codec
from offramp.bundle.manifest import (
    Codec,
    Exit,
    Graph,
    Manifest,
    Preprocessing,
    Provenance,
    Stage,
    TensorSpec,
    Tuning,
    cut_name,
)
from offramp.bundle.partition import Partition, describe
from offramp.bundle.quantiser import MODES, fit_quantiser

__all__ = ["assemble", "made_with"]


def assemble(
    path: str | Path,
    pieces: Partition,
    *,
    name: str,
    classes: Sequence[str],
    preprocessing: Preprocessing | None,
    densities: Sequence[float],
    samples: Mapping[str, NDArray[np.generic]],
    tuning: Tuning,
    provenance: Provenance,
) -> Bundle:
    """Describes and writes every piece, with a codec for every mode of a cut of which there are samples.

    Args:
        path: The bundle's directory; an older bundle there is replaced.
        pieces: The graph, cut, its tensors called as a bundle calls them.
        name: The bundle's name on the wire.
        classes: The classes' names.
        preprocessing: How an image becomes an input.
        densities: Per stage the kept fraction of its weights.
        samples: By the name of a tensor that crosses a cut, some of its values (n, …). Other tensors travel as
            they are in every mode.
        tuning: What is written beside the manifest.
        provenance: Where the network comes from.

    Raises:
        ExportError: A tensor that cannot travel.
        BundleError: The bundle cannot be written, or does not hold together.
    """
    files: dict[str, bytes] = {}

    def add(model: ModelProto, file: str) -> Graph:
        content = files[file] = model.SerializeToString(deterministic=True)
        return describe(model, file, content, hashlib.sha256(content).hexdigest())

    graphs = [add(model, f"stages/stage_{i}.onnx") for i, model in enumerate(pieces.stages)]
    heads = [None if m is None else add(m, f"exits/exit_{i}.onnx") for i, m in enumerate(pieces.exits)]
    codecs = []
    for cut in range(-1, len(graphs) - 1):
        tensors = graphs[cut + 1].inputs
        known = [_usable(samples.get(t.name), t) for t in tensors]
        for mode, how in MODES.items() if any(v is not None for v in known) else ():
            fits = [None if v is None else fit_quantiser(v, how) for v in known]
            ends = zip(("enc", "dec"), make_codec(tensors, fits, mode), strict=True)
            encoder, decoder = (add(m, f"codecs/{cut_name(cut)}.{mode}.{end}.onnx") for end, m in ends)
            codecs.append(Codec(cut=cut, mode=mode, encoder=encoder, decoder=decoder))
    manifest = Manifest(
        name=name,
        classes=tuple(classes),
        preprocessing=preprocessing,
        input=graphs[0].inputs[0],
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
    write_bundle(path, manifest, tuning, files)
    return Bundle.load(path)


def _usable(samples: NDArray[np.generic] | None, tensor: TensorSpec) -> NDArray[np.float32] | None:
    """What a quantiser can be fitted to: floats, all finite (an attention mask's need not be)."""
    if samples is None or tensor.dtype != "float32":
        return None
    floats = samples.astype(np.float32)
    return floats if np.isfinite(floats).all() else None


def made_with(*packages: str, **told: Any) -> Provenance:
    """Provenance as of now: the versions of Python, offramp and other packages, and what else is told."""
    versions = {p: metadata.version(p) for p in ("offramp", *packages)}
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **versions},
        **told,
    )
