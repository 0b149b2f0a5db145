"""Sparse against narrow dense, at equal multiply-accumulates, over seeds: what predefined sparsity is worth.

A narrow network is the plain way to the same cost: dense, with fewer channels. Dense, sparse and narrow get the
same data, epochs and learning rate; the test accuracy of every exit is compared seed by seed.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import parser, write_json
from offramp.datasets import mnist
from offramp.recipes import EPOCHS, KINDS, Kind, Splits, load_splits, train
from offramp.tables import count_text, table_text


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "exits-width")
    made.add_argument("--seeds", type=int, default=3, help="networks of each kind (default: %(default)s)")
    made.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the data (default: %(default)s)")
    made.add_argument("--data", default="mnist-subset", help="as `offramp train` takes it (default: %(default)s)")
    made.add_argument(
        "--test",
        choices=("subset", "mnist"),
        default="mnist" if os.environ.get("OFFRAMP_DATA") else "subset",
        help="test on the package's 2,000 digits, or on all 10,000 of MNIST, which is usual with OFFRAMP_DATA",
    )
    arguments = made.parse_args(argv)
    splits = load_splits(arguments.data)
    if arguments.test == "mnist":  # five times the images, so less than half the noise
        splits = dataclasses.replace(splits, test=mnist()[1])
    seeds, epochs = arguments.seeds, arguments.epochs
    if arguments.quick:
        splits, seeds, epochs = _fewer(splits, 200), 1, 1
    # Seed by seed, so that whatever slows the machine down slows all three.
    runs = [_run(kind, splits, seed, epochs) for seed in range(seeds) for kind in KINDS]
    kinds = {kind: _summary([run for run in runs if run["kind"] == kind]) for kind in KINDS}
    verdicts = _verdicts(runs)
    print(_table(kinds, verdicts, f"{splits.name}, {epochs} epochs, {seeds} seeds", len(splits.test)))
    figures = {
        "data": splits.name,
        "epochs": epochs,
        "seeds": seeds,
        "test_images": len(splits.test),
        "kinds": kinds,
        "verdicts": verdicts,
        "runs": runs,
    }
    print(f"written: {write_json(arguments, figures)}")


def _run(kind: Kind, splits: Splits, seed: int, epochs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        done = train(kind, splits, Path(folder) / "width.bundle", epochs=epochs, seed=seed, progress=False)
        manifest = done.bundle.manifest
    heads = [e.graph for e in manifest.exits if e is not None and e.graph is not None]
    graphs = [stage.graph for stage in manifest.stages] + heads
    return {
        "kind": kind,
        "seed": seed,
        "accuracy": done.accuracy,
        "train_s": done.fit.train_s,
        "parameters": sum(g.parameters for g in graphs),
        "macs": sum(g.macs for g in graphs),
    }


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the lowest and highest accuracy of each exit."""
    accuracy = np.array([run["accuracy"] for run in runs])
    return {
        "accuracy": accuracy.mean(axis=0).tolist(),
        "accuracy_low": accuracy.min(axis=0).tolist(),
        "accuracy_high": accuracy.max(axis=0).tolist(),
        "train_s": float(np.median([run["train_s"] for run in runs])),
        "parameters": runs[0]["parameters"],
        "macs": runs[0]["macs"],
    }


def _verdicts(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per exit, how far sparse is ahead of narrow, seed by seed."""
    sparse, narrow = (
        np.array([r["accuracy"] for r in runs if r["kind"] == kind]) for kind in ("sparse", "narrow")
    )
    verdicts = []
    for i, ahead in enumerate((sparse - narrow).T):
        clear = len(ahead) > 1 and bool((ahead > 0).all() or (ahead < 0).all())
        verdicts.append(
            {
                "exit": i,
                "sparse_ahead": float(ahead.mean()),
                "by_seed": ahead.tolist(),
                "ahead": "level" if ahead.mean() == 0 else "sparse" if ahead.mean() > 0 else "narrow",
                "every_seed": clear,
            }
        )
    return verdicts


def _fewer(splits: Splits, count: int) -> Splits:
    first = slice(0, count)
    train_part, held_out, test = (part.take(first) for part in (splits.train, splits.held_out, splits.test))
    return dataclasses.replace(splits, train=train_part, held_out=held_out, test=test)


def _table(
    kinds: Mapping[Kind, Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]], what: str, tested: int
) -> str:
    rows = []
    for kind, found in kinds.items():
        spans = zip(found["accuracy"], found["accuracy_low"], found["accuracy_high"], strict=True)
        rows.append(
            [
                kind,
                *(f"{100 * mean:.2f} ({100 * low:.2f}-{100 * high:.2f})" for mean, low, high in spans),
                f"{found['train_s']:.1f}",
                count_text(found["parameters"]),
                count_text(found["macs"]),
            ]
        )
    exits = [f"exit {verdict['exit']} %" for verdict in verdicts]
    sentences = []
    for verdict in verdicts:
        points = 100 * abs(verdict["sparse_ahead"])
        sure = "at every seed" if verdict["every_seed"] else "but not at every seed"
        sure = sure if len(verdict["by_seed"]) > 1 else "of one seed"
        said = (
            "level" if verdict["ahead"] == "level" else f"{verdict['ahead']} ahead by {points:.2f} points, {sure}"
        )
        sentences.append(f"exit {verdict['exit']}: {said}")
    sentences.append(f"one of the {tested} test images is {100 / tested:.2f} points")
    heads = ["network", *exits, "training s", "parameters", "MACs"]
    return table_text(f"Sparse against narrow ({what})", heads, rows, caption="; ".join(sentences))


if __name__ == "__main__":
    main()
