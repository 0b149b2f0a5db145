"""NumPy files from anywhere, read whole and without pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_arrays"]


def read_arrays(path: str | Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array in a .npy file, or the arrays in an .npz file by their names.

    Raises:
        OSError: A file that cannot be read.
        ValueError: A file that is no NumPy file, is torn, or holds Python objects.
    """
    with Path(path).open("rb") as file:  # opened here: NumPy leaves a torn archive open
        try:
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
        except Exception as error:  # NumPy reads headers as Python text, and fails in as many ways
            raise ValueError(str(error) or type(error).__name__) from error
