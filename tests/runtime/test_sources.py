"""Inputs from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offramp.bundle.manifest import TensorSpec
from offramp.runtime.sources import Broken, read_inputs

SPEC = TensorSpec(name="x", dtype="float32", shape=(3,))


def header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(118)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,L, "),
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }"),
        header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
    ],
    ids=["empty", "no header", "a torn header", "too short", "objects"],
)
def test_a_broken_array_does_not_stop_the_others(tmp_path: Path, content: bytes) -> None:
    broken, whole = tmp_path / "a.npy", tmp_path / "b.npy"
    broken.write_bytes(content)
    np.save(whole, np.arange(6, dtype=np.float32).reshape(2, 3))
    (name, first), *others = read_inputs([broken, whole], [SPEC], None)
    assert name == str(broken)
    assert isinstance(first, Broken)
    assert f"{broken} is not an array that can be read" in first.reason
    assert [name for name, _ in others] == [f"{whole}[0]", f"{whole}[1]"]
    assert [x.tolist() for _, x in others] == [[0, 1, 2], [3, 4, 5]]


def test_a_torn_archive_does_not_stop_the_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=np.ones((2, 3), np.float32))
    (tmp_path / "a.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:-30])
    np.savez(tmp_path / "c.npz", a=np.ones(3), b=np.ones(3))
    files = [tmp_path / name for name in ("a.npz", "b.npz", "c.npz")]
    (_, first), (_, _), (_, second), (_, two) = read_inputs(files, [SPEC], None)
    assert isinstance(first, Broken)
    assert second.tolist() == [1, 1, 1]
    assert isinstance(two, Broken)
    assert "holds 2 arrays (a, b); one called `x` is expected" in two.reason


@pytest.mark.parametrize("name", ["x", "pixels"])
def test_labels_beside_the_one_input_are_left_alone(tmp_path: Path, name: str) -> None:
    """The file that `offramp tune` takes; the input may also be called as the manifest calls it."""
    np.savez(tmp_path / "a.npz", **{name: np.ones((2, 3), np.float32)}, y=np.arange(2))
    found = list(read_inputs([tmp_path / "a.npz"], [SPEC.model_copy(update={"name": "pixels"})], None))
    assert [x.tolist() for _, x in found] == [[1, 1, 1], [1, 1, 1]]
