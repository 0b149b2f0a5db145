"""Inputs from files."""

from __future__ import annotations

import os
import sys
import types
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.bundle.manifest import Preprocessing, TensorSpec
from offramp.errors import ConfigError, DatasetError, MissingExtraError
from offramp.runtime.live_sources import Camera, Listed
from offramp.runtime.sources import Broken, find_inputs, read_inputs

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


def test_an_array_without_samples_is_no_silence(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((0, 3), np.float32))
    np.savez(tmp_path / "b.npz", x=np.ones((0, 3), np.float32), mask=np.ones((0, 3), np.float32))
    two = [SPEC, SPEC.model_copy(update={"name": "mask"})]
    for name, specs in (("a.npy", [SPEC]), ("b.npz", two)):
        ((_, found),) = read_inputs([tmp_path / name], specs, None)
        assert isinstance(found, Broken)
        assert "it holds no samples" in found.reason


def test_a_single_number_or_what_is_no_array_does_not_stop_the_others(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.float32(3))
    for name, inside in (("b.npz", "notes.txt"), ("c.npz", "x.npy")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(inside, "no array")
    np.save(tmp_path / "d.npy", np.ones((2, 3), np.float32))
    files = [tmp_path / name for name in ("a.npy", "b.npz", "c.npz", "d.npy")]
    found = [x for _, x in read_inputs(files, [SPEC], None)]
    reasons = [x.reason for x in found if isinstance(x, Broken)]
    assert ["it is a single number" in reasons[0], "0 arrays" in reasons[1], "0 arrays" in reasons[2]] == [
        True
    ] * 3
    assert len(reasons) == 3
    assert [x.tolist() for x in found[3:]] == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("name", ["x", "pixels"])
def test_labels_beside_the_one_input_are_left_alone(tmp_path: Path, name: str) -> None:
    """The file that `offramp tune` takes; the input may also be called as the manifest calls it."""
    np.savez(tmp_path / "a.npz", **{name: np.ones((2, 3), np.float32)}, y=np.arange(2))
    found = list(read_inputs([tmp_path / "a.npz"], [SPEC.model_copy(update={"name": "pixels"})], None))
    assert [x.tolist() for _, x in found] == [[1, 1, 1], [1, 1, 1]]


# --- patterns, lists, cameras ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.npy", "b/10.npy", "a.npy", "c[1].npy", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.ones(3, np.float32)) if path.suffix == ".npy" else path.write_text("text")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.npy", ["a.npy", "c[1].npy"]),
        ("**/*.npy", ["a.npy", "b/10.npy", "b/2.npy", "c[1].npy"]),
        ("b/?.npy", ["b/2.npy"]),
        ("*", ["a.npy", "c[1].npy"]),
        ("c[1].npy", ["c[1].npy"]),  # a file that is called so goes before a pattern
    ],
)
def test_patterns_give_files_sorted_by_name(folder: Path, pattern: str, found: list[str]) -> None:
    assert find_inputs([f"{folder}/{pattern}"]) == [folder / name for name in found]


@pytest.mark.parametrize("pattern", ["*.png", "*.txt", "nowhere/*", "[z]*"])
def test_a_pattern_that_matches_no_input_is_an_error(folder: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match="no input matches"):
        find_inputs([f"{folder}/{pattern}"])


def test_the_standard_input_is_read_once() -> None:
    assert find_inputs(["-"]) == [Listed(0)]
    with pytest.raises(ConfigError, match="twice"):
        find_inputs(["-", "-"])


def test_listed_paths_are_read_as_they_come_and_wrong_ones_fail_alone(folder: Path) -> None:
    reading, writing = os.pipe()
    try:
        found = read_inputs([Listed(reading)], [SPEC], None)
        os.write(writing, f"{folder}/a.npy\n\n{folder}/notes.txt\r\n{folder}/b\n{folder}/no".encode())
        assert next(found)[0] == f"{folder}/a.npy[0]"  # although the list has not ended
        name, broken = next(found)
        assert name == f"{folder}/notes.txt"
        assert isinstance(broken, Broken)
        assert "neither an image nor an array" in broken.reason
        assert [next(found)[0] for _ in range(2)] == [f"{folder}/b/10.npy[0]", f"{folder}/b/2.npy[0]"]
    finally:
        os.close(writing)
    ((name, broken),) = found  # the last line needs no end
    assert name == f"{folder}/no"
    assert "there is no file" in broken.reason
    os.close(reading)


@pytest.mark.parametrize("name", ["a" * 5000, "[a]" * 5000, "a\0.npy", "a.npy/b.npy"])
def test_a_name_that_can_be_nothing(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        find_inputs([str(folder / name)])
    read, write = os.pipe()
    with os.fdopen(write, "wb") as lines:
        lines.write(f"{folder / name}\n{folder}/a.npy\n".encode())
    with os.fdopen(read):
        (_, wrong), (_, whole) = read_inputs([Listed(read)], [SPEC], None)
    assert isinstance(wrong, Broken)
    assert whole.tolist() == [1, 1, 1]


def test_what_is_done_is_left_out_without_being_read(folder: Path) -> None:
    files = [folder / name for name in ("a.npy", "b/10.npy", "b/2.npy")]
    names = [name for name, _ in read_inputs(files, [SPEC], None)]
    for n in range(4):
        assert [name for name, _ in read_inputs(files, [SPEC], None, done=names[:n])] == names[n:]
    with pytest.raises(ConfigError, match=r"had other as input 1, now it is .*10.npy"):
        list(read_inputs(files, [SPEC], None, done=[names[0], "other"]))
    with pytest.raises(ConfigError, match="through 4 inputs, now there are only 3"):
        list(read_inputs(files, [SPEC], None, done=[*names, "more"]))


class FakeCamera:
    """`cv2.VideoCapture` for three frames, in blue, green and red order."""

    opened: ClassVar[list[FakeCamera]] = []

    def __init__(self, which: int | str) -> None:
        self.which, self.left, self.settings, self.released = which, 3, {}, False
        self.opened.append(self)

    def isOpened(self) -> bool:  # noqa: N802
        return self.which in (0, "film.mp4", "empty.mp4")

    def set(self, what: int, value: int) -> None:
        self.settings[what] = value

    def read(self) -> tuple[bool, NDArray[np.uint8] | None]:
        if self.left == 0 or self.which == "empty.mp4":
            return False, None
        self.left -= 1
        frame = np.zeros((4, 6, 3), np.uint8)
        frame[..., 2] = 200 + self.left  # red
        return True, frame

    def release(self) -> None:
        self.released = True


@pytest.fixture
def _opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("cv2")
    fake.VideoCapture, fake.CAP_PROP_BUFFERSIZE, fake.COLOR_BGR2RGB = FakeCamera, 38, 4
    fake.cvtColor = lambda frame, code: np.ascontiguousarray(frame[..., ::-1])
    monkeypatch.setitem(sys.modules, "cv2", fake)
    FakeCamera.opened.clear()


COLOUR, GREY = (Preprocessing(color=color, height=2, width=3) for color in ("rgb", "grey"))


@pytest.mark.usefixtures("_opencv")
@pytest.mark.parametrize(("name", "which"), [("camera:0", 0), ("camera:film.mp4", "film.mp4")])
def test_a_cameras_frames_are_inputs(name: str, which: int | str) -> None:
    found = list(read_inputs(find_inputs([name]), [SPEC], COLOUR))
    assert [name for name, _ in found] == [f"{name}[{i}]" for i in range(3)]
    assert [x.shape for _, x in found] == [(2, 3, 3)] * 3
    assert [x[0, 0].tolist() for _, x in found] == [[202, 0, 0], [201, 0, 0], [200, 0, 0]]
    (camera,) = FakeCamera.opened
    assert (camera.which, camera.settings, camera.released) == (which, {38: 1}, True)


@pytest.mark.usefixtures("_opencv")
def test_a_camera_is_let_go_of_by_who_stops_early() -> None:
    frames = Camera("0").frames(GREY)
    assert next(frames).shape == (2, 3)
    frames.close()
    assert FakeCamera.opened[0].released
    assert FakeCamera.opened[0].left == 2  # none is read ahead


@pytest.mark.usefixtures("_opencv")
@pytest.mark.parametrize(
    ("name", "images", "error", "words"),
    [
        ("camera:1", GREY, ConfigError, "there is no camera 1"),
        ("camera:", GREY, ConfigError, "there is no camera"),
        ("camera:empty.mp4", GREY, DatasetError, "no frame"),
        ("camera:0", None, ConfigError, "no preprocessing"),
    ],
)
def test_a_camera_that_is_none(name: str, images: Preprocessing, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        list(read_inputs(find_inputs([name]), [SPEC], images))


def test_a_camera_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'offramp\[camera\]'"):
        next(Camera("0").frames(GREY))
