"""A data set in three parts: images to train on, images held out of those, and test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offramp.datasets.cifar import cifar10
from offramp.datasets.idx import IDX_SETS, idx_set, mnist_subset
from offramp.datasets.images import ImageData, image_folder
from offramp.errors import DatasetError

__all__ = ["DATASETS", "Parts", "folder_parts", "named_parts"]

#: Every data set that has a name.
DATASETS = ("mnist-subset", *IDX_SETS, "cifar10")


@dataclass(frozen=True)
class Parts:
    """Training, held-out and test images. Those held out are training images that no network learns from."""

    train: ImageData
    held_out: ImageData
    test: ImageData

    @property
    def sizes(self) -> list[int]:
        """Images in each part, as a bundle's manifest records them: which are held out depends on them."""
        return [len(self.train), len(self.held_out), len(self.test)]


def named_parts(name: str, *, seed: int = 0) -> Parts:
    """A published data set; a tenth of its training images is held out, its test images stay whole.

    Args:
        name: One of `DATASETS`.
        seed: Chooses which images are held out.

    Raises:
        DatasetError: An unknown name, or data that is missing or altered.
    """
    if name == "mnist-subset":
        whole, test = mnist_subset()
    elif name in IDX_SETS:
        whole, test = idx_set(name)
    elif name == "cifar10":
        whole, test = cifar10()
    else:
        raise DatasetError(f"there is no data set {name!r}; known: {', '.join(DATASETS)}")
    order, held = np.random.RandomState(seed % 2**32).permutation(len(whole)), len(whole) // 10
    return Parts(whole.take(order[held:]), whole.take(order[:held]), test)


def folder_parts(root: str | Path, size: tuple[int, int], *, color: bool = True, seed: int = 0) -> Parts:
    """A folder with one folder of images per class: a tenth is held out, another tenth is for testing.

    Args:
        root: The folder of folders.
        size: Height and width that the images are resized to.
        color: Whether three channels are kept.
        seed: Chooses which images go where.

    Raises:
        DatasetError: As `image_folder` says, or fewer than 100 images.
    """
    every = image_folder(root, size, color=color)
    if len(every) < 100:
        raise DatasetError(f"{root} holds {len(every)} images; training needs at least 100")
    order, tenth = np.random.RandomState(seed % 2**32).permutation(len(every)), len(every) // 10
    test, rest, held = order[:tenth], order[tenth:], max(10, tenth)
    return Parts(every.take(rest[held:]), every.take(rest[:held]), every.take(test))
