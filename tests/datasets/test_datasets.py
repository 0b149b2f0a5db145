from __future__ import annotations

import hashlib
import io
import warnings
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from offramp.datasets import ImageData, class_balanced, image_folder, load_image
from offramp.errors import ConfigError, DatasetError

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


def test_a_png_whose_data_end_too_early(tmp_path: Path) -> None:
    """What follows is no chunk, which Pillow calls a syntax error."""
    path = tmp_path / "x.png"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    content = bytearray(path.read_bytes())
    length = content.index(b"IDAT") - 4
    content[length : length + 4] = (100).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.png is not an image that can be read"):
        load_image(path, (24, 24), color=True)


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
