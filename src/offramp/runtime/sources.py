"""Inputs from files, folders, patterns, lists and cameras, one at a time, each with a name."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.feed import by_name, signature
from offramp.bundle.manifest import Preprocessing, TensorSpec
from offramp.datasets import IMAGE_SUFFIXES, load_image
from offramp.datasets.arrays import inputs_among, read_arrays
from offramp.errors import ConfigError, DatasetError, InputError
from offramp.runtime.live_sources import CAMERA, Camera, Listed

__all__ = ["Broken", "Source", "find_inputs", "read_inputs"]

STDIN = "-"
ARRAY_SUFFIXES = (".npy", ".npz")
_KNOWN = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES)

#: What inputs come from.
Source: TypeAlias = Path | Listed | Camera


class Broken:
    """An input that could not be read; the edge gives it a "failed" result that carries the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def find_inputs(names: Sequence[str]) -> list[Source]:
    """What to read: files as given, those in folders and those that a pattern matches, sorted by name, and more.

    Args:
        names: Files, folders, patterns such as `photos/**/*.jpg`, `-` for paths on the standard input, one per
            line, and `camera:0`.

    Raises:
        ConfigError: A path that does not exist, a file of another kind, a folder or pattern without inputs, or `-`
            twice.
    """
    found: list[Source] = []
    for name in names:
        if name == STDIN:
            if Listed() in found:
                raise ConfigError("the standard input can be read once; `-` is given twice")
            found.append(Listed())
        elif name.startswith(CAMERA):
            found.append(Camera(name.removeprefix(CAMERA)))
        elif glob.has_magic(name) and not os.path.exists(name):
            inside = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.suffix.lower() in _KNOWN)
            if not inside:
                raise ConfigError(f"no input matches {name} ({', '.join(_KNOWN)})")
            found += inside
        else:
            found += _files(Path(name))
    return found


def read_inputs(
    sources: Sequence[Source],
    specs: Sequence[TensorSpec],
    images: Preprocessing | None,
    *,
    done: Sequence[str] = (),
) -> Iterator[tuple[str, Any]]:
    """Each input with its name, ready for `Edge.run`; unreadable files give a `Broken`.

    Images are resized as the manifest says. Arrays hold one input or a batch of them: the network's own
    input, or uint8 pixels where the manifest has preprocessing. In an .npz file with several arrays the one input
    is called `x`, and several inputs are called as they are; other arrays, such as labels, are left alone.

    Args:
        sources: As `find_inputs` gives them.
        specs: The network's inputs.
        images: The manifest's preprocessing, if any.
        done: The names of the inputs that a run before this one has been through; they are left out.

    Raises:
        ConfigError: The inputs do not begin as the run before did; what a camera says.
    """
    count = 0
    for name, load in _named(sources, specs, images):
        count += 1
        if count > len(done):
            yield name, load()
        elif name != done[count - 1]:
            raise ConfigError(
                f"the run to go on with had {done[count - 1]} as input {count - 1}, now it is {name}; give the "
                "same inputs in the same order"
            )
    if count < len(done):
        raise ConfigError(f"the run to go on with was through {len(done)} inputs, now there are only {count}")


def _named(
    sources: Sequence[Source], specs: Sequence[TensorSpec], images: Preprocessing | None
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each input's name, and what reads it."""
    for source in sources:
        if isinstance(source, Camera):
            for i, frame in enumerate(source.frames(images)):
                yield f"{CAMERA}{source.which}[{i}]", partial(_as_it_is, frame)
        elif isinstance(source, Listed):
            for line in source.lines():
                try:
                    files = _files(Path(line))
                except ConfigError as error:
                    yield line, partial(Broken, str(error))
                    continue
                yield from _named(files, specs, images)
        elif source.suffix.lower() in IMAGE_SUFFIXES:
            yield str(source), partial(_image, source, specs, images)
        else:
            try:
                batch = _arrays(source, specs) if len(specs) > 1 else _array(source, specs[0], images)
            except (OSError, ValueError) as error:
                yield str(source), partial(Broken, f"{source} is not an array that can be read: {error}")
                continue
            for i, x in enumerate(batch):
                yield f"{source}[{i}]", partial(_as_it_is, x)


def _as_it_is(x: Any) -> Any:
    return x


def _files(path: Path) -> list[Path]:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file or folder {path}") from error
    except (OSError, ValueError) as error:  # a name that is too long or none, a folder that may not be entered
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read {path}: {reason}") from error
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _KNOWN)
        if not inside:
            raise ConfigError(f"{path} holds no inputs ({', '.join(_KNOWN)})")
        return inside
    if path.suffix.lower() not in _KNOWN:
        raise ConfigError(f"{path} is neither an image nor an array ({', '.join(_KNOWN)})")
    return [path]


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
    if array.ndim == single:
        return array[None]
    if array.ndim == 0:
        raise ValueError(f"it is a single number; {spec.dtype} of shape {spec.shape}, or a batch, is expected")
    if not len(array):
        raise ValueError("it holds no samples")
    return array


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
    if (0,) in counts.values():
        raise ValueError("it holds no samples")
    return [dict(zip(wanted, sample, strict=True)) for sample in zip(*wanted.values(), strict=True)]
