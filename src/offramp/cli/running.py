"""`offramp run`: inputs through an edge."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console

from offramp.cli.costs import COST_HELP, parse_cost
from offramp.cli.credentials import (
    CaOption,
    CertOption,
    EdgeTokenOption,
    KeyOption,
    edge_credentials,
)
from offramp.cli.observing import (
    LogFormatOption,
    LogLevelOption,
    MetricsHostOption,
    MetricsPortOption,
    TracesOption,
    counting,
    edge_tracer,
    observed,
)
from offramp.cli.options import BundleArgument, ServerOption, SlowdownOption
from offramp.errors import ConfigError

if TYPE_CHECKING:
    from offramp.runtime.result import Result

__all__ = ["run"]

_log = logging.getLogger("offramp.cli")


def run(
    bundle: BundleArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images, .npy or .npz files, folders, patterns such as `'photos/**/*.jpg'`; `-` reads paths from "
            "the standard input, one per line; `camera:0`.",
        ),
    ],
    server: ServerOption = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME[,OPTION=VALUE...]",
            help="`i-splitee`, `splitee`, `splitee-s`, `uee-ucb`, `dynamic-split`, `cascade`, `random`, "
            "`edge-only`, `server-only`, `split-K`, `split-K-all`; options such as `i-splitee,audit=0.05`.",
        ),
    ] = "cascade",
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="The confidence from which an exit answers; the bundle's own thresholds if left out.",
        ),
    ] = None,
    deadline_ms: Annotated[
        float,
        typer.Option(
            help="Milliseconds that one input may take; if the server takes longer, the edge answers alone."
        ),
    ] = 1000.0,
    link_rate: Annotated[
        str | None,
        typer.Option(
            help="The link's rate, such as 10mbit, as `offramp profile` measures it: cuts are compressed where "
            "`offramp modes --write` found that it pays."
        ),
    ] = None,
    cost: Annotated[str, typer.Option(metavar="NAME=VALUE,...", help=COST_HELP)] = "",
    under_way: Annotated[
        int,
        typer.Option(
            min=1,
            help="Inputs at once: the next ones' heads run while answers are awaited. 1 has the lowest latency.",
        ),
    ] = 1,
    edge_slowdown: SlowdownOption = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="For policies that draw.")] = 0,
    state: Annotated[
        Path | None,
        typer.Option(help="A file that keeps what the policy learned: read if it is there, written at the end."),
    ] = None,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: EdgeTokenOption = None,
    out: Annotated[Path | None, typer.Option(help="A file for the JSON lines, instead of the output.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on behind the last whole line in --out, if there is one: nothing is run twice. Give the same "
            "inputs again.",
        ),
    ] = False,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = "127.0.0.1",
    traces: TracesOption = False,
    log_format: LogFormatOption = "text",
    log_level: LogLevelOption = "warning",
) -> None:
    """Runs inputs through the edge: one JSON line per input on the output, a summary on the error output.

    Without --server everything is answered here. Exits with 1 if any input failed.
    """
    from offramp.bundle.bundle import Bundle
    from offramp.connect import Edge
    from offramp.policy.memory import load_state, save_state
    from offramp.policy.registry import make_policy, parse_policy
    from offramp.report.lines import LineSink, take_up
    from offramp.report.live import run_inputs
    from offramp.runtime.board_energy import find_board_energy
    from offramp.runtime.live_sources import CAMERA
    from offramp.runtime.sources import find_inputs, read_inputs
    from offramp.serving.link import parse_rate

    if resume and out is None:
        raise ConfigError("--resume goes on with a file of results; name it with --out")
    bits = 0.0 if link_rate is None else parse_rate(link_rate)
    if resume and any(name.startswith(CAMERA) for name in inputs):
        raise ConfigError("a camera's frames do not come again, so --resume cannot leave out those that are done")
    sources, loaded = find_inputs(inputs), Bundle.load(bundle)
    name, options = parse_policy(policy)
    if alpha is not None:
        if "alpha" in options:
            raise ConfigError(f"--alpha {alpha} and {policy!r} both name the gates' threshold; leave one out")
        options["alpha"] = alpha
    chosen = make_policy(name, seed=seed, **options)
    if state is not None:
        if state.exists():
            load_state(chosen, state, loaded.digest)
        save_state(chosen, state, loaded.digest)  # what cannot be written is said now, not after the run
    done = take_up(out) if out is not None and resume else []
    with (
        observed("run", traces, log_format, log_level) as spans,
        Edge(
            loaded,
            server=server,
            policy=chosen,
            credentials=edge_credentials(ca, cert, key, token_file),
            deadline_ms=deadline_ms,
            link_mbps=bits / 1e6 or None,
            cost=parse_cost(cost, [stage.depth for stage in loaded.manifest.stages]),
            slowdown=edge_slowdown,
            tracer=edge_tracer(spans),
        ) as edge,
        counting(edge, metrics_host, metrics_port) as count,
        _sink(out, resume) as file,
    ):
        try:
            samples = read_inputs(sources, loaded.manifest.inputs, loaded.manifest.preprocessing, done=done)
            lines, counts = LineSink(file, first=len(done)), Counter[str]()

            def sink(name: str, result: Result) -> None:
                count(result)  # whoever sees the line finds it counted
                counts[result.status] += 1
                lines(name, result)

            board = find_board_energy()
            console = Console(stderr=True, quiet=log_format == "json")  # the summary is none
            failed = run_inputs(edge, samples, sink, console, under_way=under_way, board=board)
        finally:
            _log.info("run ended", extra=dict(counts))
            if state is not None:
                save_state(chosen, state, loaded.digest)
    if failed:
        raise typer.Exit(1)


@contextmanager
def _sink(out: Path | None, resume: bool) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        file = out.open("a" if resume else "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from error
    try:
        yield file
    finally:
        with suppress(OSError):  # what cannot be written was said when it was tried
            file.close()
