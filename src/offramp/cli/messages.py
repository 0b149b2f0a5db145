"""What the command line says beside its results."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.markup import escape

__all__ = ["print_error", "say"]


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
