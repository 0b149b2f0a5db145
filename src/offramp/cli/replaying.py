"""`offramp replay`: policies on recorded traces, compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from offramp.cli.costs import COST_HELP, number, parse_cost
from offramp.cli.extras import needs_extra
from offramp.cli.options import JsonOption, SlowdownOption
from offramp.errors import ConfigError

if TYPE_CHECKING:
    from offramp.replay.trace import Trace

__all__ = ["parse_depths", "replay"]


def replay(
    traces: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACE...",
            help="Files of `offramp trace`, or tables of predicted classes (with --depths). Several follow one "
            "another in each run: the world changes where one ends.",
        ),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,OPTION=VALUE...]",
            help="`i-splitee`, `i-splitee,audit=0.05`, …: beside the usual comparisons; several times if wanted. "
            "Its gates are those of all, unless it says `alpha=0.5`.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every policy, each in an order of its own.")] = 20,
    cost: Annotated[
        str,
        typer.Option(metavar="NAME=VALUE,...", help=COST_HELP),
    ] = "",
    rate: Annotated[
        str | None,
        typer.Option(
            help="The link's rate, such as 10mbit: for measured cost and for `dynamic-split`, by the times and "
            "bytes in the trace."
        ),
    ] = None,
    delay: Annotated[str, typer.Option(help="Its delay one way, half of a round trip.")] = "0ms",
    mode: Annotated[str, typer.Option(help="How cuts travel over it.")] = "float",
    edge_slowdown: SlowdownOption = 1.0,
    alpha: Annotated[
        str | None,
        typer.Option(
            metavar="A[,A...]",
            help="The gates' threshold, or one per early exit; the bundle's own if left out, 0.5 if the trace "
            "does not tell them.",
        ),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="confidence|accuracy",
            help="What an answer is worth, before its cost: its exit's confidence if there are confidences.",
        ),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="L,L,...",
            help="The layers on the path to each exit, in the cost; a trace's own if left out. Where a stage has "
            "no exit, to its end. Tables of predictions need them.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first run's; the next run's is one more.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="PICTURE.svg", help="Regret over time, and cost against accuracy.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Plays policies on recorded traces and compares accuracy, cost and regret; shows 95 % intervals over runs.

    Beside the policies asked for: every fixed arm, the final exit, a random arm, "offload all after the first
    exit", "send the input", and the cascade. Learners see what an edge would have seen and no more; one that was
    published with what no edge can see is shown in that form as well.
    """
    from offramp.replay.comparisons import asked, comparisons
    from offramp.replay.conditions import forecast_of
    from offramp.replay.replay import replay as replay_all
    from offramp.replay.scores import REWARDS
    from offramp.report.live import stage_progress
    from offramp.report.replaying import replay_figures, replay_table
    from offramp.serving.link import parse_delay, parse_rate

    worth = next((known for known in REWARDS if known == reward), None)
    if reward is not None and worth is None:
        raise ConfigError(f"--reward is {' or '.join(REWARDS)}, not {reward!r}")
    if out is not None and (out.suffix != ".svg" or not out.parent.is_dir()):
        raise ConfigError(f"--out is a file that ends in .svg in a folder that there is, not {str(out)!r}")
    learners = {name: make for wanted in policy or () for name, make in asked(wanted).items()}
    loaded = [_loaded(path, depths) for path in traces]
    policies = {**comparisons(loaded[0]), **learners}
    forecast = None
    if rate is not None:
        forecast = forecast_of(
            loaded[0].meta,
            rate_bps=parse_rate(rate),
            round_trip_ms=2e3 * parse_delay(delay),
            slowdown=edge_slowdown,
            mode=mode,
        )
    elif (delay, mode, edge_slowdown) != ("0ms", "float", 1.0):
        raise ConfigError("--delay, --mode and --edge-slowdown go with a link: give its --rate, such as 10mbit")
    elif any(make(0).wants_forecast for make in learners.values()):
        raise ConfigError("dynamic-split goes by the link: give its --rate, such as 10mbit, and its --delay")
    if out is not None:
        with needs_extra("replay --out", "report"):
            from offramp.report.regret import replay_picture
    with stage_progress(Console(stderr=True), "replaying", seeds * len(policies)) as on_runs:
        found = replay_all(
            loaded,
            policies,
            cost=parse_cost(cost, loaded[0].meta.depths if depths is None else parse_depths(depths)),
            forecast=forecast,
            alpha=_alpha(alpha),
            reward=worth,
            seeds=seeds,
            seed=seed,
            on_runs=on_runs,
        )
    typer.echo(json.dumps(replay_figures(found), indent=1) if as_json else replay_table(found))
    if out is not None:
        _write(out, replay_picture(found))


def parse_depths(text: str) -> tuple[int, ...]:
    """The value of `--depths`.

    Raises:
        ConfigError: Anything but whole numbers set apart by commas, that ascend from 1.
    """
    from offramp.replay.table import check_depths

    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--depths are whole numbers such as 1,3,7,12, not {text!r}") from None
    check_depths(found)
    return found


def _loaded(path: Path, depths: str | None) -> Trace:
    from offramp.replay.table import read_table
    from offramp.replay.trace import Trace

    if path.suffix == ".npz":
        return Trace.load(path)
    if depths is None:
        raise ConfigError(f"{path} is no .npz trace; for a table of predictions give --depths, such as 1,3,7,12")
    return read_table(path, parse_depths(depths))


def _alpha(text: str | None) -> float | tuple[float, ...] | None:
    if text is None:
        return None
    found = tuple(number("--alpha", part) for part in text.split(","))
    return found[0] if len(found) == 1 else found


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from error
    typer.echo(f"wrote {out}", err=True)
