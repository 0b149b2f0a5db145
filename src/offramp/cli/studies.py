"""`offramp reproduce STUDY`: a command per study, since no two take quite the same options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from offramp.cli.extras import needs_extra
from offramp.cli.options import DeltaOption, MaxDropOption, checked_delta
from offramp.cli.replaying import parse_depths

__all__ = ["reproduce"]

reproduce = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Repeats a paper's experiments, or maps where its ideas pay: a table, a picture, and JSON.\n\n"
    "Studies that train take from half an hour to two hours on two cores. Ctrl-C stops them; the same command "
    "goes on from there. `--quick` shows within a minute whether everything runs.",
)

GreyOption = Annotated[
    str, typer.Option(metavar="NAME", help="`mnist`, `fashion-mnist`, `kmnist` or `mnist-subset`.")
]
ColourOption = Annotated[str, typer.Option(metavar="NAME", help="`cifar10`.")]
SeedsOption = Annotated[int, typer.Option(min=1, help="Trainings of every network.")]
EpochsOption = Annotated[
    int | None, typer.Option(min=1, help="Passes over the training images; the study's own if left out.")
]
OutOption = Annotated[Path, typer.Option(help="Where tables, pictures and figures go.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Trainings at once; one per core if left out.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A look at whether it runs: few images, one epoch.")]
WorkOption = Annotated[
    Path, typer.Option(help="Where the bundle goes, and what a stopped study goes on from; it may be removed.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="For the first weights, and which images are held out.")]
ImagesOption = Annotated[int, typer.Option(min=1, help="Test images per policy over the emulated link.")]
SlowdownOption = Annotated[
    float, typer.Option(help="Emulate an edge this many times slower than this machine, over the link.")
]
EVIDENCE, WORK = Path("docs/evidence"), Path("offramp-study")


@reproduce.command()
def capogrosso(
    data: GreyOption = "mnist",
    seeds: SeedsOption = 5,
    epochs: EpochsOption = None,
    out: OutOption = EVIDENCE,
    workers: WorkersOption = None,
    quick: QuickOption = False,
) -> None:
    """Predefined sparsity as published (arXiv 2407.11763), and the paper's title: split, early exit, both."""
    _sparse("capogrosso", data, seeds, epochs, out, workers, quick)


@reproduce.command()
def mlp(
    data: GreyOption = "mnist",
    seeds: SeedsOption = 5,
    epochs: EpochsOption = None,
    out: OutOption = EVIDENCE,
    workers: WorkersOption = None,
    quick: QuickOption = False,
) -> None:
    """Sparse against narrow from 2x to 32x fewer weights: a fully connected network."""
    _sparse("mlp", data, seeds, epochs, out, workers, quick)


@reproduce.command()
def conv(
    data: GreyOption = "mnist",
    seeds: SeedsOption = 5,
    epochs: EpochsOption = None,
    out: OutOption = EVIDENCE,
    workers: WorkersOption = None,
    quick: QuickOption = False,
) -> None:
    """The same for a small convolutional network."""
    _sparse("conv", data, seeds, epochs, out, workers, quick)


@reproduce.command()
def cifar(
    data: ColourOption = "cifar10",
    seeds: SeedsOption = 5,
    epochs: EpochsOption = None,
    out: OutOption = EVIDENCE,
    workers: WorkersOption = None,
    quick: QuickOption = False,
) -> None:
    """The same for convolutions on colour images."""
    _sparse("cifar", data, seeds, epochs, out, workers, quick)


@reproduce.command()
def resnet56(
    out: OutOption = EVIDENCE,
    work: WorkOption = WORK,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    images: ImagesOption = 300,
    edge_slowdown: SlowdownOption = 10.0,
    max_drop: MaxDropOption = 0.005,
    delta: DeltaOption = "0.1",
    quick: QuickOption = False,
) -> None:
    """Six exits on CIFAR-10's published ResNet-56, which stays as it is.

    Trains the exits separately and distilled, calibrates them on 5,000 images held out of training, exports a
    bundle, and measures: every exit, the cascade, every cut in every mode, an edge and a server over an emulated
    link (10 Mbit/s, 20 ms), and every exit under noise and blur, as traces. The weights lie in
    `$OFFRAMP_DATA/weights`.
    """
    with needs_extra("reproduce", "train"):
        from offramp.reproduce.exit_study import ExitSettings, study_resnet56

    settings = ExitSettings(
        out=out,
        work=work,
        epochs=epochs,
        seed=seed,
        images=images,
        slowdown=edge_slowdown,
        max_drop=max_drop,
        delta=checked_delta(max_drop, delta),
        quick=quick,
    )
    _say(*study_resnet56(settings, _console()))


@reproduce.command()
def mobilenetv2(
    data: Annotated[
        str,
        typer.Option(
            metavar="cifar10|FOLDER", help="Or your own images, such as Caltech-256's: a folder per class."
        ),
    ] = "cifar10",
    side: Annotated[
        int, typer.Option(help="The side in pixels at which the network sees the images; it learnt at 224.")
    ] = 128,
    joint: Annotated[
        bool, typer.Option("--joint", help="Train everything, as the paper does: for a GPU. Frozen otherwise.")
    ] = False,
    out: OutOption = EVIDENCE,
    work: WorkOption = WORK,
    epochs: EpochsOption = None,
    seed: SeedOption = 0,
    images: ImagesOption = 300,
    edge_slowdown: SlowdownOption = 10.0,
    max_drop: MaxDropOption = 0.005,
    delta: DeltaOption = "0.1",
    quick: QuickOption = False,
) -> None:
    """I-SplitEE's network (arXiv 2401.10541): exits on ImageNet's MobileNetV2, moved to other images.

    As `resnet56`, with exits after layers 3, 6, 9, 12, 15 and 18; the last exit's classifier is learnt as well.
    The paper trains everything at 300 pixels; the backbone stays frozen here unless `--joint`.
    """
    with needs_extra("reproduce", "train"):
        from offramp.reproduce.exit_study import ExitSettings, study_mobilenetv2

    settings = ExitSettings(
        out=out,
        work=work,
        epochs=epochs,
        seed=seed,
        images=images,
        slowdown=edge_slowdown,
        max_drop=max_drop,
        delta=checked_delta(max_drop, delta),
        joint=joint,
        quick=quick,
    )
    _say(*study_mobilenetv2(settings, data, side, _console()))


@reproduce.command()
def uee(
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A table of predicted classes, the true class last; IMDb's if left out."
        ),
    ] = None,
    depths: Annotated[
        str, typer.Option(metavar="L,L,...", help="The layers on the path to each exit; the last one costs 1.")
    ] = "1,3,7,12",
    seeds: Annotated[int, typer.Option(min=1, help="Runs, each in an order of its own.")] = 20,
    out: OutOption = EVIDENCE,
) -> None:
    """UEE-UCB (arXiv 2209.09480): choosing an exit without labels, on published predictions; takes a minute.

    The table lies in `$OFFRAMP_DATA/traces`: ElasticBERT's exits after layers 1, 3, 7 and 12 on 50,000 reviews.
    """
    with needs_extra("reproduce uee", "report"):
        from offramp.reproduce.uee import UeeSettings, study_uee

    _say(*study_uee(UeeSettings(trace, parse_depths(depths), seeds, out), _console()))


@reproduce.command()
def live(
    out: OutOption = EVIDENCE,
    work: WorkOption = WORK,
    images: Annotated[int, typer.Option(min=1, help="Test images per policy over each link.")] = 1000,
    changing: Annotated[int, typer.Option(min=2, help="The same where the link changes half-way.")] = 600,
    edge_slowdown: SlowdownOption = 30.0,
    workers: Annotated[
        int, typer.Option(min=1, help="Links at once, each with a server and edge of its own.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="For the images' order.")] = 0,
    quick: QuickOption = False,
) -> None:
    """Policies that adapt beside every fixed split, live: a real server, emulated links, a slowed edge.

    I-SplitEE on measured cost, its discounted form, and dynamic split, over 1, 10 and 100 Mbit/s with 50, 20 and
    5 ms round trip, and over a link that drops from 100 to 1 Mbit/s half-way. The network is MobileNetV2 with
    exits behind a camera of 128 pixels; its weights lie in `$OFFRAMP_DATA/weights`, its exits are those of
    `reproduce mobilenetv2` if that has run in the same --work, and are trained otherwise. Takes an hour.
    """
    with needs_extra("reproduce", "train"):
        from offramp.reproduce.live_study import LiveStudy, study_live
    from offramp.reproduce.live import LiveSettings

    how = LiveSettings(
        images=8 if quick else images,
        changing=8 if quick else changing,
        slowdown=edge_slowdown,
        seed=seed,
    )
    _say(*study_live(LiveStudy(out, work, how, workers, quick), _console()))


def _sparse(
    study: str, data: str, seeds: int, epochs: int | None, out: Path, workers: int | None, quick: bool
) -> None:
    with needs_extra("reproduce", "train"):
        from offramp.reproduce.sparse_study import StudySettings, run_study

    _say(*run_study(StudySettings(study, data, seeds, epochs, out, workers, quick), _console()))


def _console() -> Console:
    """For progress; a path in it stays whole."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _say(tables: list[str], written: list[Path]) -> None:
    typer.echo("\n\n".join(tables))
    typer.echo(f"written: {', '.join(map(str, written))}", err=True)
