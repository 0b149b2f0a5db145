"""A study of exits on a published network: from training to bundle, link, traces and tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from offramp.bundle.bundle import Bundle
from offramp.bundle.export import export
from offramp.datasets import DATASETS
from offramp.errors import ConfigError
from offramp.exits.evaluation import Evaluation, calibrate, evaluate
from offramp.exits.network import MultiExit
from offramp.exits.thresholds import samples_needed
from offramp.recipes import Splits, load_splits
from offramp.replay.trace import Trace
from offramp.report.exits import exits_picture
from offramp.report.live import stage_progress
from offramp.report.modes import mode_facts, modes_text
from offramp.reproduce.distant import Distant, at_a_distance
from offramp.reproduce.exit_tables import (
    cascades_table,
    distant_table,
    distortions_table,
    exits_table,
)
from offramp.reproduce.findings import Findings, findings
from offramp.reproduce.study import origin, write_study
from offramp.reproduce.subjects import Subject, mobilenetv2_subject, resnet56_subject
from offramp.reproduce.traces import DISTORTIONS, HELD_OUT, trace_all, trace_held_out
from offramp.reproduce.trainings import PASS, Plan, train_ways
from offramp.reproduce.weights import MOBILENETV2, RESNET56
from offramp.runtime.labelled import Labelled, test_data
from offramp.runtime.modes import ModeFigures, measure_modes
from offramp.runtime.stages import Stages
from offramp.runtime.tuning import macs_per_answer
from offramp.serving.link import LinkSettings

__all__ = ["ExitSettings", "study_mobilenetv2", "study_resnet56", "study_subject"]

#: Of a quick look, which shows that everything runs and nothing else: images to train on, hold out, test, send.
_QUICK = (200, 100, 100, 8)
#: Drops to show the cascade at, beside the one that is asked for.
_DROPS = (0.0025, 0.005, 0.0075, 0.01)
#: Test images that cross every cut in every mode: each crosses 28 times, half of the network behind it.
_MODE_IMAGES = 2000


@dataclass(frozen=True)
class ExitSettings:
    """What a study of exits is told.

    Attributes:
        out: Where tables, picture, figures and traces go.
        work: Where the bundle goes, and what a study that was stopped goes on from.
        epochs: Passes over the training images; the network's own if None.
        seed: For the heads' first weights, and which images are held out.
        images: Test images that go over the link.
        link: The emulated link.
        slowdown: How many times slower than this machine the emulated edge is.
        max_drop: Accuracy that the gates together may cost, as a fraction.
        delta: The probability that they cost more; None promises nothing.
        joint: Whether the backbone learns too.
        quick: A look at whether it runs: few images, one epoch, one distortion of each kind.

    Raises:
        ConfigError: Numbers that cannot be.
    """

    out: Path = Path("docs/evidence")
    work: Path = Path("offramp-study")
    epochs: int | None = None
    seed: int = 0
    images: int = 300
    link: LinkSettings = field(default_factory=lambda: LinkSettings(10e6, 0.010))
    slowdown: float = 10.0
    max_drop: float = 0.005
    delta: float | None = 0.1
    joint: bool = False
    quick: bool = False

    def __post_init__(self) -> None:
        if self.images < 1 or self.seed < 0 or (self.epochs is not None and self.epochs < 1):
            raise ConfigError("a study needs at least one epoch, one image over the link, and a seed of 0 or more")
        if not self.slowdown >= 1:
            raise ConfigError(f"--edge-slowdown must be at least 1, not {self.slowdown}")
        for folder in (self.out, self.work):
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"{folder} is a file; give a directory")


def study_resnet56(settings: ExitSettings, console: Console) -> tuple[list[str], list[Path]]:
    """Exits on the published ResNet-56; gives tables and the files written.

    Raises:
        DatasetError: CIFAR-10 or the weights are not at hand.
        OfframpError: See the parts.
    """
    RESNET56.find()  # before images are read, which takes longer
    command = f"offramp reproduce resnet56{_options(settings)}"
    return study_subject(
        resnet56_subject(), load_splits("cifar10", seed=settings.seed), settings, command, console
    )


def study_mobilenetv2(
    settings: ExitSettings, data: str, side: int, console: Console
) -> tuple[list[str], list[Path]]:
    """Exits on MobileNetV2, moved from ImageNet to CIFAR-10 or to a folder of images.

    Args:
        settings: What every study of exits is told.
        data: "cifar10", or a folder with one folder of images per class.
        side: The side in pixels at which the network sees the images.
        console: Gets the progress.

    Raises:
        ConfigError: A side that is too small.
        DatasetError: Images or weights are not at hand.
        OfframpError: See the parts.
    """
    if data in DATASETS and data != "cifar10":
        raise ConfigError(
            f"mobilenetv2 takes cifar10, or a folder with one folder of images per class, not {data}"
        )
    image_side = 32 if data == "cifar10" else side
    subject = mobilenetv2_subject(image_side, side)
    MOBILENETV2.find()  # before images are read, which takes longer
    command = f"offramp reproduce mobilenetv2 --data {data} --side {side}{_options(settings)}"
    splits = load_splits(data, size=image_side, seed=settings.seed)
    return study_subject(subject, splits, settings, command, console)


def _options(settings: ExitSettings) -> str:
    said = " --joint" if settings.joint else ""
    said += f" --epochs {settings.epochs}" if settings.epochs else ""
    said += f" --seed {settings.seed}" if settings.seed else ""
    return said + (" --quick" if settings.quick else "")


def study_subject(
    subject: Subject, splits: Splits, settings: ExitSettings, command: str, console: Console
) -> tuple[list[str], list[Path]]:
    """Trains a network's exits, exports, measures and writes; gives tables and the files written.

    What takes long is kept as soon as it is done, and a study that was stopped goes on from there.

    Args:
        subject: The network.
        splits: The images.
        settings: How.
        command: What was typed, for the record.
        console: Gets the progress.

    Raises:
        OfframpError: See the parts.
    """
    splits = replace(splits, preprocessing=subject.preprocessing)
    epochs, limit = settings.epochs or subject.epochs, settings.images
    if settings.quick:
        *sizes, limit = _QUICK
        few = [
            part.take(slice(n))
            for part, n in zip((splits.train, splits.held_out, splits.test), sizes, strict=True)
        ]
        splits = replace(splits, train=few[0], held_out=few[1], test=few[2])
        settings = replace(settings, max_drop=max(settings.max_drop, 0.05))
        epochs = settings.epochs or 1
    data = Path(splits.name).name
    name = f"{subject.name}-{data}" + ("-joint" if settings.joint else "") + ("-quick" if settings.quick else "")
    plan = Plan(epochs, settings.seed, settings.joint, settings.work / name)
    nets = train_ways(subject, splits, plan, console)
    ways, bundle, promise = _measured(subject, splits, nets, name, settings, console)
    test = _test(splits, bundle)
    console.print(f"{bundle.path}: edge and server over a link of {settings.link.words}")
    distant = at_a_distance(bundle, test.first(limit), settings.link, settings.slowdown, console)
    console.print("cuts and modes")
    crossing = test.first(_MODE_IMAGES)
    with stage_progress(console, "crossing every cut", len(crossing.labels)) as advance:
        modes = measure_modes(Stages(bundle), crossing.inputs, crossing.labels, on_batch=advance)
    distortions = DISTORTIONS[::6] if settings.quick else DISTORTIONS
    traces = trace_all(
        bundle,
        test,
        distortions,
        settings.out / "traces",
        name,
        workers=os.cpu_count() or 1,
        console=console,
    )
    held_out = Labelled(
        splits.held_out.images, splits.held_out.labels, f"{len(splits.held_out):,} held-out images of {data}"
    )
    trace_held_out(bundle, held_out, distortions, settings.out / "traces" / f"{name}{HELD_OUT}.npz")
    return _written(subject, name, settings, command, bundle, ways, promise, modes, crossing.what, distant, traces)


def _measured(
    subject: Subject,
    splits: Splits,
    nets: Mapping[str, MultiExit],
    name: str,
    settings: ExitSettings,
    console: Console,
) -> tuple[list[Findings], Bundle, str]:
    """Every way's findings on the test images for several allowed drops; the last way's bundle and promise."""
    measured: dict[str, tuple[Evaluation, Evaluation]] = {}
    for way, net in nets.items():
        console.print(f"{way}: {len(splits.held_out):,} held-out and {len(splits.test):,} test images")
        held_out, test = (
            evaluate(net, splits.batches(part, size=PASS)) for part in (splits.held_out, splits.test)
        )
        measured[way] = held_out, test
    way, net = list(nets.items())[-1]
    tuned = calibrate(
        net, splits.batches(splits.held_out, size=PASS), max_drop=settings.max_drop, delta=settings.delta
    )
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as files hold weights
    bundle = export(
        net,
        subject.example,
        settings.work / name / f"{name}.bundle",
        classes=splits.train.classes,
        preprocessing=splits.preprocessing,
        seed=settings.seed,
        data=splits.name,
        metrics={
            "held_out": {"seed": splits.seed, "sizes": splits.sizes},
            "held_out_accuracy": tuned.accuracy,
            "test_accuracy": measured[way][1].accuracy,
            "training": way,
            "max_drop": settings.max_drop,
            "delta": settings.delta,
        },
    )
    drops = sorted({settings.max_drop, *(d for d in _DROPS if _enough(splits, d, settings.delta))})
    found = [
        findings(way, held_out, test, bundle.manifest, drops, settings.delta)
        for way, (held_out, test) in measured.items()
    ]
    return found, bundle, tuned.promise


def _enough(splits: Splits, max_drop: float, delta: float | None) -> bool:
    """Whether the held-out images can promise a drop."""
    needed = None if delta is None else samples_needed(max_drop, delta)
    return delta is None or (needed is not None and needed <= len(splits.held_out))


def _test(splits: Splits, bundle: Bundle) -> Labelled:
    """The test images as `offramp trace` would take them, or those of a part of a folder or a quick look."""
    if splits.name == "cifar10" and len(splits.test) == 10_000:
        return test_data(splits.name, bundle.manifest)
    what = f"{len(splits.test):,} test images of {Path(splits.name).name}"
    return Labelled(splits.test.images, splits.test.labels, what)


def _written(
    subject: Subject,
    name: str,
    settings: ExitSettings,
    command: str,
    bundle: Bundle,
    ways: Sequence[Findings],
    promise: str,
    modes: Sequence[ModeFigures],
    crossing: str,
    distant: Distant,
    traces: Mapping[str, Trace],
) -> tuple[list[str], list[Path]]:
    taps, manifest, plain = list(subject.heads), bundle.manifest, traces[""]
    facts = mode_facts(modes, manifest)
    tables = [
        exits_table(ways, taps, manifest, plain),
        cascades_table(ways, promise),
        modes_text(modes, manifest, crossing),
        distant_table(distant),
        distortions_table(traces),
    ]
    macs = [m / 1e6 for m in macs_per_answer(manifest, range(manifest.last))]
    picture = exits_picture(
        {way.way: [(m, 100 * a) for m, a in zip(macs, way.accuracy, strict=True)] for way in ways},
        {way.way: [(float(np.dot(macs, c.exit_share)), 100 * c.accuracy) for c in way.cascades] for way in ways},
        {
            mode: [(100 * f["edge_macs_share"], f["payload_bytes"]) for f in facts if f["mode"] == mode]
            for mode in dict.fromkeys(f["mode"] for f in facts)
        },
    )
    text = [f"# {subject.title}: {Path(manifest.provenance.data).name}", "", f"`{command}`", ""]
    for table in tables:
        text += ["```text", table, "```", ""]
    text += [f"![exits and cuts]({name}-exits.svg)", ""]
    figures = {
        **origin(command),
        "digest": bundle.digest,
        "macs": [round(1e6 * m) for m in macs],
        "stage_ms": plain.meta.stage_ms,
        "exit_ms": plain.meta.exit_ms,
        "depths": plain.meta.depths,
        "ways": [asdict(way) for way in ways],
        "modes": {"data": crossing, "modes": facts},
        "distant": {**asdict(distant), "rows": [row.to_dict() for row in distant.rows]},
        "traces": {key or "none": trace.accuracy for key, trace in traces.items()},
    }
    pictures = {f"{name}-exits": picture}
    return tables, write_study(settings.out, name, text="\n".join(text), pictures=pictures, figures=figures)
