from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import lzma
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from offramp.datasets import MNIST_FILES, ImageData, class_balanced, image_folder, load_image, mnist
from offramp.errors import ConfigError, DatasetError

ROOT = Path(__file__).parents[2]
GIVEN = Path(os.environ.get("OFFRAMP_DATA", "/nowhere")) / "mnist"

needs_mnist = pytest.mark.skipif(
    not all((GIVEN / f"{name}.gz").is_file() for name in MNIST_FILES),
    reason="all of MNIST is needed: name the folder that holds `mnist` in OFFRAMP_DATA",
)


# --- the packaged digits ---------------------------------------------------------------------------------


def test_the_subset_is_balanced(digits: tuple[ImageData, ImageData]) -> None:
    for part, n in zip(digits, (10_000, 2_000), strict=True):
        assert len(part) == n
        assert (part.images.shape, part.images.dtype) == ((n, 28, 28), np.uint8)
        assert (part.labels.shape, part.labels.dtype) == ((n,), np.int64)
        assert np.bincount(part.labels).tolist() == [n // 10] * 10
        assert part.classes == tuple("0123456789")
        assert part.images.max() == 255


def test_the_subset_is_in_a_random_order(digits: tuple[ImageData, ImageData]) -> None:
    """So that a part of it is nearly balanced too."""
    assert np.bincount(digits[0].labels[:1000], minlength=10).min() > 60


def test_no_image_is_there_twice(digits: tuple[ImageData, ImageData]) -> None:
    train, test = ({image.tobytes() for image in part.images} for part in digits)
    assert len(train) == 10_000
    assert len(test) == 2_000
    assert not train & test


def test_the_subset_is_small() -> None:
    packed = resources.files("offramp").joinpath("data/mnist-subset.npz.xz").read_bytes()
    assert len(packed) <= 1_700_000
    notice = resources.files("offramp").joinpath("data/NOTICE.md").read_text(encoding="utf-8")
    assert "MNIST" in notice


def test_take(digits: tuple[ImageData, ImageData]) -> None:
    test = digits[1]
    for index in (slice(3, 9), np.array([5, 5, 0])):
        part = test.take(index)
        assert (part.images == test.images[index]).all()
        assert (part.labels == test.labels[index]).all()
        assert part.classes == test.classes


# --- all of MNIST ----------------------------------------------------------------------------------------


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


def first_file(folder: Path, content: bytes) -> Path:
    (folder / "mnist").mkdir(parents=True)
    path = folder / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"altered"), "is not MNIST's: .*md5"),
        (b"not gzip", "is not a gzipped file"),
        (gzip.compress(b"x" * 1000)[:-9], "is not a gzipped file"),
        (b"", "is not"),
        (gzip.compress(b"abc")[:12] + b"\xff\xff\xff" + gzip.compress(b"abc")[15:], "is not"),
    ],
    ids=["altered", "other", "cut short", "empty", "broken inside"],
)
def test_an_altered_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    path = first_file(tmp_path, content)
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match=f"{path} {message}"):
        mnist(cache=tmp_path / "cache", url="http://127.0.0.1:9/")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server of our own, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", folder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFRAMP_DATA", raising=False)


@pytest.mark.usefixtures("no_data_folder")
def test_a_download_with_another_checksum_is_refused(mirror: tuple[str, Path], tmp_path: Path) -> None:
    url, served = mirror
    (served / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DatasetError, match=rf"cannot get train-images-idx3-ubyte\.gz from {url}.*OFFRAMP_DATA"):
        mnist(url=url, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*ubyte.gz"))


@pytest.mark.usefixtures("no_data_folder")
def test_a_download_that_is_not_there_is_refused(mirror: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="404"):
        mnist(url=mirror[0], cache=tmp_path / "cache")


@pytest.mark.usefixtures("no_data_folder")
def test_a_server_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot get"):
        mnist(url="http://127.0.0.1:9/", cache=tmp_path / "cache")


@needs_mnist
def test_a_download_is_kept(
    mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: tuple[ImageData, ImageData]
) -> None:
    url, served = mirror
    for name, (_, plain_md5) in MNIST_FILES.items():
        shutil.copy(GIVEN / f"{name}.gz", served)
        packed_md5 = hashlib.md5((served / f"{name}.gz").read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(MNIST_FILES, name, (packed_md5, plain_md5))  # it may have been packed again
    monkeypatch.delenv("OFFRAMP_DATA")
    got = mnist(url=url, cache=tmp_path / "cache")
    assert all((a.images == b.images).all() for a, b in zip(got, full, strict=True))
    for name in MNIST_FILES:
        (served / f"{name}.gz").unlink()
    again = mnist(url=url, cache=tmp_path / "cache")  # from the cache
    assert (again[1].labels == full[1].labels).all()


# --- folders of images -----------------------------------------------------------------------------------


def painted(path: Path, size: tuple[int, int], color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], color).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    painted(root / "dog" / "b.png", (8, 6), (255, 0, 0))
    painted(root / "dog" / "a.bmp", (4, 4), (0, 255, 0))
    painted(root / "cat" / "deep" / "c.PNG", (8, 6), (0, 0, 255))
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "readme.md").write_text("no class")
    return root


def test_a_folder_of_images_in_colour(folders: Path) -> None:
    data = image_folder(folders, (8, 6))
    assert (data.images.shape, data.images.dtype) == ((3, 8, 6, 3), np.uint8)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.labels.dtype == np.int64
    colors = [tuple(image.reshape(-1, 3).mean(axis=0)) for image in data.images]
    assert colors == [(0, 0, 255), (0, 255, 0), (255, 0, 0)]


def test_a_folder_of_images_in_grey(folders: Path) -> None:
    data = image_folder(str(folders), (5, 7), color=False)
    assert data.images.shape == (3, 5, 7)
    assert data.images[:, 0, 0].tolist() == [29, 150, 76]  # Rec. 601 luma


def test_an_image_of_the_right_size_is_not_resized(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert (load_image(tmp_path / "x.png", (5, 9), color=True) == pixels).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_image_is_converted(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(tmp_path / f"x.{suffix}")
    for color, shape in ((True, (4, 6, 3)), (False, (4, 6))):
        image = load_image(tmp_path / f"x.{suffix}", (4, 6), color=color)
        assert image.shape == shape
        assert (image == 255).all()


def test_a_folder_without_classes_or_images(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        image_folder(tmp_path / "nothing", (4, 4))
    with pytest.raises(DatasetError, match="holds no folders"):
        image_folder(tmp_path, (4, 4))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match="cat holds no images"):
        image_folder(tmp_path, (4, 4))


def test_a_broken_image_is_told_by_name(folders: Path) -> None:
    (folders / "dog" / "b.png").write_bytes(b"no image at all")
    with pytest.raises(DatasetError, match=r"b\.png is not an image"):
        image_folder(folders, (8, 6))


def test_a_missing_image_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no file .*gone\.png"):
        load_image(tmp_path / "gone.png", (4, 4), color=True)


def test_a_folder_that_is_called_like_an_image(folders: Path) -> None:
    (folders / "dog" / "z.png").mkdir()
    with pytest.raises(DatasetError, match=r"z\.png is not an image"):
        image_folder(folders, (8, 6))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff", "webp"])
def test_a_damaged_image_is_read_or_refused(tmp_path: Path, suffix: str) -> None:
    """Whatever Pillow stumbles over, it is our error that comes out."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, {"jpg": "jpeg"}.get(suffix, suffix))
    rng = np.random.default_rng(1)
    path = tmp_path / f"x.{suffix}"
    refused = 0
    for trial in range(150):
        content = bytearray(whole.getvalue())
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content) if trial % 2 else min(len(content), 80))] = rng.integers(256)
        if trial % 5 == 0:
            content = content[: rng.integers(len(content))]
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert load_image(path, (8, 8), color=True).shape == (8, 8, 3)
            except DatasetError:
                refused += 1
    assert refused > 10


# --- balanced draws --------------------------------------------------------------------------------------

LABELS: NDArray[np.int64] = np.repeat([0, 1, 4], [5, 9, 30])


@pytest.mark.parametrize("per_class", [1, 3, 5])
def test_a_balanced_draw(per_class: int) -> None:
    chosen = class_balanced(LABELS, per_class, seed=0)
    assert len(set(chosen.tolist())) == len(chosen) == 3 * per_class
    assert np.bincount(LABELS[chosen], minlength=5).tolist() == [per_class, per_class, 0, 0, per_class]
    assert (class_balanced(LABELS, per_class, seed=0) == chosen).all()


def test_draws_of_other_seeds_differ() -> None:
    assert len({class_balanced(LABELS, 3, seed=s).tobytes() for s in range(10)}) == 10


def test_a_draw_means_the_same_in_every_version() -> None:
    digest = hashlib.sha256(class_balanced(np.arange(100) % 4, 5, seed=3).astype("<i8").tobytes()).hexdigest()
    assert digest == GOLDEN_DRAW


GOLDEN_DRAW = "a647e0d010c2936f3f19e67033e955c0bda0db3a84f5598bd4a4f015aaf997cf"


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="class 0 has 5 samples, 6 are asked for"):
        class_balanced(LABELS, 6, seed=0)
