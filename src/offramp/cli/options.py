"""Arguments and options that several commands take."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from offramp.errors import ConfigError

__all__ = [
    "BundleArgument",
    "DeltaOption",
    "JsonOption",
    "MaxDropOption",
    "ServerOption",
    "SlowdownOption",
    "checked_delta",
]

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="A server that holds the same bundle.")
]
SlowdownOption = Annotated[
    float, typer.Option("--edge-slowdown", help="Emulate an edge this many times slower than this machine.")
]
MaxDropOption = Annotated[
    float, typer.Option(help="Accuracy that all gates together may cost, as a fraction: 0.005 is half a point.")
]
DeltaOption = Annotated[
    str,
    typer.Option(
        metavar="0..1|none",
        help="The probability that they cost more. With `none`, nothing is promised: the threshold only keeps "
        "the drop on the held-out samples themselves, for when they are few.",
    ),
]


def checked_delta(max_drop: float, delta: str) -> float | None:
    """The value of `--delta`, once it and `--max-drop` are what they can be.

    Raises:
        ConfigError: A drop outside [0, 1], or a delta that is neither "none" nor inside (0, 1).
    """
    if not 0 <= max_drop <= 1:
        raise ConfigError(f"--max-drop is a fraction between 0 and 1, not {max_drop}")
    if delta == "none":
        return None
    try:
        value = float(delta)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ConfigError(f"--delta is a probability such as 0.1, above 0 and below 1, or `none`, not {delta!r}")
    return value
