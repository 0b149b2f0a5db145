"""Images to inputs, as the manifest says: the same code for training and on the edge."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import Preprocessing
from offramp.errors import InputError

__all__ = ["preprocess"]


def preprocess(images: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """Turns pixels into the network's input.

    Args:
        images: uint8, (N, H, W) in grey or (N, H, W, 3) in colour, of the size in `spec`.
        spec: The manifest's preprocessing.

    Returns:
        float32, (N, channels, H, W).

    Raises:
        InputError: Another dtype or shape.
    """
    channels = () if spec.color == "grey" else (3,)
    wanted = (spec.height, spec.width, *channels)
    if images.dtype != np.uint8 or images.shape[1:] != wanted:
        raise InputError(
            f"expected {spec.color} pixels as uint8 of shape {wanted}, got {images.dtype} {images.shape[1:]}"
        )
    x = images[:, None] if spec.color == "grey" else images.transpose(0, 3, 1, 2)
    scaled = x.astype(np.float32) * np.float32(spec.scale)
    mean, std = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in (spec.mean, spec.std))
    return np.ascontiguousarray((scaled - mean) / std)
