"""NumPy files: whole ones are read, and whatever is wrong with others is one kind of error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from offramp.datasets.arrays import inputs_among, read_arrays


def test_one_array_or_several_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    np.savez(tmp_path / "b.npz", x=np.arange(2), y=np.ones(1))
    found = read_arrays(tmp_path / "a.npy")
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [0, 1, 2]
    several = read_arrays(str(tmp_path / "b.npz"))
    assert isinstance(several, dict)
    assert {name: array.tolist() for name, array in several.items()} == {"x": [0, 1], "y": [1.0]}


def test_what_is_no_numpy_file_is_not_called_a_pickle_to_be_trusted(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"\x80\x04]\x94."):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(ValueError, match="does not begin as a NumPy file does"):
            read_arrays(tmp_path / "a.npy")


def test_inputs_are_found_among_other_arrays() -> None:
    x, y = np.zeros(2), np.zeros(3)
    assert inputs_among(x, ["input"]) is x
    assert inputs_among({"y": y, "x": x}, ["input"]) is x
    assert inputs_among({"x": y, "input": x}, ["input"]) is x
    assert inputs_among({"a": x, "y": y}, ["input"]) == {"a": x, "y": y}
    assert inputs_among({"a": x, "b": y, "y": y}, ["b", "a"]) == {"b": y, "a": x}
    assert inputs_among({"y": y}, ["b", "a"]) == {}


def torn() -> list[bytes]:
    archive = io.BytesIO()
    np.savez(archive, x=np.arange(100))
    objects = io.BytesIO()
    np.save(objects, np.array([{}], object))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,L, ".ljust(118)
    return [
        b"",
        b"no array",
        archive.getvalue()[:-30],
        archive.getvalue()[:60],
        objects.getvalue(),
        b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header,
    ]


@pytest.mark.parametrize("content", torn(), ids=["empty", "text", "no end", "a beginning", "objects", "a header"])
def test_a_broken_file_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"\w"):
        read_arrays(tmp_path / "a.npz")


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npy")
