"""Inputs from files and folders, one at a time, each with a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.feed import by_name, signature
from offramp.bundle.manifest import Preprocessing, TensorSpec
from offramp.datasets import IMAGE_SUFFIXES, load_image
from offramp.datasets.arrays import inputs_among, read_arrays
from offramp.errors import ConfigError, DatasetError, InputError

__all__ = ["Broken", "find_inputs", "read_inputs"]

ARRAY_SUFFIXES = (".npy", ".npz")


class Broken:
    """An input that could not be read; the edge gives it a "failed" result that carries the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def find_inputs(paths: Sequence[Path]) -> list[Path]:
    """Files to read: those given, and those in the folders given, sorted by name.

    Raises:
        ConfigError: A path that does not exist, a file of another kind, or a folder without inputs.
    """
    known = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in known)
            if not inside:
                raise ConfigError(f"{path} holds no inputs ({', '.join(known)})")
            found += inside
        elif not path.exists():
            raise ConfigError(f"there is no file or folder {path}")
        elif path.suffix.lower() not in known:
            raise ConfigError(f"{path} is neither an image nor an array ({', '.join(known)})")
        else:
            found.append(path)
    return found


def read_inputs(
    files: Sequence[Path], specs: Sequence[TensorSpec], images: Preprocessing | None
) -> Iterator[tuple[str, Any]]:
    """Each input with its name, ready for `Edge.run`; unreadable files give a `Broken`.

    Images are resized as the manifest says. Arrays hold one input or a batch of them: the network's own
    input, or uint8 pixels where the manifest has preprocessing. In an .npz file with several arrays the one input
    is called `x`, and several inputs are called as they are; other arrays, such as labels, are left alone.

    Args:
        files: As `find_inputs` gives them.
        specs: The network's inputs.
        images: The manifest's preprocessing, if any.
    """
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield str(path), _image(path, specs, images)
            continue
        try:
            batch = _arrays(path, specs) if len(specs) > 1 else _array(path, specs[0], images)
        except (OSError, ValueError) as error:
            yield str(path), Broken(f"{path} is not an array that can be read: {error}")
            continue
        for i, x in enumerate(batch):
            yield f"{path}[{i}]", x


def _image(path: Path, specs: Sequence[TensorSpec], images: Preprocessing | None) -> Any:
    if images is None:
        file = "arrays" if len(specs) == 1 else f".npz files with the arrays {signature(specs)}"
        return Broken(f"{path} is an image, but the bundle has no preprocessing; give {file}")
    try:
        return load_image(path, (images.height, images.width), color=images.color == "rgb")
    except DatasetError as error:
        return Broken(str(error))


def _array(path: Path, spec: TensorSpec, images: Preprocessing | None) -> NDArray[Any]:
    array = inputs_among(read_arrays(path), [spec.name])
    if isinstance(array, dict):
        if len(array) != 1:
            raise ValueError(f"it holds {len(array)} arrays ({', '.join(array)}); one called `x` is expected")
        (array,) = array.values()
    single = len(spec.shape)
    if array.dtype == np.uint8 and spec.dtype != "uint8" and images is not None:
        single = 2 if images.color == "grey" else 3
    return array[None] if array.ndim == single else array


def _arrays(path: Path, specs: Sequence[TensorSpec]) -> list[dict[str, NDArray[Any]]]:
    """The samples in a file, by the inputs' names."""
    arrays = read_arrays(path)
    if not isinstance(arrays, dict):
        raise ValueError(f"it is one array; an .npz file with {signature(specs)} is expected")
    try:
        wanted = by_name(inputs_among(arrays, [s.name for s in specs]), specs)
    except InputError as error:
        raise ValueError(f"{error}; it holds {', '.join(arrays) or 'nothing'}") from error
    if all(wanted[spec.name].ndim == len(spec.shape) for spec in specs):
        return [wanted]
    counts = {name: x.shape[:1] for name, x in wanted.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        listed = ", ".join(f"{name} {x.shape}" for name, x in wanted.items())
        raise ValueError(f"every array needs as many samples, or one without an axis for them; it has {listed}")
    return [dict(zip(wanted, sample, strict=True)) for sample in zip(*wanted.values(), strict=True)]
