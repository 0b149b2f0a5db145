"""Inputs with their labels, to tune or to trace by: from a data set's name, a folder of images, an .npz file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.feed import signature
from offramp.bundle.manifest import Manifest, Preprocessing
from offramp.datasets import DATASETS, ImageData, Parts, folder_parts, image_folder, named_parts
from offramp.datasets.arrays import read_arrays
from offramp.errors import ConfigError, DatasetError

__all__ = ["Labelled", "calibration_data", "held_out_data", "test_data"]

#: The doubt about data that the user brings.
_OWN = "only you know whether the network has learnt from these"


@dataclass(frozen=True)
class Labelled:
    """Inputs with their labels.

    Attributes:
        inputs: Pixels as uint8 where the manifest has preprocessing, or the network's own input; (N, …). Of
            several inputs these by name.
        labels: int64 (N,), in the order of the manifest's classes.
        what: Which data these are, in words.
        doubt: Why the network may have learnt from them; empty where the bundle says that it has not.
    """

    inputs: NDArray[np.generic] | dict[str, NDArray[np.generic]]
    labels: NDArray[np.int64]
    what: str
    doubt: str = ""

    def first(self, limit: int | None) -> Labelled:
        """At most the first `limit` of them; all if None."""
        if limit is None or limit >= len(self.labels):
            return self
        return self._at(slice(limit), f"the first {limit:,} of {self.what}")

    def drawn(self, index: NDArray[np.integer]) -> Labelled:
        """Those at some places, in that order."""
        return self._at(index, f"{len(index):,} of {self.what}")

    def _at(self, places: Any, what: str) -> Labelled:
        inputs = self.inputs
        some = {name: x[places] for name, x in inputs.items()} if isinstance(inputs, dict) else inputs[places]
        return Labelled(some, self.labels[places], what, self.doubt)


def held_out_data(source: str, manifest: Manifest) -> Labelled:
    """Labelled data that the bundle's network was not trained on, as far as the bundle tells.

    Of a data set by name, and of the folder that the network was trained on, these are the training images
    that training held out. Test images are never taken. Any other folder and a file are taken whole.

    Args:
        source: One of `DATASETS`, a folder with one folder of images per class, or an .npz file with the
            arrays `x` and `y`, or for several inputs `y` and an array called as each of them. A name goes before
            a folder that is called alike.
        manifest: The bundle's.

    Raises:
        ConfigError: No such data set, folder or file; or images for a bundle without preprocessing.
        DatasetError: Data that cannot be read, or whose classes or parts are not those of the bundle.
    """
    recorded = manifest.provenance.metrics.get("held_out")
    record: dict[str, Any] = recorded if isinstance(recorded, dict) else {}
    seed = record["seed"] if isinstance(record.get("seed"), int) else None
    if source in DATASETS:
        _images_of(manifest, source)
        known = manifest.provenance.data == source and seed is not None
        parts = named_parts(source, seed=seed or 0)
        if known:
            _check_sizes(source, parts, record)
        doubt = "" if known else f"the bundle does not say that {source}'s held-out part was kept from its network"
        return _labelled(parts.held_out, manifest, f"the held-out part of {source}'s training images", doubt)
    if os.path.isdir(source) and _same_folder(Path(source), manifest.provenance.data) and seed is not None:
        images = _images_of(manifest, source)
        size, color = (images.height, images.width), images.color == "rgb"
        parts = folder_parts(Path(source), size, color=color, seed=seed)
        _check_sizes(source, parts, record)
        return _labelled(parts.held_out, manifest, f"the images of {source} that training held out")
    return _given(source, manifest)


def test_data(source: str, manifest: Manifest) -> Labelled:
    """Labelled data to measure by: a data set's test images, or all of a folder or a file.

    Args:
        source: As `held_out_data` takes it.
        manifest: The bundle's.

    Raises:
        ConfigError: No such data set, folder or file; or images for a bundle without preprocessing.
        DatasetError: Data that cannot be read, or whose classes are not those of the bundle.
    """
    if source in DATASETS:
        _images_of(manifest, source)
        return _labelled(named_parts(source).test, manifest, f"the test images of {source}")
    return _given(source, manifest)


def calibration_data(source: str, manifest: Manifest, count: int, *, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Data to calibrate on, drawn at random from `held_out_data`, and other data to measure by.

    Those are the test images of a data set by name. Of a folder or a file they are what was not drawn; at most
    half is drawn.

    Args:
        source: As `held_out_data` takes it.
        manifest: The bundle's.
        count: How many to draw, if there are as many.
        seed: For the draw.

    Raises:
        ConfigError: As `held_out_data` says.
        DatasetError: Data that cannot be read, whose classes or parts are not those of the bundle, or a folder
            or file with less than two samples.
    """
    held = held_out_data(source, manifest)
    order = np.random.default_rng(seed).permutation(len(held.labels))
    if source in DATASETS:
        return held.drawn(order[:count]), test_data(source, manifest)
    if len(order) < 2:
        raise DatasetError(
            f"{held.what}: at least two samples are needed, one to calibrate on and one to measure by"
        )
    count = min(count, len(order) // 2)
    return held.drawn(order[:count]), held.drawn(np.sort(order[count:]))


def _given(source: str, manifest: Manifest) -> Labelled:
    """All of a folder or a file that the user brings."""
    path = Path(source)
    if os.path.isdir(source):
        images = _images_of(manifest, source)
        size, color = (images.height, images.width), images.color == "rgb"
        return _labelled(image_folder(path, size, color=color), manifest, f"all images in {source}", _OWN)
    if os.path.isfile(source) and path.suffix.lower() == ".npz":
        inputs, labels = _arrays(path, manifest)
        return Labelled(inputs, labels, f"all samples in {source} ({len(labels):,})", _OWN)
    raise ConfigError(
        f"{source!r} is no data set, no folder and no .npz file; known data sets: {', '.join(DATASETS)}"
    )


def _images_of(manifest: Manifest, source: str) -> Preprocessing:
    if manifest.preprocessing is None:
        raise ConfigError(
            f"the bundle has no preprocessing, so it cannot take the images of {source}; give an "
            f"{_asked(manifest)}; the network takes {signature(manifest.inputs)}"
        )
    return manifest.preprocessing


def _same_folder(path: Path, trained_on: str) -> bool:
    # The manifest's words may be anything, which `os.path` takes and `Path` may stumble over.
    return os.path.isdir(trained_on) and os.path.samefile(path, trained_on)


def _check_sizes(source: str, parts: Parts, record: dict[str, Any]) -> None:
    if record.get("sizes") != parts.sizes:
        # Of other sizes, other images are drawn: some that would be held out now were trained on then.
        raise DatasetError(
            f"{source} now gives {parts.sizes} images to train on, to hold out and to test on, and gave "
            f"{record.get('sizes')} when the bundle was trained, so it is not known which images its network has "
            "not seen. Give held-out images as a folder of their own or an .npz file"
        )


def _labelled(data: ImageData, manifest: Manifest, what: str, doubt: str = "") -> Labelled:
    labels = data.labels
    if manifest.classes:
        places = {name: i for i, name in enumerate(manifest.classes)}
        if unknown := [name for name in data.classes if name not in places]:
            raise DatasetError(
                f"{what} have classes that the bundle does not know: {', '.join(unknown[:5])}; it knows "
                f"{', '.join(manifest.classes[:20])}"
            )
        labels = np.array([places[name] for name in data.classes], np.int64)[labels]
    return Labelled(data.images, labels, f"{what} ({len(data):,})", doubt)


def _names(manifest: Manifest) -> list[str]:
    """What the arrays of inputs are called in an .npz file."""
    return ["x"] if len(manifest.inputs) == 1 else [spec.name for spec in manifest.inputs]


def _asked(manifest: Manifest) -> str:
    """The .npz file in which inputs and labels come, in words."""
    return f".npz file with inputs {', '.join(f'`{name}`' for name in _names(manifest))} and labels `y`"


def _arrays(
    path: Path, manifest: Manifest
) -> tuple[NDArray[np.generic] | dict[str, NDArray[np.generic]], NDArray[np.int64]]:
    names = _names(manifest)
    if "y" in names:
        raise ConfigError("the bundle has an input called 'y', which .npz files call the labels; rename the input")
    try:
        arrays = read_arrays(path)
        if not isinstance(arrays, dict):
            raise ValueError("it is a single array")
        if missing := [name for name in (*names, "y") if name not in arrays]:
            raise ValueError(
                f"{', '.join(missing)} is not a file in the archive; it holds {', '.join(arrays) or 'nothing'}"
            )
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is no {_asked(manifest)} that can be read: {error}") from error
    labels = arrays["y"]
    if (
        labels.dtype.kind not in "iu"
        or labels.ndim != 1
        or any(arrays[n].shape[:1] != labels.shape for n in names)
    ):
        asked = ", ".join(f"`{name}`" for name in names)
        came = ", ".join(f"{arrays[name].dtype} {arrays[name].shape}" for name in names)
        raise DatasetError(
            f"{path}: expected {asked} of shape (N, …) and whole numbers `y` of shape (N,), got {came} and "
            f"{labels.dtype} {labels.shape}"
        )
    inputs = arrays["x"] if len(manifest.inputs) == 1 else {name: arrays[name] for name in names}
    return inputs, labels.astype(np.int64)
