"""Made-up traces of both networks, as the studies of exits would leave them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offramp.datasets.distortion import Distortion
from offramp.replay.trace import Trace, TraceMeta
from offramp.reproduce.recorded import NETWORKS
from offramp.reproduce.traces import DISTORTIONS, HELD_OUT

EXITS = 7
COUNTED = (11, 19, 25, 33, 41, 47, 56)


def made_up(name: str, distortion: Distortion | None, n: int, seed: int) -> Trace:
    """Blur makes the first exits unsure, noise makes the first one sure and wrong."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, n)
    rights, sure = np.linspace(0.6, 0.9, EXITS), np.linspace(0.8, 0.95, EXITS)
    if distortion is not None and distortion.kind == "gaussian_blur":
        sure = np.linspace(0.2, 0.9, EXITS)
    elif distortion is not None:
        rights = np.linspace(0.2, 0.4, EXITS)
    right = rng.random((n, EXITS)) < rights
    prediction = np.where(right, label[:, None], (label[:, None] + 1) % 5)
    confidence = np.clip(rng.normal(sure, 0.08, (n, EXITS)), 0, 1)
    meta = TraceMeta(
        bundle=name,
        digest=name,
        data="made-up images",
        distortion=str(distortion or ""),
        exits=tuple(range(EXITS)),
        depths=COUNTED,
        thresholds=(*(0.7,) * (EXITS - 1), None),
        stage_ms=(0.5,) * EXITS,
        exit_ms=(*(0.02,) * (EXITS - 1), 0.0),
        cut_bytes={"float": (12_288,) * EXITS, "uint8": (3072,) * EXITS},
    )
    return Trace(prediction.astype(np.int32), confidence.astype(np.float32), label.astype(np.int32), meta)


def write_traces(folder: Path, n: int = 80, held_out: int | None = 300) -> Path:
    """Every file that the study reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, network in enumerate(NETWORKS):
        for j, d in enumerate(DISTORTIONS):
            suffix = f"-{d.kind}-{d.sigma:g}" if d else ""
            made_up(network.name, d, n, 100 * i + j).save(folder / f"{network.name}{suffix}.npz")
        if held_out:
            made_up(network.name, DISTORTIONS[0], held_out, 99 + i).save(folder / f"{network.name}{HELD_OUT}.npz")
    return folder
