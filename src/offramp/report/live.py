"""Inputs on their way, with a line of progress: what `offramp run`, `tune` and `demo` show."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from offramp.bundle.bundle import Bundle
from offramp.connect import Edge as ConnectedEdge
from offramp.policy.base import Policy
from offramp.report.rows import rows_table, summarise
from offramp.runtime.board_energy import BoardEnergy
from offramp.runtime.edge import Edge
from offramp.runtime.result import Result, Status

__all__ = ["run_inputs", "run_policies", "stage_progress"]

#: Results that a summary is made of: the last ones, so that a run may go on for ever.
SUMMED = 10_000


def run_inputs(
    edge: Edge,
    inputs: Iterable[tuple[str, Any]],
    sink: Callable[[str, Result], None],
    console: Console,
    *,
    under_way: int = 1,
    board: BoardEnergy | None = None,
) -> int:
    """Runs named inputs; gives how many failed.

    Args:
        edge: The edge.
        inputs: As `read_inputs` gives them.
        sink: Gets each input's name and result at once, in order.
        console: Gets the progress, and the summary even after a Ctrl-C.
        under_way: As `Edge.run` takes it.
        board: The board's energy counters, if it has any.
    """
    name = edge.policy.name
    sources: deque[str] = deque()  # of the inputs under way
    last: deque[Result] = deque(maxlen=SUMMED)
    counts: Counter[Status] = Counter()

    def unnamed() -> Iterator[Any]:
        for source, x in inputs:
            sources.append(source)
            yield x

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
        board or nullcontext(),
    ):
        task = progress.add_task(name, total=None)
        try:
            for result in edge.run(unnamed(), under_way=under_way):
                sink(sources.popleft(), result)
                last.append(result)
                counts[result.status] += 1
                worse = counts["degraded"] + counts["failed"]
                progress.update(task, advance=1, description=f"{name}, {worse} degraded or failed")
        finally:
            if last:
                _summary(name, last, counts, console)
                _energy(board, counts.total(), console)
    return counts["failed"]


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


def _summary(name: str, last: Sequence[Result], counts: Counter[Status], console: Console) -> None:
    total = counts.total()
    title = f"{total} inputs, {counts['degraded']} degraded, {counts['failed']} failed"
    caption = f"of the last {len(last)}" if len(last) < total else ""
    table = rows_table([summarise(name, last)], title=title, caption=caption)
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    for reason in dict.fromkeys(r.error for r in last if r.error):
        console.print(f"note: {reason}", markup=False, highlight=False)


def _energy(board: BoardEnergy | None, inputs: int, console: Console) -> None:
    joules = None if board is None else board.joules()
    if board is not None and joules is not None:
        each = f"{joules:.3g} J, {1e3 * joules / inputs:.3g} mJ per input"
        text = f"energy measured: {each} ({board.name}, with all else that ran meanwhile)"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
