"""Inputs on their way, with a line of progress: what `offramp run`, `tune` and `demo` show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from offramp.bundle.bundle import Bundle
from offramp.connect import Edge as ConnectedEdge
from offramp.policy.base import Policy
from offramp.report.rows import rows_table, summarise
from offramp.runtime.edge import Edge
from offramp.runtime.result import Result
from offramp.runtime.sources import read_inputs

__all__ = ["run_files", "run_policies", "stage_progress"]


def run_files(edge: Edge, files: Sequence[Path], sink: TextIO, console: Console) -> list[Result]:
    """Runs every input of some files.

    Args:
        edge: The edge.
        files: As `find_inputs` gives them.
        sink: Gets one JSON line per input, at once.
        console: Gets the progress, and the summary even after a Ctrl-C.
    """
    manifest, name = edge.bundle.manifest, edge.policy.name
    sources: list[str] = []
    results: list[Result] = []

    def inputs() -> Iterator[Any]:
        for source, x in read_inputs(files, manifest.inputs, manifest.preprocessing):
            sources.append(source)
            yield x

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(name, total=None)
        worse = 0
        try:
            for result in edge.run(inputs()):
                results.append(result)
                sink.write(json.dumps({"input": sources[-1], **result.to_dict()}) + "\n")
                sink.flush()
                worse += result.status != "ok"
                progress.update(task, advance=1, description=f"{name}, {worse} degraded or failed")
        finally:
            if results:
                _summary(name, results, console)
    return results


def run_policies(
    bundle: Bundle,
    address: str,
    policies: Mapping[str, Policy],
    inputs: Sequence[Any] | NDArray[np.generic],
    console: Console,
    *,
    slowdown: float = 1.0,
    deadline_ms: float = 1000.0,
) -> dict[str, list[Result]]:
    """The same inputs under every policy, by the policies' names.

    Args:
        bundle: The bundle.
        address: The server's HOST:PORT.
        policies: By the name to show.
        inputs: As `Edge.run` takes them.
        console: Gets the progress, if it is a terminal.
        slowdown: Emulates an edge this many times slower.
        deadline_ms: As `Edge` takes it.
    """
    columns = (TextColumn("    {task.description:22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found: dict[str, list[Result]] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for name, policy in policies.items():
            with ConnectedEdge(
                bundle, server=address, policy=policy, slowdown=slowdown, deadline_ms=deadline_ms
            ) as edge:
                found[name] = list(progress.track(edge.run(inputs), total=len(inputs), description=name))
    return found


@contextmanager
def stage_progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for `total` inputs; gives what is to be told how many more have been run.

    Args:
        console: Where the bar is drawn, if it is a terminal.
        what: Stands before the bar.
        total: How many inputs there are.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)


def _summary(name: str, results: Sequence[Result], console: Console) -> None:
    degraded, failed = (sum(r.status == status for r in results) for status in ("degraded", "failed"))
    title = f"{len(results)} inputs, {degraded} degraded, {failed} failed"
    table = rows_table([summarise(name, results)], title=title)
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    for reason in dict.fromkeys(r.error for r in results if r.error):
        console.print(f"note: {reason}", markup=False, highlight=False)
