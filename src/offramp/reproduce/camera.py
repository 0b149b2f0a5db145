"""MobileNetV2 with exits, behind a camera whose images are as large as the network wants them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import nn

from offramp.bundle.bundle import Bundle
from offramp.bundle.export import export
from offramp.datasets import ImageData
from offramp.errors import BundleError
from offramp.exits.evaluation import calibrate
from offramp.recipes import load_splits
from offramp.reproduce.subjects import mobilenetv2_subject
from offramp.reproduce.trainings import PASS, Plan, train_ways
from offramp.reproduce.weights import MOBILENETV2
from offramp.runtime.labelled import Labelled

__all__ = ["CAMERA_SIDE", "camera_bundle", "enlarged"]

#: Pixels of an image's side.
CAMERA_SIDE = 128
#: Accuracy that the gates together may cost, with 90 % confidence.
_MAX_DROP = 0.005


def camera_bundle(work: Path, console: Console, *, seed: int = 0) -> tuple[Bundle, Labelled]:
    """The bundle, and CIFAR-10's test images as such a camera would give them.

    The network of `offramp reproduce mobilenetv2`, with the weights learnt there if they are in `work`: that one
    enlarges small images itself, this one is given large ones. So sending the input is as dear as a camera makes
    it: 49 KB in eight bits.

    Args:
        work: Where trainings and the bundle are kept.
        console: Gets the progress.
        seed: For the heads' first weights, and which images are held out.

    Raises:
        DatasetError: CIFAR-10 or the weights are not at hand.
        OfframpError: See the parts.
    """
    MOBILENETV2.find()  # before images are read, which takes longer
    splits = load_splits("cifar10", size=32, seed=seed)
    small = mobilenetv2_subject(32, CAMERA_SIDE)
    wanted = {"side": CAMERA_SIDE, "seed": seed, "max_drop": _MAX_DROP}  # by what a bundle is known to be it
    folder = work / f"{small.name}-cifar10"
    path = folder / f"{small.name}-camera.bundle"
    test = enlarged(splits.test, CAMERA_SIDE)
    found = _found(path, wanted)
    if found is None:
        splits = replace(splits, preprocessing=small.preprocessing)
        nets = train_ways(small, splits, Plan(small.epochs, seed, False, folder), console)
        way, net = list(nets.items())[-1]
        net.model.enlarge = nn.Identity()
        held_out = enlarged(splits.held_out, CAMERA_SIDE)
        large = small.preprocessing.model_copy(update={"height": CAMERA_SIDE, "width": CAMERA_SIDE})
        splits = replace(splits, preprocessing=large)
        console.print(f"{way}: thresholds by {len(held_out):,} held-out images of {CAMERA_SIDE} pixels")
        calibrate(net, splits.batches(held_out, size=PASS), max_drop=_MAX_DROP)
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as files hold weights
        found = export(
            net,
            torch.zeros(1, 3, CAMERA_SIDE, CAMERA_SIDE),
            path,
            classes=splits.train.classes,
            preprocessing=large,
            seed=seed,
            data="cifar10",
            metrics={"camera": wanted, "training": way},
        )
    return found, Labelled(test.images, test.labels, f"cifar10's test images, enlarged to {CAMERA_SIDE} pixels")


def enlarged(data: ImageData, side: int) -> ImageData:
    """Images as a camera of that many pixels would give them: bilinear, as the network would enlarge them."""
    images = np.stack([_resized(image, side) for image in data.images])
    return replace(data, images=images)


def _resized(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _found(path: Path, wanted: dict[str, float]) -> Bundle | None:
    if not path.exists():
        return None
    try:
        bundle = Bundle.load(path)
    except BundleError:
        return None
    return bundle if bundle.manifest.provenance.metrics.get("camera") == wanted else None
