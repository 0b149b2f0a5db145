"""Makes the digits that ship inside the package from the full MNIST: `python scripts/make_mnist_subset.py`.

The same number of each digit, drawn with a fixed seed, in a random order; images are unchanged.
"""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np

from offramp.datasets import class_balanced, mnist

SEED = 20240711
TARGET = Path(__file__).parents[1] / "src" / "offramp" / "data" / "mnist-subset.npz.xz"


def packed_subset() -> bytes:
    """The file's bytes: two parts' images and labels as .npy arrays in an .npz, compressed with xz."""
    arrays: dict[str, np.ndarray] = {}
    for part, data, per_class in zip(("train", "test"), mnist(), (1000, 200), strict=True):
        chosen = data.take(class_balanced(data.labels, per_class, SEED))
        arrays[f"{part}_images"] = chosen.images
        arrays[f"{part}_labels"] = chosen.labels.astype(np.uint8)
    plain = io.BytesIO()
    np.savez(plain, **arrays)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    return lzma.compress(plain.getvalue(), filters=filters)


if __name__ == "__main__":
    TARGET.write_bytes(packed_subset())
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")
