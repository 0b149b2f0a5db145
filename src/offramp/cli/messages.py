"""What the command line says on its error output."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

__all__ = ["print_error"]


def print_error(error: Exception) -> None:
    """One line, as every error of ours is shown."""
    Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
