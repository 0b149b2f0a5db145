"""Commands that need more than an edge device has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from offramp.errors import MissingExtraError

__all__ = ["needs_extra"]


@contextmanager
def needs_extra(command: str, extra: str) -> Iterator[None]:
    """Around a command's imports: an absent optional dependency becomes an error that says what to install.

    Args:
        command: The command as it was typed, without `offramp`.
        extra: What to install: "train", "report", "serve", "onnx".

    Raises:
        MissingExtraError: The dependency is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("offramp"):
            raise
        raise MissingExtraError(
            f"`offramp {command}` needs {error.name}, which is not installed: pip install 'offramp[{extra}]'"
        ) from error
