"""The live study: its runs as jobs, and what came of them as tables, sentences and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from offramp.bundle.bundle import Bundle
from offramp.datasets.arrays import read_arrays
from offramp.errors import ConfigError
from offramp.interval import interval
from offramp.report.adapting import adapting_picture, running_means
from offramp.reproduce.camera import camera_bundle
from offramp.reproduce.live import ADAPTIVE, LiveRun, LiveSettings, policies, run_from, run_live
from offramp.reproduce.study import Job, Outcome, origin, run_jobs, write_study
from offramp.runtime.labelled import Labelled
from offramp.serving.link import LinkSettings
from offramp.tables import table_text

__all__ = ["BARS", "LiveStudy", "sentences", "study_bundle", "study_live"]

#: How much slower than the best fixed split an adaptive policy may be, and points between the rows' accuracies.
BARS = {"slower": 0.10, "points": 0.5}
#: Inputs over which a running mean is taken.
_WINDOW = 20


@dataclass(frozen=True)
class LiveStudy:
    """What the command is told.

    Attributes:
        out: Where tables, picture and figures go.
        work: Where bundle, images and finished runs go.
        live: How the runs go.
        workers: Runs at once.
        quick: A look at whether it runs.
    """

    out: Path
    work: Path
    live: LiveSettings
    workers: int = 1
    quick: bool = False


def study_live(study: LiveStudy, console: Console) -> tuple[list[str], list[Path]]:
    """Runs every policy over every link, and over the one that changes; gives tables and the files written.

    The network is MobileNetV2 with exits behind a camera of 128 pixels.

    Raises:
        ConfigError: A folder that cannot be written to.
        DatasetError: CIFAR-10 or the weights are not at hand.
        OfframpError: See the parts.
    """
    bundle, test = camera_bundle(study.work, console)
    return study_bundle(bundle, test, study, "live-mobilenetv2", console)


def study_bundle(
    bundle: Bundle, test: Labelled, study: LiveStudy, name: str, console: Console
) -> tuple[list[str], list[Path]]:
    """The same for any bundle.

    Args:
        bundle: The bundle, with thresholds.
        test: Images that it has not learnt from, and labels.
        study: What the command is told.
        name: As files are called.
        console: Gets the progress.

    Raises:
        ConfigError: A folder that cannot be written to.
        OfframpError: See the parts.
    """
    assert not isinstance(test.inputs, dict)
    most = max(study.live.images, study.live.changing)
    kept = study.work / f"{name}-images.npz"
    try:
        study.work.mkdir(parents=True, exist_ok=True)
        np.savez(kept, x=test.inputs[:most], y=test.labels[:most])
    except OSError as error:
        raise ConfigError(f"cannot write to {kept}: {error.strerror}") from error
    links = study.live.links
    runs = [[i] for i in range(len(links))] + [[len(links) - 1, 0]]
    jobs = [
        {
            "bundle": str(bundle.path),
            "digest": bundle.digest,
            "images": str(kept),
            "what": test.what,
            "links": [asdict(links[i]) for i in run],
            "settings": _values(study.live),
        }
        for run in runs
    ]
    record = study.work / f"live{'-quick' if study.quick else ''}.jsonl"
    console.print(f"{len(jobs)} runs of {len(policies(bundle))} policies, {study.workers} at a time")
    outcomes = run_jobs(jobs, one_run, record=record, workers=study.workers, console=console, what="run")
    found = [run_from(outcome) for outcome in outcomes]
    name += "-quick" if study.quick else ""
    command = _command(study)
    tables = [_table(run, study.live) for run in found]
    said = sentences(found, study.live)
    shown = "\n\n".join(f"```text\n{t}\n```" for t in [*tables, "\n".join(said)])
    text = (
        f"# Policies that adapt, live\n\n`{command}`\n\n"
        f"{bundle.manifest.name}: {test.what}; thresholds by held-out images, the same for all rows. Server and "
        "links are processes of their own on loopback; **the edge is emulated: "
        f"{study.live.slowdown:g} times slower than this machine** (it sleeps). Cuts and inputs travel as "
        f"{bundle.tuning.mode}. Policies take turns, so that all see the same machine.\n\n{shown}\n\n"
        f"![latency]({name}.svg)\n"
    )
    figures = {
        "origin": origin(command),
        "digest": bundle.digest,
        "sent_bytes": [bundle.manifest.sent_bytes(k, bundle.tuning.mode) for k in range(-1, bundle.manifest.last)],
        "thresholds": bundle.tuning.thresholds,
        "settings": _values(study.live),
        "bars": BARS,
        "sentences": said,
        "runs": [_figures(run) for run in found],
    }
    written = write_study(
        study.out, name, text=text, pictures={name: adapting_picture(found, window=_WINDOW)}, figures=figures
    )
    return [*tables, "\n".join(said)], written


def one_run(job: Job) -> Outcome:
    """One link's run, in a process of its own."""
    arrays = read_arrays(Path(job["images"]))
    assert isinstance(arrays, dict)
    settings = LiveSettings(**job["settings"])
    links = [LinkSettings(**link) for link in job["links"]]
    test = Labelled(arrays["x"], arrays["y"].astype(np.int64), job["what"])
    return run_live(job["bundle"], test, links, settings, Console(quiet=True)).to_dict()


def sentences(runs: Sequence[LiveRun], settings: LiveSettings) -> list[str]:
    """What was found, in words, the bars included."""
    said = []
    for run in runs:
        spread = 100 * (max(r.accuracy for r in run.rows) - min(r.accuracy for r in run.rows))
        held = "within" if spread <= BARS["points"] else "beyond"
        best = run.best
        lead = f"{run.link}: the best fixed split is {best.name}, {best.mean_ms:.1f} ms"
        if run.change_at is None:
            ratios = ", ".join(
                f"{name} {run.row(name).mean_ms / best.mean_ms:.3f}x "
                f"({'held' if run.row(name).mean_ms <= (1 + BARS['slower']) * best.mean_ms else 'missed'})"
                for name in ADAPTIVE
            )
            said.append(f"{lead}; {ratios}. Accuracies {spread:.2f} points apart ({held} {BARS['points']})")
            continue
        beaten = ", ".join(
            f"{name} {run.row(name).mean_ms:.1f} ms "
            f"({'beats every fixed split' if run.row(name).mean_ms < best.mean_ms else 'does not beat it'})"
            for name in ADAPTIVE
        )
        back = ", ".join(f"{name} {_text(_recovered(run, name))}" for name in ADAPTIVE)
        said.append(
            f"{lead}; {beaten}. Inputs after the change until a running mean of {_WINDOW} comes within "
            f"{BARS['slower']:.0%} of what is best fixed from then on: {back}"
        )
    names = {run.best.name for run in runs if run.change_at is None}
    said.append(
        f"the best fixed split differs between the links: {', '.join(sorted(names))}"
        if len(names) > 1
        else f"the best fixed split is the same over every link ({', '.join(names)}): another slowdown than "
        f"{settings.slowdown:g} would tell more"
    )
    return said


def _recovered(run: LiveRun, name: str) -> int | None:
    """Inputs after the change until a policy is about as quick as the best fixed split from then on."""
    assert run.change_at is not None
    after = {row.name: row.latency_ms[run.change_at :] for row in run.rows}
    best = min(float(np.mean(after[row.name])) for row in run.fixed)
    window = min(_WINDOW, len(after[name]))
    means = running_means(after[name], window)[window - 1 :]
    return next((i for i, ms in enumerate(means) if ms <= (1 + BARS["slower"]) * best), None)


def _text(inputs: int | None) -> str:
    return "never" if inputs is None else str(inputs)


def _table(run: LiveRun, settings: LiveSettings) -> str:
    heads = ["policy", "accuracy %", "mean ms", "± 95 %", "to best fixed", "measured cost", "splits chosen"]
    if run.change_at is not None:
        heads[3:3] = ["before", "after"]
    rows = []
    for row in run.rows:
        n = len(row.splits)
        shares = {k: row.splits.count(k) / n for k in sorted(set(row.splits))}
        cells = [
            row.name,
            f"{100 * row.accuracy:.2f}",
            f"{row.mean_ms:.1f}",
            f"{interval(list(row.latency_ms)):.1f}",
            f"{row.mean_ms / run.best.mean_ms:.3f}x",
            f"{row.cost:.3f}",
            ", ".join(f"{k}: {share:.1%}" for k, share in shares.items()),
        ]
        if run.change_at is not None:
            halves = row.latency_ms[: run.change_at], row.latency_ms[run.change_at :]
            cells[3:3] = [f"{np.mean(half):.1f}" for half in halves]
        rows.append(cells)
    many = len(run.rows[0].splits)
    change = "" if run.change_at is None else f"; the link changes after {run.change_at}"
    caption = (
        f"{many} images in one order for all{change}; edge emulated {settings.slowdown:g}x slower; every row's "
        "mean has its exploration in it"
    )
    return table_text(run.link, heads, rows, caption=caption)


def _figures(run: LiveRun) -> dict[str, Any]:
    """Per row its means, and how its running mean went."""
    return {
        "link": run.link,
        "change_at": run.change_at,
        "best_fixed": run.best.name,
        "rows": [
            {
                "name": row.name,
                "accuracy": row.accuracy,
                "mean_ms": row.mean_ms,
                "to_best_fixed": row.mean_ms / run.best.mean_ms,
                "cost": row.cost,
                "running_ms": [round(ms, 1) for ms in running_means(row.latency_ms, _WINDOW)[:: _WINDOW // 2]],
                "split_share": {str(k): row.splits.count(k) / len(row.splits) for k in sorted(set(row.splits))},
            }
            for row in run.rows
        ],
    }


def _values(settings: LiveSettings) -> dict[str, Any]:
    return {key: value for key, value in asdict(settings).items() if key != "links"}


def _command(study: LiveStudy) -> str:
    live = study.live
    return (
        f"offramp reproduce live --images {live.images} --changing {live.changing} "
        f"--edge-slowdown {live.slowdown:g} --workers {study.workers}"
        + (f" --seed {live.seed}" if live.seed else "")
        + (" --quick" if study.quick else "")
    )
