"""Results as JSON lines in a file: written one by one, and gone on with after a run that was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from offramp.errors import ConfigError, OfframpError
from offramp.runtime.result import Result

__all__ = ["LineSink", "take_up"]

_BEGIN = b'{"input": '


class LineSink:
    """Writes each result as one line, `{"input": NAME, "index": I, …}`, which is out when the call returns.

    Args:
        file: Where to.
        first: The index of the first result.
    """

    def __init__(self, file: TextIO, first: int = 0) -> None:
        self._file, self._first = file, first

    def __call__(self, name: str, result: Result) -> None:
        """Writes the result of the input with that name.

        Raises:
            OfframpError: It cannot be written.
        """
        numbered = replace(result, index=result.index + self._first)
        try:
            self._file.write(json.dumps({"input": name, **numbered.to_dict()}) + "\n")
            self._file.flush()
        except BrokenPipeError:  # whoever reads has seen enough, which is no error
            raise
        except OSError as error:
            raise OfframpError(f"the result of {name} cannot be written: {error.strerror}") from error


def take_up(path: Path) -> list[str]:
    """The names of the inputs that have their line in a file; a torn last line is cut off.

    Args:
        path: What `LineSink` wrote; there need not be one.

    Raises:
        ConfigError: The file cannot be read, or holds something else; it is left as it is.
    """
    names: list[str] = []
    whole = 0
    try:
        if not path.exists():
            return []
        if not path.is_file():
            raise ConfigError(f"{path} is no file, so there is nothing in it to go on with")
        with path.open("r+b") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    if not (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
                        raise ConfigError(_foreign(path, number))
                    file.truncate(whole)
                    break
                names.append(_name(path, number, line))
                whole += len(line)
    except OSError as error:
        raise ConfigError(f"cannot go on with {path}: {error.strerror}") from error
    return names


def _name(path: Path, number: int, line: bytes) -> str:
    try:
        held = json.loads(line)
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict) or held.get("index") != number or not isinstance(held.get("input"), str):
        raise ConfigError(_foreign(path, number))
    name: str = held["input"]
    return name


def _foreign(path: Path, number: int) -> str:
    return f"line {number} of {path} is not the result {number} of a run; leave --resume out to begin anew"
