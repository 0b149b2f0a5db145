"""CIFAR-10: the real one where it is, and small ones in all three of its forms."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from offramp.datasets import ImageData, cifar, cifar10
from offramp.errors import DatasetError

DATA = Path(os.environ.get("OFFRAMP_DATA", "/nowhere")) / "cifar10"
NOWHERE = "http://127.0.0.1:9/"
NAMES = tuple(cifar.BATCHES)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.mark.skipif(
    not any((DATA / name).exists() for name in ("labels.npz", cifar.FOLDER, cifar.ARCHIVE)),
    reason="CIFAR-10 is needed: name the folder that holds `cifar10` in OFFRAMP_DATA",
)
def test_cifar10_from_the_data_folder() -> None:
    for part, n in zip(cifar10(url=NOWHERE), (50_000, 10_000), strict=True):
        assert (part.images.shape, part.images.dtype) == ((n, 32, 32, 3), np.uint8)
        assert (part.labels.shape, part.labels.dtype) == ((n,), np.int64)
        assert np.bincount(part.labels).tolist() == [n // 10] * 10
        assert [part.classes[c] for c in part.labels[:2]] == (
            ["frog", "truck"] if n == 50_000 else ["cat", "ship"]
        )


# --- a small one in all three forms ----------------------------------------------------------------------

EACH = 6
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (6 * EACH, 32, 32, 3), np.uint8)
LABELS = (np.arange(6 * EACH) * 7 % 10).astype(np.uint8)


def batch(i: int) -> bytes:
    """One published file, an image at a time, as its page has it: the label, then each colour's plane."""
    content = b""
    for image, label in zip(IMAGES[i * EACH :][:EACH], LABELS[i * EACH :][:EACH], strict=True):
        content += bytes([label]) + b"".join(image[:, :, c].tobytes() for c in range(3))
    return content


BATCHES = {name: batch(i) for i, name in enumerate(NAMES)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `cifar10` in the data folder; CIFAR-10 has six images a file."""
    monkeypatch.setattr(cifar, "PER_BATCH", EACH)
    monkeypatch.setattr(cifar, "BATCHES", {name: md5(content) for name, content in BATCHES.items()})
    made = tmp_path / "data" / "cifar10"
    made.mkdir(parents=True)
    monkeypatch.setenv("OFFRAMP_DATA", str(made.parent))
    return made


def as_sheets(folder: Path) -> None:
    for part, images, per_sheet in (("train", IMAGES[: 5 * EACH], 4), ("test", IMAGES[5 * EACH :], 6)):
        for i in range(0, len(images), per_sheet):
            column = images[i : i + per_sheet].reshape(-1, 32, 3)
            Image.fromarray(column).save(folder / f"{part}_{i:03}.webp", lossless=True)
    np.savez(folder / "labels.npz", train=LABELS[: 5 * EACH], test=LABELS[5 * EACH :])


def as_folder(folder: Path) -> None:
    (folder / "cifar-10-batches-bin").mkdir()
    for name, content in BATCHES.items():
        (folder / "cifar-10-batches-bin" / name).write_bytes(content)


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


ENTRIES = [entry(f"cifar-10-batches-bin/{name}", content) for name, content in reversed(BATCHES.items())]


def packed(entries: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def as_archive(folder: Path) -> None:
    (folder / "cifar-10-binary.tar.gz").write_bytes(packed(ENTRIES))


def is_small(got: tuple[ImageData, ImageData]) -> bool:
    return all(
        (part.images == IMAGES[where]).all() and part.labels.tolist() == LABELS[where].tolist()
        for part, where in zip(got, (slice(5 * EACH), slice(5 * EACH, None)), strict=True)
    )


@pytest.mark.parametrize("form", [as_sheets, as_folder, as_archive])
def test_every_form_gives_the_same(folder: Path, form: Any) -> None:
    form(folder)
    got = cifar10(url=NOWHERE)
    assert is_small(got)
    for part in got:
        assert part.labels.dtype == np.int64
        assert part.images.flags.c_contiguous
        assert " ".join(part.classes) == "airplane automobile bird cat deer dog frog horse ship truck"


def test_the_archive_is_downloaded_once(
    folder: Path, mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, served = mirror
    as_archive(served)
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", md5((served / cifar.ARCHIVE).read_bytes()))
    assert is_small(cifar10(url=url, cache=tmp_path / "cache"))
    shutil.rmtree(served)
    folder.rmdir()  # an empty one does not matter
    assert is_small(cifar10(url=url, cache=tmp_path / "cache"))
    assert [p.name for p in (tmp_path / "cache").rglob("*.*")] == [cifar.ARCHIVE]  # not unpacked


def test_a_download_with_another_checksum_is_refused(
    folder: Path, mirror: tuple[str, Path], tmp_path: Path
) -> None:
    as_archive(mirror[1])
    with pytest.raises(DatasetError, match=r"cannot get cifar-10-binary\.tar\.gz .*`cifar10`.*OFFRAMP_DATA"):
        cifar10(url=mirror[0], cache=tmp_path / "cache")


def refused(message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        cifar10(url=NOWHERE)
    assert any(way_out in str(caught.value) for way_out in ("replace", "remove", "unpack", "labels of"))


# --- hostile binary files and archives -------------------------------------------------------------------


@pytest.mark.parametrize("content", [BATCHES[NAMES[2]][:-1], BATCHES[NAMES[2]] + b"\0", b""])
def test_a_file_of_another_size_or_none_is_refused(folder: Path, content: bytes) -> None:
    as_folder(folder)
    (folder / cifar.FOLDER / NAMES[2]).write_bytes(content)
    refused(rf"data_batch_3\.bin is not CIFAR-10's: it has not {EACH * 3073} bytes")
    (folder / cifar.FOLDER / NAMES[2]).unlink()
    refused(r"data_batch_3\.bin cannot be read")


def test_altered_images_and_labels_are_refused(folder: Path) -> None:
    as_folder(folder)
    (folder / cifar.FOLDER / NAMES[5]).write_bytes(b"\x0b" + BATCHES[NAMES[5]][1:])  # a label 11
    refused(r"md5 sum of test_batch\.bin's images and labels is not")
    as_sheets(folder)  # these go first
    Image.fromarray(IMAGES[5 * EACH :].reshape(-1, 32, 3)).save(folder / "test_000.webp", quality=90)
    refused(r"md5 sum of test_batch\.bin's images and labels is not")


FIRST = "cifar-10-batches-bin/data_batch_1.bin"
OTHERS = ENTRIES[:-1]  # all but the first file, which is packed last


@pytest.mark.parametrize(
    "odd",
    [
        entry("data_batch_1.bin", BATCHES[NAMES[0]]),
        entry("../" + FIRST, BATCHES[NAMES[0]]),
        entry("/" + FIRST, BATCHES[NAMES[0]]),
        entry("./" + FIRST, BATCHES[NAMES[0]]),
        entry("cifar-10-batches-bin/../" + FIRST, BATCHES[NAMES[0]]),
        entry(FIRST + "\n", BATCHES[NAMES[0]]),
        entry(FIRST, type=tarfile.SYMTYPE, linkname="/etc/hostname"),
        entry(FIRST, type=tarfile.LNKTYPE, linkname="cifar-10-batches-bin/data_batch_2.bin"),
        entry(FIRST, type=tarfile.DIRTYPE),
        entry(FIRST, type=tarfile.FIFOTYPE),
    ],
    ids=["bare", "above", "absolute", "dotted", "round about", "newline", "symlink", "link", "folder", "fifo"],
)
def test_odd_members_are_passed_over(folder: Path, tmp_path: Path, odd: tuple[tarfile.TarInfo, bytes]) -> None:
    (folder / cifar.ARCHIVE).write_bytes(packed([odd, *OTHERS]))
    before = sorted(tmp_path.rglob("*"))
    refused(f"holds no file {FIRST}")
    (folder / cifar.ARCHIVE).write_bytes(packed([odd, *ENTRIES]))
    assert is_small(cifar10(url=NOWHERE))
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a gzipped tar file"),
        (b"no archive", "is not a gzipped tar file"),
        (packed(ENTRIES)[:5000], "is not a gzipped tar file"),
        (gzip.compress(b"no archive" * 100), "is not a gzipped tar file"),
        (packed([]), "holds no file"),
        (packed([*OTHERS, entry(FIRST, b"short")]), f"{FIRST} in .* is not CIFAR-10's: it has not"),
        (packed([*OTHERS, entry(FIRST, bytes(EACH * 3073))]), r"md5 sum of data_batch_1\.bin's"),
    ],
    ids=["empty", "other", "cut short", "no tar", "no files", "short file", "altered file"],
)
def test_a_hostile_archive_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / cifar.ARCHIVE).write_bytes(content)
    refused(message)


def test_a_damaged_archive_is_read_right_or_refused(folder: Path) -> None:
    whole, rng, refused = gzip.decompress(packed(ENTRIES)), np.random.default_rng(1), 0
    for trial in range(150):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(512) if trial % 2 else rng.integers(len(content))] = rng.integers(256)
        (folder / cifar.ARCHIVE).write_bytes(gzip.compress(content, 0))
        try:
            assert is_small(cifar10(url=NOWHERE))
        except DatasetError:
            refused += 1
    assert 10 < refused < 150


# --- hostile sheets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 128), (32, 100), (31, 128), (128, 32)])
def test_a_sheet_of_another_size_is_refused(folder: Path, size: tuple[int, int]) -> None:
    as_sheets(folder)
    Image.new("RGB", size).save(folder / "train_004.webp", lossless=True)
    refused(rf"train_004\.webp has {size[0]}×{size[1]} pixels; a sheet is a column of 32×32")


@pytest.mark.parametrize("more", [-1, 1])
def test_another_number_of_images_is_refused(folder: Path, more: int) -> None:
    as_sheets(folder)
    Image.new("RGB", (32, 32 * (4 + more))).save(folder / "train_004.webp", lossless=True)
    refused(rf"has {30 + more} images in train_\*\.webp, not 30")


@pytest.mark.parametrize("form", ["png", "cut short", "text"])
def test_a_sheet_that_is_no_webp_is_refused(folder: Path, form: str) -> None:
    as_sheets(folder)
    path = folder / "train_004.webp"
    if form == "png":
        Image.new("RGB", (32, 128)).save(path, "png")
    else:
        path.write_bytes(b"no image" if form == "text" else path.read_bytes()[:700])
    refused(r"train_004\.webp is not a WebP image")


TRAIN, TEST = LABELS[: 5 * EACH], LABELS[5 * EACH :]


@pytest.mark.parametrize(
    "train",
    [
        TRAIN[:-1],
        TRAIN.reshape(2, -1),
        TRAIN.astype(float),
        TRAIN.astype(np.int16) + 256,
        TRAIN.astype(np.int16) - 1,
        np.array("labels"),
        np.zeros(30, [("a", "u1")]),
    ],
    ids=["too few", "two axes", "float", "above 9", "below 0", "text", "records"],
)
def test_wrong_labels_are_refused(folder: Path, train: NDArray[Any]) -> None:
    as_sheets(folder)
    np.savez(folder / "labels.npz", train=train, test=TEST)
    refused(r"labels\.npz: 'train' is not 30 whole numbers from 0 to 9")


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_labels_are_never_unpickled(folder: Path, tmp_path: Path) -> None:
    as_sheets(folder)
    trap = np.empty(30, object)
    trap[:] = Trap(tmp_path / "sprung")
    np.savez(folder / "labels.npz", train=trap, test=TEST)
    refused(r"labels\.npz has no array 'train' that can be read: .*pickle")
    (folder / "labels.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refused(r"labels\.npz has no array 'train' that can be read")
    assert not (tmp_path / "sprung").exists()


def zipped(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return made.getvalue()


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        zipped(test=b""),
        zipped(train=b""),
        zipped(train=b"no array"),
        zipped(train=npy("{'descr': '|u1', 'fortran_order': False, 'shape': (30,)}\n")),
        zipped(train=npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,)}\n")),
        zipped(train=npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-3,)}\n")),
        zipped(train=npy("[" * 300)),
        zipped(train=npy("{1: 2}\n")),
    ],
    ids=["empty", "other", "no train", "empty array", "no array", "no values", "huge", "negative", "deep", "odd"],
)
def test_a_hostile_file_of_labels_is_refused(folder: Path, content: bytes) -> None:
    as_sheets(folder)
    (folder / "labels.npz").write_bytes(content)
    refused(r"labels\.npz")


def test_sheets_without_labels_are_told(folder: Path) -> None:
    as_sheets(folder)
    (folder / "labels.npz").unlink()
    refused(r"there is no file .*labels\.npz; it holds the labels of the sheets")
