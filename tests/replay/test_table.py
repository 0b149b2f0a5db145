"""Tables of predictions: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offramp.errors import ConfigError, OfframpError, TraceError
from offramp.replay.table import read_table
from offramp.replay.trace import Trace
from offramp.report.tracing import trace_text


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("separator", ["\t", ",", ";", " , "])
def test_predictions_and_labels(tmp_path: Path, separator: str) -> None:
    lines = [["0", "1", "op_labels"], ["2", "0", "0"], ["65535", "1", "1"]]
    path = written(tmp_path, "\n".join(separator.join(line) for line in lines) + "\n")
    found = read_table(path, (3, 12))
    assert found.prediction.tolist() == [[2, 0], [65535, 1]]
    assert found.label.tolist() == [0, 1]
    assert found.confidence is None
    assert found.accuracy == (0.0, 1.0)
    assert (found.meta.exits, found.meta.depths, found.meta.bundle) == ((0, 1), (3, 12), "t")


def test_without_a_column_more_labels_are_unknown(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, "﻿a,b\r\n1,2\r\n\r\n0,0\r\n"), (1, 2))
    assert found.label.tolist() == [-1, -1]
    assert found.prediction.tolist() == [[1, 2], [0, 0]]


def test_a_trace_without_confidences_goes_round_and_shows_what_it_knows(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, "a,b,y\n1,2,2\n0,0,0\n"), (1, 2))
    found.save(tmp_path / "t.npz")
    again = Trace.load(tmp_path / "t.npz")
    assert again.confidence is None
    assert again.meta == found.meta
    assert np.array_equal(again.prediction, found.prediction)
    shown = trace_text(found)
    assert "50.00" in shown
    assert shown.count(" - ") == 8  # per exit: confidence, MACs, ms, bytes


HOSTILE: list[tuple[str | bytes, str]] = [
    ("", "is empty"),
    ("a,b,y\n", "holds no samples"),
    ("a\n1\n", "has 1 columns; 2 depths go with 2 exits"),
    ("a,b,c,y\n1,2,3,4\n", "has 4 columns"),
    ("a,b,y\n1,2,0\n1,2\n", "line 3: 2 cells, not 3; an exit is missing"),
    ("a,b,y\n1,,0\n", "line 2: '' is no class index"),
    ("a,b,y\n1,-1,0\n", "line 2: '-1' is no class index"),
    ("a,b,y\n1,0.5,0\n", "'0.5' is no class index"),
    ("a,b,y\n1,nan,0\n", "'nan' is no class index"),
    ("a,b,y\n1,65536,0\n", "'65536' is no class index from 0 to 65535"),
    ("a,b,y\n1," + "9" * 5000 + ",0\n", "is no class index"),
    ("a,b,y\n1,²,0\n", "is no class index"),
    (b"\xff\xfe\x00", "not text in UTF-8"),
]


@pytest.mark.parametrize(("content", "message"), HOSTILE)
def test_a_hostile_table_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read_table(written(tmp_path, content), (1, 2))


@pytest.mark.parametrize("depths", [(), (0, 1), (3, 3), (7, 3)])
def test_depths_that_cannot_be(tmp_path: Path, depths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="depths ascend"):
        read_table(written(tmp_path, "a,b\n1,2\n"), depths)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(OfframpError, match="cannot read"):
            read_table(path, (1, 2))
