"""Runs a study's trainings in parallel processes, keeps what is done, and goes on where it was stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from offramp.errors import ConfigError, OfframpError

__all__ = ["Job", "Outcome", "origin", "run_jobs", "write_study"]

#: What one training is told, and what it leaves: JSON values.
Job = Mapping[str, Any]
Outcome = dict[str, Any]


def run_jobs(
    jobs: Sequence[Job],
    run: Callable[[Job], Outcome],
    *,
    record: Path,
    workers: int,
    console: Console,
    what: str = "training",
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
        what: A job in one word.

    Raises:
        ConfigError: Fewer than one worker, or a record that cannot be written or read.
        OfframpError: A process that something else ended.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    keys = [json.dumps(job, sort_keys=True) for job in jobs]
    found, whole = _recorded(record)
    waiting = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
    if len(waiting) < len(set(keys)):
        console.print(f"{len(set(keys)) - len(waiting)} of {len(set(keys))} {what}s found in {record}")
    if waiting:  # before the first training: a record that cannot be written loses none
        _append(record, "" if whole else "\n")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress, closing(_finished(waiting, run, workers)) as finished:
        task = progress.add_task(what, total=len(waiting))
        for key, outcome in finished:
            found[key] = outcome
            _append(record, json.dumps({"job": json.loads(key), "outcome": outcome}) + "\n")
            progress.advance(task)
    return [found[key] for key in keys]


def _finished(
    waiting: Mapping[str, Job], run: Callable[[Job], Outcome], workers: int
) -> Generator[tuple[str, Outcome], None, None]:
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
        with _interrupts_ignored():
            running: dict[Future[Outcome], str] = {pool.submit(run, job): key for key, job in waiting.items()}
        while running:
            done = wait(running, return_when=FIRST_COMPLETED).done
            for future in sorted(done, key=lambda f: f.exception() is not None):  # what is finished is kept first
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise OfframpError(
            "a training's process was ended, perhaps for want of memory; start again with fewer workers: what is "
            "done is kept"
        ) from error
    finally:
        for process in list((pool._processes or {}).values()):  # a training would go on for minutes
            process.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Generator[None, None, None]:
    """Processes started within never see Ctrl-C, not even while they start: the parent ends them."""
    if threading.current_thread() is not threading.main_thread():  # others may not set signal handlers
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _append(record: Path, text: str) -> None:
    try:
        with record.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write to {record}: {error.strerror}") from error


def _recorded(record: Path) -> tuple[dict[str, Outcome], bool]:
    """What is recorded, and whether its last line is whole."""
    found: dict[str, Outcome] = {}
    try:
        text = record.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return found, True
    except OSError as error:
        raise ConfigError(f"cannot read {record}: {error.strerror}") from error
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            found[json.dumps(entry["job"], sort_keys=True)] = entry["outcome"]
        except (ValueError, KeyError, TypeError):
            continue  # the line that was being written when the study was stopped
    return found, text[-1:] in ("", "\n")


def origin(command: str) -> dict[str, Any]:
    """Where figures come from: the command, the time, the versions."""
    return {
        "command": command,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "versions": {name: _version(name) for name in ("offramp", "torch", "numpy")},
    }


def _version(name: str) -> str | None:
    """A package's version; None if it is not installed, as torch where nothing is trained."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


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
