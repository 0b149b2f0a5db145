"""Tables of predictions as traces: what every exit named, one sample a line, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from offramp.errors import ConfigError, TraceError
from offramp.replay.trace import Trace, TraceMeta

__all__ = ["check_depths", "read_table"]

_SEPARATORS = "\t,;"
#: What a trace file has room for.
_MOST = np.iinfo(np.uint16).max


def read_table(path: str | Path, depths: Sequence[int]) -> Trace:
    """A trace without confidences from a text file of class indices.

    The first line names the columns: one per exit from shallow to deep and, if there is one more, the true
    class last. Columns are set apart by tabs, commas or semicolons.

    Args:
        path: The file.
        depths: Per exit ℓ, the layers on the path to it.

    Raises:
        ConfigError: Depths that do not ascend from 1.
        TraceError: A file that cannot be read, another number of columns, or a cell that is no class index.
    """
    depths, path = tuple(depths), Path(path)
    check_depths(depths)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is no table: it is not text in UTF-8") from error
    if not lines:
        raise TraceError(f"{path} is empty; expected a line that names the columns, then one line per sample")
    separator = max(_SEPARATORS, key=lines[0].count)
    columns = lines[0].count(separator) + 1
    exits = len(depths)
    if columns not in (exits, exits + 1):
        raise TraceError(
            f"{path} has {columns} columns; {exits} depths go with {exits} exits and, if known, the true class"
        )
    rows = [_row(path, i, line.split(separator)) for i, line in enumerate(lines[1:], 2) if line.strip()]
    for i, row in rows:
        if len(row) != columns:
            raise TraceError(
                f"{path}, line {i}: {len(row)} cells, not {columns}; an exit is missing, or one too many"
            )
    if not rows:
        raise TraceError(f"{path} names its columns and holds no samples")
    classes = np.array([row for _, row in rows], np.int32)
    label = classes[:, exits].copy() if columns > exits else np.full(len(classes), -1, np.int32)
    meta = TraceMeta(bundle=path.stem, data=path.name, exits=tuple(range(exits)), depths=depths)
    return Trace(classes[:, :exits].copy(), None, label, meta)


def check_depths(depths: tuple[int, ...]) -> None:
    """Refuses what cannot be the depths of a network's exits.

    Raises:
        ConfigError: Depths that do not ascend from 1.
    """
    if not depths or depths[0] < 1 or list(depths) != sorted(set(depths)):
        raise ConfigError(f"depths ascend and are at least 1, such as 1,3,7,12; not {','.join(map(str, depths))}")


def _row(path: Path, line: int, cells: Sequence[str]) -> tuple[int, list[int]]:
    for cell in cells:
        digits = cell.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) < 6 and int(digits) <= _MOST):
            raise TraceError(f"{path}, line {line}: {cell!r} is no class index from 0 to {_MOST}")
    return line, [int(cell) for cell in cells]
