"""MNIST and the sets in its format: four gzipped IDX files of 28×28 grey images and their labels."""

from __future__ import annotations

import gzip
import io
import lzma
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.datasets.images import ImageData
from offramp.datasets.source import download, given_folder, md5_sum
from offramp.errors import DatasetError

__all__ = ["IDX_SETS", "IdxSet", "idx_set", "mnist", "mnist_subset"]

SIDE = 28


@dataclass(frozen=True)
class IdxSet:
    """What is published about one data set.

    Attributes:
        url: Where its files lie.
        classes: The classes' names, in the order of the labels.
        files: By the name without .gz: the md5 sum of the .gz file, and of what is in it where that is known.
        train: Number of training images.
        test: Number of test images.
    """

    url: str
    classes: tuple[str, ...]
    files: Mapping[str, tuple[str, str | None]]
    train: int = 60_000
    test: int = 10_000


DIGITS = tuple(str(d) for d in range(10))
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

IDX_SETS = {
    "mnist": IdxSet(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",  # a mirror: the original host no longer answers
        DIGITS,
        {
            "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
            "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        },
    ),
    "fashion-mnist": IdxSet(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        FASHION,
        {
            "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", None),
            "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", None),
            "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", None),
            "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", None),
        },
    ),
    "kmnist": IdxSet(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        KUZUSHIJI,
        {
            "train-images-idx3-ubyte": ("bdb82020997e1d708af4cf47b453dcf7", None),
            "train-labels-idx1-ubyte": ("e144d726b3acfaa3e44228e80efcd344", None),
            "t10k-images-idx3-ubyte": ("5c965bf0a639b31b8f53240b1b52f4d7", None),
            "t10k-labels-idx1-ubyte": ("7320c461ea6c1c855c0b718fb2a4b134", None),
        },
    ),
}


def mnist_subset() -> tuple[ImageData, ImageData]:
    """10,000 training and 2,000 test digits of MNIST that ship inside the package, class-balanced."""
    packed = resources.files("offramp").joinpath("data/mnist-subset.npz.xz").read_bytes()
    with np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False) as arrays:
        train, test = (
            ImageData(arrays[f"{part}_images"], arrays[f"{part}_labels"].astype(np.int64), DIGITS)
            for part in ("train", "test")
        )
    return train, test


def mnist(*, url: str | None = None, cache: Path | None = None) -> tuple[ImageData, ImageData]:
    """All of MNIST: 60,000 training and 10,000 test digits, as `idx_set` finds them."""
    return idx_set("mnist", url=url, cache=cache)


def idx_set(name: str, *, url: str | None = None, cache: Path | None = None) -> tuple[ImageData, ImageData]:
    """A data set in MNIST's format: 60,000 training and 10,000 test images of 28×28 pixels in 10 classes.

    Each of the four .gz files is looked for in `$OFFRAMP_DATA/<name>`, then in the cache; else downloaded
    there. A downloaded file must have the published md5 sum. A file in `$OFFRAMP_DATA` may have been packed
    again: of MNIST, the content's md5 sum is checked; of the others, whose contents' sums are not published,
    that it has the right form and is none of another set's files, which are called and built the same.

    Args:
        name: "mnist", "fashion-mnist" (clothes) or "kmnist" (cursive Japanese characters).
        url: Where to download from; where the set is published if left out.
        cache: The cache's folder; the user's cache folder if left out.

    Raises:
        DatasetError: An unknown name, a file that is altered, another set's or of the wrong form, or one that
            cannot be downloaded.
        MissingExtraError: A download is needed and pooch is not installed.
    """
    if name not in IDX_SETS:
        raise DatasetError(f"there is no data set {name!r}; known: {', '.join(IDX_SETS)}")
    known = IDX_SETS[name]
    parts = []
    for part, n in (("train", known.train), ("t10k", known.test)):
        images = _read(name, f"{part}-images-idx3-ubyte", (n, SIDE, SIDE), url, cache)
        labels = _read(name, f"{part}-labels-idx1-ubyte", (n,), url, cache)
        parts.append(ImageData(images, labels.astype(np.int64), known.classes))
    return parts[0], parts[1]


def _read(name: str, file: str, shape: tuple[int, ...], url: str | None, cache: Path | None) -> NDArray[np.uint8]:
    known = IDX_SETS[name]
    packed_md5, plain_md5 = known.files[file]
    folder = given_folder(name)
    path = folder / f"{file}.gz" if folder is not None else None
    if path is None or not path.exists():
        path = download(name, f"{file}.gz", packed_md5, url or known.url, cache)
    # The IDX format of MNIST's own page: two zeros, 8 for bytes, the rank, then each size as big-endian uint32.
    header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
    size = len(header) + math.prod(shape)
    try:
        packed = path.read_bytes()
        with gzip.open(io.BytesIO(packed)) as content:
            raw = content.read(size + 1)  # one more byte tells a longer file, however long it is
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is not a gzipped file: {error}; remove or replace it") from error
    sums = {md5_sum(packed), md5_sum(raw)}
    for other, its in IDX_SETS.items():
        if other != name and sums & set(its.files[file]):
            raise DatasetError(
                f"{path} is {other}'s, not {name}'s; put it into a folder `{other}` beside this one"
            )
    if plain_md5 is not None and plain_md5 not in sums:
        raise DatasetError(
            f"{path} is not {name}'s: its content's md5 sum is not {plain_md5}; remove or replace it"
        )
    if not raw.startswith(header) or len(raw) != size:
        raise DatasetError(
            f"{path} is not {name}'s: it is no IDX file of {'×'.join(map(str, shape))} bytes; remove or replace it"
        )
    values = np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape)
    if len(shape) == 1 and values.max() >= len(known.classes):
        raise DatasetError(
            f"{path} is not {name}'s: it has a label {values.max()}, above {len(known.classes) - 1}; "
            "remove or replace it"
        )
    return values
