"""NumPy files from anywhere, read whole and without pickles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["inputs_among", "read_arrays"]


def read_arrays(path: str | Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array in a .npy file, or the arrays in an .npz file by their names, without what else lies in it.

    Raises:
        OSError: A file that cannot be read.
        ValueError: A file that is no NumPy file, is torn, or holds Python objects.
    """
    with Path(path).open("rb") as file:  # opened here: NumPy leaves a torn archive open
        if not file.peek(2).startswith((b"\x93N", b"PK")):  # NumPy takes it for a pickle, and says how to trust it
            raise ValueError("it does not begin as a NumPy file does")
        try:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            # Of a file in the archive that is no array NumPy gives the bytes.
            every = {name: found[name] for name in found.files}
            return {name: value for name, value in every.items() if isinstance(value, np.ndarray)}
        except Exception as error:  # NumPy reads headers as Python text, and fails in as many ways
            raise ValueError(str(error) or type(error).__name__) from error


def inputs_among(
    arrays: NDArray[Any] | dict[str, NDArray[Any]], names: Sequence[str]
) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """What a file holds for a network, without what else lies in it, such as labels.

    Args:
        arrays: As `read_arrays` gives them.
        names: The network's inputs.

    Returns:
        Of one input the array called as it, or `x`, or all where there is neither; of several those that are
        called as they are.
    """
    if not isinstance(arrays, dict):
        return arrays
    if len(names) == 1:
        return next((arrays[name] for name in (*names, "x") if name in arrays), arrays)
    return {name: arrays[name] for name in names if name in arrays}
