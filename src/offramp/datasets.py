"""Real data: inside the package, in the folder that OFFRAMP_DATA names, in the cache, or downloaded."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError, DatasetError, MissingExtraError

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageData",
    "class_balanced",
    "image_folder",
    "load_image",
    "mnist",
    "mnist_subset",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")

#: The four files of MNIST: the md5 sums of the published .gz file, and of what is in it (which counts).
MNIST_FILES = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
#: A mirror of the original host, which no longer answers.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


@dataclass(frozen=True)
class ImageData:
    """Images with class labels.

    Attributes:
        images: uint8, (N, H, W) in grey or (N, H, W, 3) in colour.
        labels: int64, (N,).
        classes: The classes' names.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64] | slice) -> ImageData:
        """The images at these places."""
        return ImageData(self.images[index], self.labels[index], self.classes)


DIGITS = tuple(str(d) for d in range(10))


def mnist_subset() -> tuple[ImageData, ImageData]:
    """10,000 training and 2,000 test digits of MNIST that ship inside the package, class-balanced."""
    packed = resources.files("offramp").joinpath("data/mnist-subset.npz.xz").read_bytes()
    with np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False) as arrays:
        train, test = (
            ImageData(arrays[f"{part}_images"], arrays[f"{part}_labels"].astype(np.int64), DIGITS)
            for part in ("train", "test")
        )
    return train, test


def mnist(*, url: str = MNIST_URL, cache: Path | None = None) -> tuple[ImageData, ImageData]:
    """All of MNIST: 60,000 training and 10,000 test digits.

    Looked for in `$OFFRAMP_DATA/mnist`, then in the cache; else downloaded there. The content of every
    file is checked against its published md5 sum, wherever it comes from.

    Args:
        url: Where to download from.
        cache: The cache's folder; the user's cache folder if left out.

    Raises:
        DatasetError: A file is altered, or cannot be downloaded.
        MissingExtraError: A download is needed and pooch is not installed.
    """
    parts = []
    for part in ("train", "t10k"):
        images = _mnist_file(f"{part}-images-idx3-ubyte", 3, url, cache)
        labels = _mnist_file(f"{part}-labels-idx1-ubyte", 1, url, cache)
        parts.append(ImageData(images, labels.astype(np.int64), DIGITS))
    return parts[0], parts[1]


def _mnist_file(name: str, rank: int, url: str, cache: Path | None) -> NDArray[np.uint8]:
    packed_md5, plain_md5 = MNIST_FILES[name]
    given = os.environ.get("OFFRAMP_DATA")
    path = Path(given) / "mnist" / f"{name}.gz" if given else None
    if path is None or not path.exists():
        path = _download(f"{name}.gz", packed_md5, url, cache)
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is not a gzipped file: {error}; remove or replace it") from error
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != plain_md5:
        raise DatasetError(
            f"{path} is not MNIST's: its content's md5 sum is not {plain_md5}; remove or replace it"
        )
    # The IDX format of MNIST's own page: two zeros, 8 for bytes, the rank, then each size as big-endian uint32.
    shape = np.frombuffer(raw, ">u4", rank, 4).tolist()
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _download(name: str, md5: str, url: str, cache: Path | None) -> Path:
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError("downloads need pooch: pip install 'offramp[train]'") from error
    folder = cache or pooch.os_cache("offramp") / "mnist"
    try:
        return Path(pooch.retrieve(url + name, known_hash=f"md5:{md5}", fname=name, path=folder))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"cannot get {name} from {url}: {error}. Put MNIST's four .gz files into a folder `mnist` "
            "and name its parent in OFFRAMP_DATA"
        ) from error


def image_folder(root: str | Path, size: tuple[int, int], *, color: bool = True) -> ImageData:
    """Images in one folder per class, resized to one size: `root/cat/1.png`, `root/dog/2.jpg`, ….

    Args:
        root: The folder of folders.
        size: Height and width in pixels.
        color: Three channels; one grey channel otherwise.

    Raises:
        DatasetError: No classes, a class without images, or a file that is no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder")
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    if not folders:
        raise DatasetError(f"{root} holds no folders; put the images of each class into one of its own")
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DatasetError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        images += [load_image(path, size, color=color) for path in files]
        labels += [label] * len(files)
    return ImageData(np.stack(images), np.asarray(labels, np.int64), tuple(p.name for p in folders))


def load_image(path: str | Path, size: tuple[int, int], *, color: bool) -> NDArray[np.uint8]:
    """One image file as uint8 (H, W) or (H, W, 3), resized to `size` (height, width) if it has another.

    Raises:
        DatasetError: A file that is missing or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            shown = image.convert("RGB" if color else "L")
            if shown.size != (size[1], size[0]):
                shown = shown.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.array(shown, dtype=np.uint8)
    except FileNotFoundError as error:
        raise DatasetError(f"there is no file {path}") from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} is not an image that can be read: {error}") from error


def class_balanced(labels: NDArray[np.int64], per_class: int, seed: int) -> NDArray[np.int64]:
    """Places of `per_class` samples of each class, drawn without repetition, in a random order.

    Args:
        labels: (N,) class indices.
        per_class: How many of each class.
        seed: The draw's seed.

    Raises:
        ConfigError: A class has fewer samples.
    """
    rng = np.random.RandomState(seed)
    chosen: list[NDArray[np.int64]] = []
    for c in np.unique(labels):
        places = np.flatnonzero(labels == c)
        if len(places) < per_class:
            raise ConfigError(f"class {c} has {len(places)} samples, {per_class} are asked for")
        chosen.append(rng.permutation(places)[:per_class])
    return rng.permutation(np.concatenate(chosen))
