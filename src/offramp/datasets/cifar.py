"""CIFAR-10: 32×32 colour images in ten classes, from the published binary files or from sheets of images."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.datasets.images import ImageData
from offramp.datasets.source import download, given_folder, md5_sum
from offramp.errors import DatasetError

__all__ = ["cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
URL = "https://www.cs.toronto.edu/~kriz/"
ARCHIVE, ARCHIVE_MD5 = "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
#: The folder in the archive, and the md5 sums of the files in it: five of training images, one of test images.
FOLDER = "cifar-10-batches-bin"
BATCHES = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
PER_BATCH = 10_000
SIDE = 32
#: An image in a batch: one byte of label, then the red, the green and the blue plane.
ROW = 1 + 3 * SIDE * SIDE


def cifar10(*, url: str = URL, cache: Path | None = None) -> tuple[ImageData, ImageData]:
    """CIFAR-10: 50,000 training and 10,000 test images of 32×32 pixels in colour, 10 classes (Krizhevsky 2009).

    Looked for in `$OFFRAMP_DATA/cifar10`, in this order:

    - sheets: `train_*.webp` and `test_*.webp`, columns of stacked images in the order of their names, and
      `labels.npz` with the arrays `train` and `test`;
    - `cifar-10-batches-bin/`, the published binary files;
    - `cifar-10-binary.tar.gz`, the published archive of them, which is read without unpacking it to disk.

    Else the archive is taken from the cache, or downloaded there. Wherever they come from, the images and
    labels of each published file are checked against that file's md5 sum.

    Args:
        url: The folder to download the archive from.
        cache: The cache's folder; the user's cache folder if left out.

    Raises:
        DatasetError: A file is missing, altered or of the wrong form, or cannot be downloaded.
        MissingExtraError: A download is needed and pooch is not installed.
    """
    folder = given_folder("cifar10")
    if folder is not None and ((folder / "labels.npz").exists() or any(folder.glob("*_*.webp"))):
        source, batches = folder, _from_sheets(folder)
    elif folder is not None and (folder / FOLDER).is_dir():
        source, batches = folder / FOLDER, _from_folder(folder / FOLDER)
    else:
        source = folder / ARCHIVE if folder is not None else Path(ARCHIVE)
        if folder is None or not source.exists():
            source = download("cifar10", ARCHIVE, ARCHIVE_MD5, url, cache)
        batches = _from_archive(source)
    for (name, md5), rows in zip(BATCHES.items(), batches, strict=True):
        if md5_sum(rows.data) != md5:
            raise DatasetError(
                f"{source} is not CIFAR-10's: the md5 sum of {name}'s images and labels is not {md5}; "
                "remove or replace it"
            )
    return _decoded(batches[:-1]), _decoded(batches[-1:])


def _decoded(batches: list[NDArray[np.uint8]]) -> ImageData:
    images = np.empty((len(batches) * PER_BATCH, SIDE, SIDE, 3), np.uint8)
    for i, rows in enumerate(batches):
        planes = rows[:, 1:].reshape(-1, 3, SIDE, SIDE)
        images[i * PER_BATCH : (i + 1) * PER_BATCH] = planes.transpose(0, 2, 3, 1)
    return ImageData(images, np.concatenate([rows[:, 0] for rows in batches]).astype(np.int64), CLASSES)


def _rows(content: bytes, name: str | Path) -> NDArray[np.uint8]:
    if len(content) != PER_BATCH * ROW:
        raise DatasetError(f"{name} is not CIFAR-10's: it has not {PER_BATCH * ROW} bytes; remove or replace it")
    return np.frombuffer(content, np.uint8).reshape(PER_BATCH, ROW)


def _from_folder(folder: Path) -> list[NDArray[np.uint8]]:
    batches = []
    for name in BATCHES:
        try:
            with (folder / name).open("rb") as file:
                content = file.read(PER_BATCH * ROW + 1)  # one more byte tells a longer file
        except OSError as error:
            raise DatasetError(f"{folder / name} cannot be read: {error}; unpack {ARCHIVE} again") from error
        batches.append(_rows(content, folder / name))
    return batches


def _from_archive(path: Path) -> list[NDArray[np.uint8]]:
    found: dict[str, NDArray[np.uint8]] = {}
    try:
        # One pass from front to back: going back in a gzipped file means unpacking it once more.
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                # Nothing is written, and links are not followed: other names and kinds are just passed over.
                if folder != FOLDER or name not in BATCHES or not member.isreg():
                    continue
                content = archive.extractfile(member)
                assert content is not None  # only what is no regular file has none
                found[name] = _rows(content.read(PER_BATCH * ROW + 1), f"{member.name} in {path}")
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DatasetError(f"{path} is not a gzipped tar file: {error}; remove or replace it") from error
    lacking = [name for name in BATCHES if name not in found]
    if lacking:
        raise DatasetError(
            f"{path} holds no file {FOLDER}/{lacking[0]}; remove it, or replace it by {URL}{ARCHIVE}"
        )
    return [found[name] for name in BATCHES]


def _from_sheets(folder: Path) -> list[NDArray[np.uint8]]:
    """The sheets' images and labels as the published files have them, so that these files' sums hold."""
    batches: list[NDArray[np.uint8]] = []
    for part, n in (("train", (len(BATCHES) - 1) * PER_BATCH), ("test", PER_BATCH)):
        rows = np.empty((n, ROW), np.uint8)
        rows[:, 0] = _labels(folder / "labels.npz", part, n)
        done = 0
        for path in sorted(folder.glob(f"{part}_*.webp")):
            images = _sheet(path)
            if done + len(images) <= n:
                rows[done : done + len(images), 1:] = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            done += len(images)
        if done != n:
            raise DatasetError(f"{folder} has {done} images in {part}_*.webp, not {n}; add or remove sheets")
        batches += np.split(rows, n // PER_BATCH)
    return batches


def _labels(path: Path, part: str, n: int) -> NDArray[Any]:
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            labels = np.asarray(arrays[part])  # what is no array in there comes as bytes
    except FileNotFoundError as error:
        raise DatasetError(f"there is no file {path}; it holds the labels of the sheets beside it") from error
    except Exception as error:  # NumPy reads an array's header as Python text, and fails in as many ways
        raise DatasetError(f"{path} has no array {part!r} that can be read: {error}; replace it") from error
    whole = labels.shape == (n,) and labels.dtype.kind in "iu"
    if not whole or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DatasetError(
            f"{path}: {part!r} is not {n} whole numbers from 0 to {len(CLASSES) - 1}, one per image; replace it"
        )
    return labels


def _sheet(path: Path) -> NDArray[np.uint8]:
    """A column of images, as (N, 32, 32, 3)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("WEBP",)) as sheet:
            width, height = sheet.size
            if width != SIDE or height % SIDE:
                raise DatasetError(
                    f"{path} has {width}×{height} pixels; a sheet is a column of {SIDE}×{SIDE} images; replace it"
                )
            return np.asarray(sheet.convert("RGB"), dtype=np.uint8).reshape(-1, SIDE, SIDE, 3)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} is not a WebP image that can be read: {error}; replace it") from error
