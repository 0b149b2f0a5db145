"""Runs a study's trainings in parallel processes, keeps what is done, and goes on where it was stopped."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from offramp.errors import ConfigError

__all__ = ["Job", "Outcome", "interval", "mean", "origin", "run_jobs", "write_study"]

#: What one training is told, and what it leaves: JSON values.
Job = Mapping[str, Any]
Outcome = dict[str, Any]

#: Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def run_jobs(
    jobs: Sequence[Job], run: Callable[[Job], Outcome], *, record: Path, workers: int, console: Console
) -> list[Outcome]:
    """Every job's outcome, in the order of the jobs.

    Finished jobs are written to `record` as JSON lines, one each; a study that was stopped finds them there
    and runs only the rest.

    Args:
        jobs: What to run; JSON values.
        run: A function of a module, so that other processes find it. It runs with one thread.
        record: The file of finished jobs.
        workers: Processes.
        console: Where progress is shown.

    Raises:
        ConfigError: Fewer than one worker, or a record that cannot be written or read.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    keys = [json.dumps(job, sort_keys=True) for job in jobs]
    found = _recorded(record)
    waiting = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
    if len(waiting) < len(set(keys)):
        console.print(f"{len(set(keys)) - len(waiting)} of {len(set(keys))} trainings found in {record}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=len(waiting))
        for key, outcome in _finished(waiting, run, workers):
            found[key] = outcome
            try:
                with record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"job": json.loads(key), "outcome": outcome}) + "\n")
            except OSError as error:
                raise ConfigError(f"cannot write to {record}: {error.strerror}") from error
            progress.advance(task)
    return [found[key] for key in keys]


def _finished(
    waiting: Mapping[str, Job], run: Callable[[Job], Outcome], workers: int
) -> Iterable[tuple[str, Outcome]]:
    if workers == 1 or len(waiting) < 2:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for key, job in waiting.items():
                yield key, run(job)
        finally:
            torch.set_num_threads(threads)
        return
    # Forked children would inherit torch's threads in a state that nobody promises.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=_one_thread)
    try:
        running: dict[Future[Outcome], str] = {pool.submit(run, job): key for key, job in waiting.items()}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        for process in list((pool._processes or {}).values()):  # a training would go on for minutes
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    torch.set_num_threads(1)


def _recorded(record: Path) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    if not record.exists():
        return found
    for line in record.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            found[json.dumps(entry["job"], sort_keys=True)] = entry["outcome"]
        except (ValueError, KeyError, TypeError):
            continue  # the line that was being written when the study was stopped
    return found


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t; 0 for a single value."""
    n = len(values)
    if n < 2:
        return 0.0
    middle = mean(values)
    deviation = math.sqrt(sum((v - middle) ** 2 for v in values) / (n - 1))
    return (_T95[n - 2] if n - 2 < len(_T95) else 1.96) * deviation / math.sqrt(n)


def origin(command: str) -> dict[str, Any]:
    """Where figures come from: the command, the time, the versions."""
    return {
        "command": command,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in ("offramp", "torch", "numpy")},
    }


def write_study(folder: Path, name: str, *, text: str, pictures: Mapping[str, str], figures: Any) -> list[Path]:
    """Writes a study's tables (Markdown), pictures (SVG) and figures (JSON).

    Args:
        folder: Where to; made if it is missing.
        name: The files' stem.
        text: Markdown.
        pictures: SVG text by the file's name without its suffix.
        figures: JSON values.

    Raises:
        ConfigError: A folder that cannot be written to.
    """
    contents = {f"{name}.md": text, f"{name}.json": json.dumps(figures, indent=1) + "\n"}
    contents.update({f"{stem}.svg": svg for stem, svg in pictures.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            (folder / file).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error
    return [folder / file for file in contents]
