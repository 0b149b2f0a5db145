"""`offramp demo | train`: what trains the built-in network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from offramp.cli.extras import needs_extra
from offramp.cli.options import DeltaOption, MaxDropOption, checked_delta
from offramp.errors import ConfigError

__all__ = ["demo", "train"]


def demo(
    out: Annotated[Path, typer.Option(help="Where bundles, report and results go.")] = Path("offramp-demo"),
    seed: Annotated[int, typer.Option(min=0, help="For everything random.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images per policy, at most.")] = 300,
    rate: Annotated[str, typer.Option(help="The emulated link's rate, or `unlimited`.")] = "10mbit",
    delay: Annotated[str, typer.Option(help="Its delay one way: half of the round trip.")] = "10ms",
    jitter: Annotated[str, typer.Option(help="Its jitter.")] = "0ms",
    edge_slowdown: Annotated[
        float | None,
        typer.Option(
            help="Emulate an edge this many times slower than this machine. Chosen so that the whole network "
            "on the edge takes as long as asking the server, if left out."
        ),
    ] = None,
) -> None:
    """The main job on real digits: train sparse, exit early, split the rest between two processes.

    Trains the same network sparse, dense and narrow, writes a bundle, starts a server behind an emulated
    link, runs the same images under every policy, and writes a report. Takes about two minutes on two cores.
    """
    with needs_extra("demo", "train"):
        from offramp.demo import DemoSettings, run_demo
        from offramp.recipes import EPOCHS
    from offramp.serving.link import parse_delay, parse_rate

    settings = DemoSettings(
        out=out,
        seed=seed,
        epochs=EPOCHS if epochs is None else epochs,
        images=images,
        rate_bps=parse_rate(rate),
        delay_s=parse_delay(delay),
        jitter_s=parse_delay(jitter),
        edge_slowdown=edge_slowdown,
    )
    run_demo(settings, Console())


def train(
    out: Annotated[Path, typer.Option(help="The bundle's directory; an older bundle there is replaced.")],
    data: Annotated[
        str,
        typer.Option(
            help="`mnist-subset`, `mnist`, `fashion-mnist`, `kmnist`, `cifar10`, or a folder with one folder of "
            "images per class."
        ),
    ] = "mnist-subset",
    kind: Annotated[str, typer.Option(help="`sparse`, `dense`, or `narrow`.")] = "sparse",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    size: Annotated[int, typer.Option(help="For a folder: the side that its images are resized to.")] = 32,
    grey: Annotated[
        bool, typer.Option("--grey", help="For a folder: one grey channel instead of colour.")
    ] = False,
    max_drop: MaxDropOption = 0.005,
    delta: DeltaOption = "0.1",
    seed: Annotated[int, typer.Option(min=0, help="For everything random.")] = 0,
) -> None:
    """Trains the built-in network with two early exits on digits or your own images; writes a bundle."""
    with needs_extra("train", "train"):
        from offramp import recipes
    from offramp.report.tuning import calibration_text

    if kind not in recipes.KINDS:
        raise ConfigError(f"--kind is one of {', '.join(recipes.KINDS)}, not {kind!r}")
    allowed = checked_delta(max_drop, delta)
    splits = recipes.load_splits(data, size=size, color=not grey, seed=seed)
    console = Console(stderr=True)
    done = recipes.train(
        next(k for k in recipes.KINDS if k == kind),
        splits,
        out,
        epochs=recipes.EPOCHS if epochs is None else epochs,
        seed=seed,
        max_drop=max_drop,
        delta=allowed,
        progress=console.is_terminal,
    )
    if done.sparsity is not None:
        typer.echo(str(done.sparsity))
    manifest = done.bundle.manifest
    typer.echo(calibration_text(done.calibration, manifest, range(manifest.last + 1)))
    exits = ", ".join(f"exit {i} {a:.1%}" for i, a in enumerate(done.accuracy))
    typer.echo(f"{out}: {exits} on {len(splits.test):,} test images, trained in {done.fit.train_s:.1f} s")
