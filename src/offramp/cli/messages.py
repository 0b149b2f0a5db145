"""What the command line says beside its results."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape

from offramp.observe.logs import LineFormatter, Style

__all__ = ["Voice", "print_error", "say"]


class Voice:
    """Errors and warnings as people read them, or as the lines of a log.

    Attributes:
        style: "text", until the command line says otherwise.
    """

    def __init__(self) -> None:
        self.style: Style = "text"

    def error(self, error: Exception) -> None:
        """What ended the command."""
        if self.style == "json":
            _print_line("offramp.cli", logging.ERROR, str(error))
        else:
            print_error(error)

    def warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """As `warnings.showwarning`: ours as one line, like errors; those of libraries as Python writes them."""
        ours = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1])
        if self.style == "json":
            where = {} if ours else {"category": category.__name__, "place": f"{filename}:{lineno}"}
            _print_line("offramp.cli" if ours else "py.warnings", logging.WARNING, str(message), **where)
        elif ours:
            text = f"[bold yellow]warning:[/] {escape(str(message))}"
            Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def print_error(error: Exception) -> None:
    """One line, as every error of ours is shown."""
    Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line of a server on the output, at once; that nobody can read it any more ends no server."""
    try:
        print(line, flush=True)
    except OSError:  # a full disk, or a `| tee` that took the same Ctrl-C
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # else Python tries again at its end, and fails
        os.close(nowhere)


def _print_line(logger: str, level: int, text: str, **fields: str) -> None:
    named = {"name": logger, "levelno": level, "levelname": logging.getLevelName(level), "msg": text}
    record = logging.makeLogRecord({**named, **fields})
    sys.stderr.write(LineFormatter("json").format(record) + "\n")
