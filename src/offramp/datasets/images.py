"""Images with class labels: from a folder per class, one at a time, and balanced draws of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGE_SUFFIXES", "ImageData", "class_balanced", "fitted", "image_folder", "load_image"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


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
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _resized(image, size, color=color)
    except FileNotFoundError as error:
        raise DatasetError(f"there is no file {path}") from error
    except Exception as error:  # Pillow's decoders fail in many ways; a damaged PNG is a SyntaxError
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{path} is not an image that can be read: {reason}") from error


def fitted(pixels: NDArray[np.uint8], size: tuple[int, int], *, color: bool) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) as `load_image` gives those of a file."""
    from PIL import Image

    return _resized(Image.fromarray(pixels), size, color=color)


def _resized(image: Image, size: tuple[int, int], *, color: bool) -> NDArray[np.uint8]:
    from PIL.Image import Resampling

    shown = image.convert("RGB" if color else "L")
    if shown.size != (size[1], size[0]):
        shown = shown.resize((size[1], size[0]), Resampling.BILINEAR)
    return np.array(shown, dtype=np.uint8)


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
