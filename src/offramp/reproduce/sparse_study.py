"""The studies of predefined sparsity, each from its trainings to its table, picture and figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from offramp.errors import ConfigError
from offramp.interval import interval, mean
from offramp.policy.energy import EnergyModel
from offramp.report.curves import Panel, curves, placements_picture
from offramp.reproduce import capogrosso, regimes
from offramp.reproduce.images import COLOUR, GREY
from offramp.reproduce.study import Outcome, origin, run_jobs, write_study
from offramp.reproduce.title import placements, title_table
from offramp.reproduce.verdicts import curve_of, regimes_table, sentences
from offramp.tables import count_text, table_text

__all__ = ["STUDIES", "StudySettings", "run_study"]

#: Images of each part, epochs and seeds of a quick look, which shows that everything runs and nothing else.
_QUICK_IMAGES, _QUICK_EPOCHS, _QUICK_SEEDS = 600, 1, 2


@dataclass(frozen=True)
class StudySettings:
    """What a study is told.

    Attributes:
        study: A name in `STUDIES`.
        data: The data set; the study's own if None.
        seeds: Trainings of every network.
        epochs: Passes over the training images; the study's own if None.
        out: Where table, picture and figures go.
        workers: Parallel trainings; one per core if None.
        quick: A look at whether it runs: few images, one epoch, two seeds.
    """

    study: str
    data: str | None = None
    seeds: int = 5
    epochs: int | None = None
    out: Path = Path("docs/evidence")
    workers: int | None = None
    quick: bool = False


def run_study(settings: StudySettings, console: Console) -> tuple[list[str], list[Path]]:
    """Runs a study and writes it; gives its tables and the files written. Progress goes to the console.

    A study that was stopped goes on where it was.

    Raises:
        ConfigError: An unknown study, a data set that does not suit it, numbers that cannot be.
        DatasetError: A data set that is not at hand.
    """
    if settings.study not in STUDIES:
        raise ConfigError(f"there is no study {settings.study!r}; known: {', '.join(STUDIES)}")
    if settings.seeds < 1 or (settings.epochs is not None and settings.epochs < 1):
        raise ConfigError("a study needs at least one seed and one epoch")
    suited = COLOUR if settings.study == "cifar" else GREY
    data = settings.data or {"cifar": "cifar10"}.get(settings.study, "mnist")
    if data not in suited:
        raise ConfigError(f"the study {settings.study} takes {', '.join(suited)}, not {data!r}")
    name = f"{settings.study}-{data}" + ("-quick" if settings.quick else "")
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {settings.out}: {error.strerror}") from error
    study = _Study(settings, data, settings.out / f"{name}.runs.jsonl", console)
    command = f"offramp reproduce {settings.study} --data {data} --seeds {len(study.seeds)}"
    command += " --quick" if settings.quick else f" --epochs {study.epochs}"
    title, tables, pictures, figures = STUDIES[settings.study](study)
    text = "\n".join(
        [f"# {title}", "", f"`{command}`", "", *(part for t in tables for part in ("```text", t, "```", ""))]
        + [f"![{stem}]({name}-{stem}.svg)" for stem in pictures]
        + [""]
    )
    written = write_study(
        settings.out,
        name,
        text=text,
        pictures={f"{name}-{stem}": svg for stem, svg in pictures.items()},
        figures={**origin(command), **figures},
    )
    study.record.unlink(missing_ok=True)
    return tables, written


class _Study:
    """Settings as a study uses them."""

    def __init__(self, settings: StudySettings, data: str, record: Path, console: Console) -> None:
        self.data, self.record, self.console = data, record, console
        self.seeds = range(min(settings.seeds, _QUICK_SEEDS) if settings.quick else settings.seeds)
        usual = regimes.BODIES[settings.study].epochs if settings.study in regimes.BODIES else 50
        self.epochs = _QUICK_EPOCHS if settings.quick else settings.epochs or usual
        self.limit = _QUICK_IMAGES if settings.quick else None
        self.workers = (os.cpu_count() or 1) if settings.workers is None else settings.workers
        self.body = settings.study

    def run(self, run: Any, jobs: Sequence[Any], what: str) -> list[Outcome]:
        """Runs jobs of a study."""
        self.console.print(what)
        return run_jobs(jobs, run, record=self.record, workers=self.workers, console=self.console)


_Result = tuple[str, list[str], dict[str, str], dict[str, Any]]


def _capogrosso(study: _Study) -> _Result:
    energy = EnergyModel()
    published, titles = capogrosso.published(), capogrosso.titles()
    nets = [*published, *titles]
    tuning = capogrosso.tuning(nets, study.data, epochs=min(10, study.epochs), limit=study.limit)
    tuned = study.run(capogrosso.run, tuning, "choosing learning rates on held-out training images")
    jobs = capogrosso.final(nets, tuned, study.data, epochs=study.epochs, seeds=study.seeds, limit=study.limit)
    outcomes = study.run(capogrosso.run, jobs, "training")
    plain = [[o for o in outcomes if o["net"] == net] for net in published]
    ways = [row for net in titles for row in placements([o for o in outcomes if o["net"] == net], energy)]
    rows = [_published_row(found) for found in plain]
    dense = "the same shape dense"
    heads = ["network (out-degrees) pattern", "weights", dense, "fewer", "accuracy %", "lowest", "highest", "lr"]
    caption = (
        f"{study.data}, {study.epochs} epochs, {len(study.seeds)} seeds: mean ± half of its 95 % interval; the "
        "published protocol, learning rates chosen on held-out training images"
    )
    tables = [
        table_text("Predefined sparsity, as published", heads, rows, caption=caption),
        title_table(ways, energy),
    ]
    points = [(w.network, w.way, w.cut, 1e3 * w.edge_mj, 100 * w.accuracy, w.edge_weights) for w in ways]
    picture = placements_picture(points)
    figures = {"published": outcomes, "placements": [asdict(row) for row in ways], "energy": asdict(energy)}
    return "Capogrosso et al. 2024: predefined sparsity, split, early exit", tables, {"ways": picture}, figures


def _published_row(outcomes: Sequence[Outcome]) -> list[str]:
    net, found = outcomes[0]["net"], [o["test"][-1] for o in outcomes]
    weights = sum(outcomes[0]["weights"])
    dense = sum(a * b for a, b in zip(net["widths"][:-1], net["widths"][1:], strict=True))
    return [
        capogrosso.name_of(net),
        count_text(weights),
        count_text(dense),
        f"{dense / weights:.1f}x",
        f"{100 * mean(found):.2f} ± {100 * interval(found):.2f}",
        f"{100 * min(found):.2f}",
        f"{100 * max(found):.2f}",
        f"{outcomes[0]['lr']:g}",
    ]


def _regimes(study: _Study) -> _Result:
    tuning = regimes.tuning(study.body, study.data, epochs=-(-study.epochs // 3), limit=study.limit)
    tuned = study.run(regimes.run, tuning, "choosing learning rates on held-out training images")
    jobs = regimes.final(study.body, tuned, study.data, epochs=study.epochs, seeds=study.seeds, limit=study.limit)
    trained = study.run(regimes.run, jobs, "training")
    outcomes = [one for o in trained for one in (o, *o.pop("students", []))]
    kinds = ["sparse", "narrow", *(["narrow-macs"] if any(o["kind"] == "narrow-macs" for o in outcomes) else [])]
    dense = [o for o in outcomes if o["kind"] == "dense"]
    panels = []
    for e, what in enumerate(("early exit", "final exit")):
        level = 100 * mean([o["test"][e] for o in dense])
        panels.append(
            Panel(
                f"{study.body} on {study.data}: {what}",
                [curve_of(kind, outcomes, e) for kind in kinds],
                (level, "dense"),
                (level - 0.3, "0.3 points below"),
            )
        )
    title = f"Where predefined sparsity pays: {study.body} on {study.data}"
    table = regimes_table(title, outcomes, f"{study.epochs} epochs, {len(study.seeds)} seeds")
    changes = [f"{variant}: {what}" for variant, what in regimes.VARIANTS.items()]
    said = [*sentences(outcomes), *(changes if regimes.BODIES[study.body].variants else [])]
    figures = {"outcomes": outcomes, "verdicts": said}
    picture = curves(panels, "fewer weights than dense (backbone)")
    return title, [table, "\n".join(said)], {"curves": picture}, figures


STUDIES = {"capogrosso": _capogrosso, "mlp": _regimes, "conv": _regimes, "cifar": _regimes}
