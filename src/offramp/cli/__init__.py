"""The command line, `offramp`: one module per kind of work, one function per command."""

from __future__ import annotations

import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, NoReturn

import typer

from offramp import __version__
from offramp.cli.bundles import inspect, profile
from offramp.cli.cuts import cuts
from offramp.cli.exporting import export
from offramp.cli.linking import link
from offramp.cli.messages import Voice
from offramp.cli.modes import modes
from offramp.cli.quantizing import quantize
from offramp.cli.replaying import replay
from offramp.cli.running import run
from offramp.cli.serving import serve
from offramp.cli.studies import reproduce
from offramp.cli.tracing import trace
from offramp.cli.training import demo, train
from offramp.cli.tuning import tune
from offramp.errors import ActionError, ConfigError, OfframpError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Train a network sparse from the start, let easy inputs leave early, split the rest between a device "
    "and a server. Start with `offramp demo`.",
)
# In the order in which `offramp --help` lists them.
for _command in (
    demo, train, inspect, cuts, modes, profile, tune, quantize, trace, replay, serve, run, link, export,
):  # fmt: skip
    app.command()(_command)
app.add_typer(reproduce, name="reproduce")


def main() -> None:
    """Runs the command line; our errors become one line and exit code 2 (misuse) or 1 (failure)."""
    signal.signal(signal.SIGTERM, _terminated)
    voice = Voice()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = voice.warning
            app(obj=voice)
    except OfframpError as error:
        voice.error(error)
        # Every policy here was named on the line: one that cannot be played is misuse too.
        sys.exit(2 if isinstance(error, ConfigError | ActionError) else 1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"offramp {__version__}")
        raise typer.Exit


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
