"""The main job, end to end: train sparse, exit early, split the rest, on real digits over a real connection."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from offramp import __version__
from offramp.bundle.bundle import Bundle
from offramp.bundle.preprocessing import preprocess
from offramp.connect import connect
from offramp.errors import ConfigError
from offramp.policy.base import Policy
from offramp.policy.cascade import ThresholdCascade
from offramp.policy.cost import CostModel
from offramp.policy.fixed import EdgeOnly, FixedSplit, ServerOnly
from offramp.policy.i_splitee import ISplitEE
from offramp.policy.random import RandomArm
from offramp.recipes import EPOCHS, KINDS, Splits, Trained, load_splits, train
from offramp.report.live import run_policies
from offramp.report.page import report_page
from offramp.report.profile import measure
from offramp.report.rows import Row, rows_table, summarise
from offramp.runtime.result import Result
from offramp.runtime.stages import Stages
from offramp.serving.link import LinkSettings
from offramp.serving.process import served
from offramp.tables import bytes_text, count_text, table_text

__all__ = ["DemoSettings", "run_demo"]

MAX_DROP = 0.005
#: The rows are shortened, if need be, so that the whole demo takes about this long.
BUDGET_S = 150.0
FEWEST_IMAGES = 60


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        out: Where bundles, report and results go.
        seed: For everything random.
        epochs: Passes over the training images, for every network.
        images: Test images per row, at most.
        rate_bps: The emulated link's rate, in bits per second.
        delay_s: Its delay one way, in seconds.
        jitter_s: Its jitter, in seconds.
        edge_slowdown: How many times slower the emulated edge is than this machine's core; None chooses it
            so that running everything on the edge takes as long as asking the server.

    Raises:
        ConfigError: Numbers that cannot be.
    """

    out: Path
    seed: int = 0
    epochs: int = EPOCHS
    images: int = 300
    rate_bps: float = 10e6
    delay_s: float = 0.010
    jitter_s: float = 0.0
    edge_slowdown: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.images < 1 or self.seed < 0:
            raise ConfigError(
                f"epochs and images must be at least 1 and the seed at least 0, "
                f"not {self.epochs}, {self.images}, {self.seed}"
            )
        if self.edge_slowdown is not None and not self.edge_slowdown >= 1:
            raise ConfigError(f"--edge-slowdown must be at least 1, not {self.edge_slowdown}")
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out} is a file; give --out a directory")

    @property
    def link(self) -> LinkSettings:
        """The emulated link."""
        return LinkSettings(self.rate_bps, self.delay_s, self.jitter_s, seed=self.seed)


def run_demo(settings: DemoSettings, console: Console) -> dict[str, Any]:
    """Runs the main job; gives what `results.json` holds.

    Raises:
        ConfigError: Settings that cannot be.
        OfframpError: See the parts.
    """
    start = time.monotonic()
    settings.out.mkdir(parents=True, exist_ok=True)
    splits = load_splits(seed=settings.seed)
    console.print(
        f"[bold]1/4[/] {len(splits.train):,} digits to train on, {len(splits.held_out):,} to calibrate on, "
        f"{len(splits.test):,} to test on; three networks, {settings.epochs} epochs each",
        soft_wrap=True,
    )
    trained = {kind: _trained(kind, splits, settings, console) for kind in KINDS}
    networks: dict[str, dict[str, Any]] = {k: _network_facts(t, splits) for k, t in trained.items()}
    bundle = trained["sparse"].bundle
    if report := trained["sparse"].sparsity:
        console.print(str(report), soft_wrap=True, highlight=False, markup=False)
    console.print(f"[bold]2/4[/] a bundle, {bundle.path}, digest {bundle.digest[:12]}…", soft_wrap=True)
    policies = _policies(bundle, settings.seed)
    with served(bundle.path, settings.link) as address:
        slowdown = settings.edge_slowdown or _slowdown(bundle, address)
        console.print(
            f"[bold]3/4[/] a server process behind an emulated link ({settings.link.words}) at {address}, and an "
            f"edge that is emulated: {slowdown:.0f}x slower than this core",
            soft_wrap=True,
        )
        left_s = BUDGET_S - (time.monotonic() - start)
        results = _run_rows(bundle, address, policies, splits, slowdown, left_s, settings, console)
    rows = [summarise(name, found, splits.test.labels[: len(found)]) for name, found in results.items()]
    choices = [r.action.split for r in results["I-SplitEE"] if r.action is not None]
    console.print("[bold]4/4[/] results")
    _print_tables(rows, networks, slowdown, settings, console)
    facts = _facts(settings, bundle, slowdown, splits, rows[0].inputs)
    written = {
        "settings": facts,
        "rows": [row.to_dict() for row in rows],
        **networks,
        "choices": choices,
        "sparsity": None if report is None else report.to_dict(),
    }
    (settings.out / "results.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    page = report_page(rows, networks, choices, facts)
    (settings.out / "report.html").write_text(page, encoding="utf-8")
    console.print(
        f"wrote {settings.out / 'report.html'} and {settings.out / 'results.json'} "
        f"after {time.monotonic() - start:.0f} s",
        soft_wrap=True,
    )
    return written


def _trained(kind: Any, splits: Splits, settings: DemoSettings, console: Console) -> Trained:
    console.print(f"    training the {kind} network")
    done = train(
        kind,
        splits,
        settings.out / ("digits.bundle" if kind == "sparse" else f"digits-{kind}.bundle"),
        epochs=settings.epochs,
        seed=settings.seed,
        max_drop=MAX_DROP,
        progress=console.is_terminal,
    )
    exits = ", ".join(f"exit {i} {a:.1%}" for i, a in enumerate(done.accuracy))
    console.print(
        f"    {kind}: {exits} on test images, trained in {done.fit.train_s:.1f} s", highlight=False, soft_wrap=True
    )
    return done


def _network_facts(trained: Trained, splits: Splits) -> dict[str, Any]:
    """What `results.json` says of one network, everything counted: first layer, classifier, exits."""
    manifest = trained.bundle.manifest
    graphs = [s.graph for s in manifest.stages] + [e.graph for e in manifest.exits if e and e.graph]
    image = preprocess(splits.test.images[:1], splits.preprocessing)
    return {
        "weights": sum(g.parameters for g in graphs),
        "macs": sum(g.macs for g in graphs),
        "edge_bytes": trained.bundle.stored_bytes(stages=manifest.last),
        "server_bytes": trained.bundle.stored_bytes(),
        "train_s": trained.fit.train_s,
        "infer_ms": _infer_ms(Stages(trained.bundle), image),
        "accuracy": trained.accuracy[-1],
        "exit_accuracy": list(trained.accuracy[:-1]),
    }


def _infer_ms(stages: Stages, image: NDArray[np.float32], runs: int = 200) -> float:
    """The median time of one image through all stages, on one core."""
    totals = []
    for _ in range(runs):
        tensors: list[NDArray[np.generic]] = [image]
        total = 0.0
        for i in range(stages.bundle.held):
            tensors, spent = stages.stage(i, tensors)
            total += spent
        totals.append(total)
    return float(np.median(totals))


def _slowdown(bundle: Bundle, address: str) -> float:
    """The factor at which the whole network on the edge takes as long as sending the input to the server."""
    channel = connect(address, bundle)
    try:
        facts = measure(Stages(bundle), channel)
    finally:
        channel.close()
    latency_ms = {split["split"]: split["latency_ms"] for split in facts["splits"]}
    return max(1.0, float(round(latency_ms[-1] / latency_ms[bundle.manifest.last])))


def _policies(bundle: Bundle, seed: int) -> dict[str, Policy]:
    last = bundle.manifest.last
    return {
        "edge only": EdgeOnly(),
        "server only": ServerOnly(),
        **{f"split {k}": FixedSplit(k) for k in range(last)},
        "split 0, offload all": FixedSplit(0, gated=False),
        "cascade": ThresholdCascade(),
        "random split": RandomArm(seed=seed),
        "I-SplitEE": ISplitEE(alpha=None),
    }


def _run_rows(
    bundle: Bundle,
    address: str,
    policies: dict[str, Policy],
    splits: Splits,
    slowdown: float,
    left_s: float,
    settings: DemoSettings,
    console: Console,
) -> dict[str, list[Result]]:
    """The same images under every policy; as many as the time that is left allows."""
    images = splits.test.images[: settings.images]
    per_image_s = 2.2 * settings.delay_s + 0.004  # about what the slowest policies take
    affordable = int(left_s / (per_image_s * len(policies)))
    count = min(len(images), max(FEWEST_IMAGES, affordable))
    if count < len(images):
        console.print(f"    time is short: {count} images per row instead of {len(images)}")
    return run_policies(bundle, address, policies, images[:count], console, slowdown=slowdown)


def _print_tables(
    rows: Sequence[Row],
    networks: dict[str, dict[str, Any]],
    slowdown: float,
    settings: DemoSettings,
    console: Console,
) -> None:
    first = rows_table(
        rows,
        title=f"{rows[0].inputs} test images under every policy; edge emulated: {slowdown:.0f}x slower than here",
        caption=f"link: {settings.link.words}; mean ms per input by part; cost in I-SplitEE's units",
    )
    heads = ["network", "weights", "MACs", "edge", "server", "train s", "infer ms", "accuracy", "exits"]
    cells = [
        [
            name,
            count_text(n["weights"]),
            count_text(n["macs"]),
            bytes_text(n["edge_bytes"]),
            bytes_text(n["server_bytes"]),
            f"{n['train_s']:.1f}",
            f"{n['infer_ms']:.3f}",
            f"{n['accuracy']:.2%}",
            " ".join(f"{a:.2%}" for a in n["exit_accuracy"]),
        ]
        for name, n in networks.items()
    ]
    second = table_text(
        "What sparsity saved (everything counted; narrow is dense with the sparse one's MACs)",
        heads,
        cells,
        caption=_saving(networks),
    )
    for table in (first, second):
        console.print(table, soft_wrap=True, highlight=False, markup=False)


def _saving(networks: dict[str, dict[str, Any]]) -> str:
    dense, sparse = networks["dense"], networks["sparse"]
    faster = dense["train_s"] / sparse["train_s"]
    training = f"{faster:.1f}x faster training" if faster >= 1 else f"{1 / faster:.1f}x slower training"
    quickest = min(networks, key=lambda kind: networks[kind]["train_s"])
    return (
        f"sparse against dense: {dense['weights'] / sparse['weights']:.1f}x fewer weights, "
        f"{dense['macs'] / sparse['macs']:.1f}x fewer MACs, {training}; {quickest} trains fastest"
    )


def _facts(settings: DemoSettings, bundle: Bundle, slowdown: float, splits: Splits, images: int) -> dict[str, Any]:
    cost = CostModel.in_layers(tuple(stage.depth for stage in bundle.manifest.stages))  # the edge's own
    return {
        "command": f"offramp demo --out {settings.out} --seed {settings.seed}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": settings.seed,
        "epochs": settings.epochs,
        "images": images,
        "test_images": len(splits.test),
        "link": settings.link.words,
        "rate_bps": settings.rate_bps,
        "delay_s": settings.delay_s,
        "edge_slowdown": slowdown,
        "edge_is_emulated": True,
        "max_drop": MAX_DROP,
        "cost": cost.words,
        "digest": bundle.digest,
        "versions": {"offramp": __version__, "torch": torch.__version__},
    }
