"""The studies' data: whole training and test sets in memory, as networks take them."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from offramp.datasets import IDX_SETS, ImageData, cifar10, idx_set, mnist_subset
from offramp.errors import ConfigError
from offramp.reproduce.loop import Samples

__all__ = ["COLOUR", "GREY", "Form", "held_out", "images"]

#: Sets of 28×28 grey images, and of 32×32 colour images.
GREY = ("mnist-subset", *IDX_SETS)
COLOUR = ("cifar10",)

#: "padded" rows of 800 values, as the published code pads 784 pixels; or "maps" of (channels, height, width).
Form = Literal["padded", "maps"]


@functools.cache
def images(data: str, form: Form, limit: int | None = None) -> tuple[Samples, Samples]:
    """All training and all test images of a set, scaled to [0, 1]; colours standardised by the training set.

    Args:
        data: The set's name.
        form: As rows or as maps.
        limit: At most this many of each, for a quick look.

    Raises:
        ConfigError: An unknown set.
        DatasetError: A set that is not at hand and cannot be downloaded.
    """
    if data in GREY:
        parts = mnist_subset() if data == "mnist-subset" else idx_set(data)
    elif data in COLOUR:
        parts = cifar10()
    else:
        raise ConfigError(f"there is no data set {data!r}; known: {', '.join((*GREY, *COLOUR))}")
    train, test = (_samples(part, form, limit) for part in parts)
    if data in COLOUR:  # in torch: NumPy's float32 sums over so many values stop growing
        deviation, centre = torch.std_mean(train.x, (0, 2, 3), correction=0, keepdim=True)
        train, test = (Samples((part.x - centre) / deviation, part.y) for part in (train, test))
    return train, test


def held_out(samples: Samples, share: float = 1 / 6) -> tuple[Samples, Samples]:
    """Training images apart from those that settings are chosen by; the last sixth, as MNIST's usual 10,000."""
    first = len(samples) - round(len(samples) * share)
    return samples.take(slice(first)), samples.take(slice(first, None))


def _samples(part: ImageData, form: Form, limit: int | None) -> Samples:
    # Sets may be sorted by class or writer; the studies take their first or last images.
    order = np.random.RandomState(0).permutation(len(part))[:limit]
    y = torch.from_numpy(part.labels[order])
    x = torch.from_numpy(part.images[order].astype(np.float32) / np.float32(255))
    if x.dim() == 4:
        return Samples(x.permute(0, 3, 1, 2).contiguous(), y)
    if form == "maps":
        return Samples(x.unsqueeze(1), y)
    return Samples(F.pad(x.flatten(1), (8, 8)), y)
