"""MNIST and the sets in its format: the real ones where they are, small ones of the same build elsewhere."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import lzma
import os
import shutil
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.datasets import IDX_SETS, ImageData, idx_set, mnist
from offramp.errors import DatasetError

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OFFRAMP_DATA", "/nowhere"))
FILES = tuple(IDX_SETS["mnist"].files)
NOWHERE = "http://127.0.0.1:9/"


def given(name: str) -> bool:
    return all((DATA / name / f"{file}.gz").is_file() for file in FILES)


needs_mnist = pytest.mark.skipif(
    not given("mnist"), reason="all of MNIST is needed: name the folder that holds `mnist` in OFFRAMP_DATA"
)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


# --- the real sets ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full() -> tuple[ImageData, ImageData]:
    return mnist()


@needs_mnist
def test_mnist_from_the_data_folder(full: tuple[ImageData, ImageData]) -> None:
    for part, n in zip(full, (60_000, 10_000), strict=True):
        assert (part.images.shape, part.images.dtype) == ((n, 28, 28), np.uint8)
        assert (part.labels.shape, part.labels.dtype) == ((n,), np.int64)
    assert full[0].labels[:5].tolist() == [5, 0, 4, 1, 9]  # as on MNIST's own page
    assert full[1].labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_the_others_from_the_data_folder(name: str) -> None:
    if not given(name):
        pytest.skip(f"all of {name} is needed: name the folder that holds `{name}` in OFFRAMP_DATA")
    for part, n in zip(idx_set(name), (60_000, 10_000), strict=True):
        assert part.images.shape == (n, 28, 28)
        assert np.bincount(part.labels).tolist() == [n // 10] * 10


@needs_mnist
def test_the_subsets_images_are_mnists(
    full: tuple[ImageData, ImageData], digits: tuple[ImageData, ImageData]
) -> None:
    for part, whole in zip(digits, full, strict=True):
        known = {(image.tobytes(), label) for image, label in zip(whole.images, whole.labels, strict=True)}
        assert {(i.tobytes(), label) for i, label in zip(part.images, part.labels, strict=True)} <= known


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_mnist_subset", ROOT / "scripts" / "make_mnist_subset.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_mnist
def test_the_script_makes_the_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The content; how tightly xz packs it may differ from version to version."""
    maker = script()
    monkeypatch.setattr(lzma, "compress", lambda plain, **_: plain)
    made = np.load(io.BytesIO(maker.packed_subset()), allow_pickle=False)
    monkeypatch.undo()
    shipped = np.load(io.BytesIO(lzma.decompress(maker.TARGET.read_bytes())), allow_pickle=False)
    assert sorted(made) == sorted(shipped)
    for name in made:
        assert made[name].dtype == shipped[name].dtype
        assert (made[name] == shipped[name]).all()


@needs_mnist
def test_mnists_files_in_another_sets_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are called and built like the other set's, so only their sums tell."""
    (tmp_path / "kmnist").symlink_to(DATA / "mnist")
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte\.gz is mnist's, not kmnist's; put it"):
        idx_set("kmnist", url=NOWHERE, cache=tmp_path / "cache")


# --- small sets of the same build ------------------------------------------------------------------------


def idx(values: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


TRAIN, TEST = 30, 20
rng = np.random.default_rng(0)
IMAGES = {n: rng.integers(0, 256, (n, 28, 28), np.uint8) for n in (TRAIN, TEST)}
LABELS = {n: (np.arange(n) * 7 % 10).astype(np.uint8) for n in (TRAIN, TEST)}
SMALL = dict(zip(FILES, (idx(part[n]) for n in (TRAIN, TEST) for part in (IMAGES, LABELS)), strict=True))
PACKED = {file: gzip.compress(content, mtime=0) for file, content in SMALL.items()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fashion-MNIST is 30 and 20 images, with the sums of these."""
    files = {file: (md5(packed), None) for file, packed in PACKED.items()}
    known = dataclasses.replace(IDX_SETS["fashion-mnist"], files=files, train=TRAIN, test=TEST)
    monkeypatch.setitem(IDX_SETS, "fashion-mnist", known)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> Path:
    """A data folder with small Fashion-MNIST in it."""
    made = tmp_path / "data" / "fashion-mnist"
    made.mkdir(parents=True)
    for file, packed in PACKED.items():
        (made / f"{file}.gz").write_bytes(packed)
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path / "data"))
    return made


def is_small(got: tuple[ImageData, ImageData]) -> bool:
    return all(
        (part.images == IMAGES[n]).all() and (part.labels == LABELS[n]).all()
        for part, n in zip(got, (TRAIN, TEST), strict=True)
    )


def test_a_set_from_the_data_folder(folder: Path) -> None:
    got = idx_set("fashion-mnist", url=NOWHERE)
    assert is_small(got)
    assert got[0].labels.dtype == np.int64
    assert got[0].classes == got[1].classes
    assert got[0].classes[9] == "Ankle boot"


def test_files_that_were_packed_again_are_taken(folder: Path) -> None:
    for file, content in SMALL.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content, 1, mtime=1))
    assert is_small(idx_set("fashion-mnist", url=NOWHERE))


@pytest.mark.usefixtures("small", "no_data_folder")
def test_a_set_is_downloaded_once(mirror: tuple[str, Path], tmp_path: Path) -> None:
    url, served = mirror
    for file, packed in PACKED.items():
        (served / f"{file}.gz").write_bytes(packed)
    assert is_small(idx_set("fashion-mnist", url=url, cache=tmp_path / "cache"))
    shutil.rmtree(served)
    assert is_small(idx_set("fashion-mnist", url=url, cache=tmp_path / "cache"))
    assert len(list((tmp_path / "cache" / "fashion-mnist").iterdir())) == 4


def test_what_the_data_folder_lacks_is_downloaded(folder: Path, mirror: tuple[str, Path], tmp_path: Path) -> None:
    url, served = mirror
    shutil.move(folder / f"{FILES[1]}.gz", served)
    assert is_small(idx_set("fashion-mnist", url=url, cache=tmp_path / "cache"))


def test_every_set_has_ten_classes_and_four_sums() -> None:
    sums = [md5 for known in IDX_SETS.values() for md5, _ in known.files.values()]
    assert len(set(sums)) == 4 * len(IDX_SETS)
    for known in IDX_SETS.values():
        assert len(set(known.classes)) == 10
        assert tuple(known.files) == FILES
        assert known.url.endswith("/")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(DatasetError, match="no data set 'emnist'; known: mnist, fashion-mnist, kmnist"):
        idx_set("emnist")


# --- hostile files ---------------------------------------------------------------------------------------

PLAIN = {"images": SMALL[FILES[0]], "labels": SMALL[FILES[1]]}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (0, PACKED[FILES[0]][:-9], "not a gzipped file"),
        (0, PACKED[FILES[0]][:-8] + b"\0" * 8, "not a gzipped file"),
        (0, PLAIN["images"], "not a gzipped file"),
        (0, b"", r"no IDX file of 30×28×28 bytes"),
        (0, gzip.compress(b"\0\0\x0d" + PLAIN["images"][3:]), "no IDX file of 30×28×28 bytes"),
        (0, gzip.compress(PLAIN["labels"]), "no IDX file of 30×28×28 bytes"),
        (0, gzip.compress(idx(IMAGES[TRAIN][:29])), "no IDX file of 30×28×28 bytes"),
        (0, gzip.compress(PLAIN["images"][:-1]), "no IDX file of 30×28×28 bytes"),
        (0, gzip.compress(PLAIN["images"] + b"\0"), "no IDX file of 30×28×28 bytes"),
        (0, gzip.compress(PLAIN["images"][:4] + b"\xff" * 12), "no IDX file of 30×28×28 bytes"),
        (0, gzip.compress(idx(np.zeros((30, 30, 30), np.uint8))), "no IDX file of 30×28×28 bytes"),
        (0, gzip.compress(b"\0" * 3_000_000), "no IDX file of 30×28×28 bytes"),
        (1, gzip.compress(PLAIN["images"]), "no IDX file of 30 bytes"),
        (1, gzip.compress(idx(np.full(30, 10, np.uint8))), "has a label 10, above 9"),
    ],
    ids=[
        "cut short",
        "wrong crc",
        "not packed",
        "empty",
        "of floats",
        "labels for images",
        "an image less",
        "a byte less",
        "a byte more",
        "huge sizes",
        "other sizes",
        "long zeros",
        "images for labels",
        "labels above 9",
    ],
)
def test_a_hostile_file_is_refused(folder: Path, file: int, content: bytes, message: str) -> None:
    path = folder / f"{FILES[file]}.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{path} .*{message}.*remove or replace"):
        idx_set("fashion-mnist", url=NOWHERE)


@pytest.mark.parametrize("packed_again", [False, True], ids=["as published", "packed again"])
def test_another_sets_file_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, packed_again: bool) -> None:
    content = idx(IMAGES[TRAIN][::-1])
    packed = gzip.compress(content, 1 if packed_again else 9, mtime=5)
    sums = ("0" * 32, md5(content)) if packed_again else (md5(packed), None)
    other = dataclasses.replace(IDX_SETS["kmnist"], files={**IDX_SETS["kmnist"].files, FILES[0]: sums})
    monkeypatch.setitem(IDX_SETS, "kmnist", other)
    (folder / f"{FILES[0]}.gz").write_bytes(packed)
    with pytest.raises(DatasetError, match="is kmnist's, not fashion-mnist's; put it into a folder `kmnist`"):
        idx_set("fashion-mnist", url=NOWHERE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"altered"), "is not mnist's: .*md5"),
        (b"not gzip", "is not a gzipped file"),
        (gzip.compress(b"x" * 1000)[:-9], "is not a gzipped file"),
        (b"", "is not"),
        (gzip.compress(b"abc")[:12] + b"\xff\xff\xff" + gzip.compress(b"abc")[15:], "is not"),
    ],
    ids=["altered", "other", "cut short", "empty", "broken inside"],
)
def test_an_altered_file_of_mnists_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    (tmp_path / "mnist").mkdir()
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match=f"{path} {message}"):
        mnist(cache=tmp_path / "cache", url=NOWHERE)


@pytest.mark.usefixtures("no_data_folder")
def test_a_download_with_another_checksum_is_refused(mirror: tuple[str, Path], tmp_path: Path) -> None:
    url, served = mirror
    (served / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DatasetError, match=rf"cannot get train-images-idx3-ubyte\.gz from {url}.*OFFRAMP_DATA"):
        mnist(url=url, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*ubyte.gz"))


@pytest.mark.usefixtures("no_data_folder")
def test_a_download_that_is_not_there_is_refused(mirror: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="404"):
        mnist(url=mirror[0], cache=tmp_path / "cache")


@pytest.mark.usefixtures("no_data_folder")
def test_a_server_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot get .* folder `mnist`"):
        mnist(url=NOWHERE, cache=tmp_path / "cache")
