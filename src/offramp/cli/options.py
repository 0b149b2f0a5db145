"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["BundleArgument", "JsonOption", "ServerOption", "SlowdownOption"]

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="A server that holds the same bundle.")
]
SlowdownOption = Annotated[
    float, typer.Option("--edge-slowdown", help="Emulate an edge this many times slower than this machine.")
]
