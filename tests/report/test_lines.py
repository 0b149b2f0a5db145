"""Results as lines in a file, torn ones among them."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import pytest

from offramp.errors import ConfigError, OfframpError
from offramp.report.lines import LineSink, take_up
from offramp.runtime.result import Result


def written(count: int, first: int = 0) -> bytes:
    file = io.StringIO()
    sink = LineSink(file, first)
    for i in range(count):
        sink(f"näme {first + i}", Result(i, "ok", label=i, probabilities=(0.25, 0.75)))
    return file.getvalue().encode()


def test_a_line_is_the_result_and_out_at_once(tmp_path: Path) -> None:
    with (tmp_path / "out.jsonl").open("w") as file:
        LineSink(file, first=7)("a.png", Result(2, "ok", label=1))
        (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    held = json.loads(line)
    assert (held["input"], held["index"], held["status"], held["label"]) == ("a.png", 9, "ok", 1)


def test_there_need_not_be_a_file_and_it_may_be_empty(tmp_path: Path) -> None:
    assert take_up(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").touch()
    assert take_up(tmp_path / "empty") == []


def test_whole_lines_stay_and_a_torn_one_goes_wherever_it_is_torn(tmp_path: Path) -> None:
    path, whole = tmp_path / "out.jsonl", written(3)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends)
        assert take_up(path) == [f"näme {i}" for i in range(kept)]
        assert path.read_bytes() == whole[: ends[kept - 1] if kept else 0]
    path.write_bytes(whole + written(2, first=3))
    assert len(take_up(path)) == 5


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"notes", 0),
        (b"notes\n", 0),
        (b'{"input": "a"}\n', 0),
        (b'{"index": 0}\n', 0),
        (b'["input", 0]\n', 0),
        (b'{"input": 3, "index": 0}\n', 0),
        (b"[" * 100_000 + b"\n", 0),
        (b"\xff\xfe\n", 0),
        (b"\n", 0),
        (written(2) + written(1), 2),  # two runs in one file
        (written(2) + b"\x00" * 9, 2),
        (written(1, first=1), 0),  # the beginning is missing
    ],
)
def test_what_is_no_run_is_left_alone(tmp_path: Path, content: bytes, line: int) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"line {line} of .*out.jsonl is not the result {line} of a run"):
        take_up(path)
    assert path.read_bytes() == content


def test_what_cannot_be_gone_on_with_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):  # which would be read without end
        with pytest.raises(ConfigError, match="is no file"):
            take_up(path)


def test_a_full_disk_is_an_error_of_ours() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OfframpError, match=r"result of a.png cannot be written: No space"):
        LineSink(Full())("a.png", Result(0, "ok"))
