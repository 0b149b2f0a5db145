"""Built-in recipes: a small convolutional network with two early exits, trained on digits or any images.

The same network comes sparse, dense, and narrow: dense, but with fewer channels, so that it has the sparse
one's multiply-accumulates. All three get the same data, epochs and learning rate.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from offramp.bundle.bundle import Bundle
from offramp.bundle.export import export
from offramp.bundle.manifest import Preprocessing
from offramp.bundle.preprocessing import preprocess
from offramp.datasets import DATASETS, ImageData, Parts, folder_parts, named_parts
from offramp.errors import ConfigError, DatasetError
from offramp.exits.calibration import Calibration
from offramp.exits.evaluation import calibrate, evaluate
from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit
from offramp.exits.training import FitResult, fit
from offramp.sparse.config import SparsityConfig
from offramp.sparse.counting import count
from offramp.sparse.report import SparsityReport
from offramp.sparse.sparsify import sparsify_

__all__ = ["KINDS", "SPARSITY", "Kind", "Splits", "Trained", "build", "load_splits", "train"]

Kind = Literal["sparse", "dense", "narrow"]
KINDS: tuple[Kind, ...] = ("sparse", "dense", "narrow")

#: Channels of the four convolutions and width of the hidden layer.
WIDTHS = (64, 128, 128, 256)
#: Convolutions at 1/4, the wide late layers at 1/8; first convolution, classifier and exits stay dense.
SPARSITY = SparsityConfig(density=1 / 4, overrides={"1.2": 1 / 8, "2.2": 1 / 8})
EPOCHS, BATCH, LEARNING_RATE = 5, 100, 8e-3


@dataclass(frozen=True)
class Splits(Parts):
    """A data set as training, held-out and test images, and how an image becomes an input."""

    name: str
    seed: int
    preprocessing: Preprocessing

    @property
    def example(self) -> Tensor:
        """One input of zeros, (1, channels, H, W)."""
        p = self.preprocessing
        return torch.zeros(1, 1 if p.color == "grey" else 3, p.height, p.width)

    def batches(
        self, part: ImageData, *, shuffle_seed: int | None = None, size: int = BATCH
    ) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of inputs and labels, preprocessed as the bundle's manifest will say."""
        data = _Inputs(part, self.preprocessing)
        if shuffle_seed is None:
            order: RandomSampler | SequentialSampler = SequentialSampler(data)
        else:
            order = RandomSampler(data, generator=torch.Generator().manual_seed(shuffle_seed))
        return DataLoader(data, sampler=BatchSampler(order, size, drop_last=False), batch_size=None)


class _Inputs(Dataset[tuple[Tensor, Tensor]]):
    """Images as inputs, made when they are asked for: as float32 a large set would fill the memory."""

    def __init__(self, part: ImageData, preprocessing: Preprocessing) -> None:
        self.part, self.preprocessing = part, preprocessing

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        """A batch."""
        inputs = preprocess(self.part.images[places], self.preprocessing)
        return torch.from_numpy(inputs), torch.from_numpy(self.part.labels[places])


@dataclass(frozen=True)
class Trained:
    """What a recipe leaves: the network, its bundle, and how the training went."""

    kind: Kind
    net: MultiExit
    bundle: Bundle
    fit: FitResult
    sparsity: SparsityReport | None
    calibration: Calibration
    accuracy: tuple[float, ...]


def load_splits(data: str = "mnist-subset", *, size: int = 28, color: bool = True, seed: int = 0) -> Splits:
    """A data set by name, or a folder with one folder of images per class.

    A data set's test images stay whole: the images held out are a tenth of the training images.

    Args:
        data: "mnist-subset" (inside the package), "mnist", "fashion-mnist", "kmnist", "cifar10", or a path; a
            name goes before a folder that is called alike, which `./mnist` still reaches.
        size: For a folder, the side in pixels that its images are resized to.
        color: For a folder, whether three channels are kept.
        seed: Chooses which images are held out.

    Raises:
        DatasetError: No such data, or too few images.
        ConfigError: An image size below 16.
    """
    if data in DATASETS:
        parts = named_parts(data, seed=seed)
        grey = data != "cifar10"
        side = 28 if grey else 32
        preprocessing = Preprocessing(color="grey" if grey else "rgb", height=side, width=side)
    else:
        if size < 16:
            raise ConfigError(f"the network needs images of at least 16 pixels a side, not {size}")
        if not Path(data).exists():
            raise DatasetError(f"there is no data set and no folder {data!r}; known: {', '.join(DATASETS)}")
        parts = folder_parts(data, (size, size), color=color, seed=seed)
        preprocessing = Preprocessing(color="rgb" if color else "grey", height=size, width=size)
    return Splits(parts.train, parts.held_out, parts.test, data, seed, preprocessing)


def build(kind: Kind, example: Tensor, classes: int, *, seed: int = 0) -> tuple[MultiExit, SparsityReport | None]:
    """The recipe's network with its exits, untrained.

    Args:
        kind: "sparse", "dense", or "narrow".
        example: One input, (1, channels, H, W).
        classes: Number of classes.
        seed: For the weights and the sparsity patterns.
    """
    torch.manual_seed(seed)
    if kind == "narrow":
        return _with_exits(_network(_narrow_widths(example, classes), example, classes), example, classes), None
    model = _network(WIDTHS, example, classes)
    report = None
    if kind == "sparse":
        report = sparsify_(model, SPARSITY.model_copy(update={"seed": seed}), example_input=example)
    return _with_exits(model, example, classes), report


def train(
    kind: Kind,
    splits: Splits,
    out: str | Path,
    *,
    name: str | None = None,
    epochs: int = EPOCHS,
    seed: int = 0,
    max_drop: float = 0.005,
    delta: float | None = 0.1,
    progress: bool = True,
) -> Trained:
    """Builds, trains, calibrates and exports one network.

    Args:
        kind: "sparse", "dense", or "narrow".
        splits: The data.
        out: The bundle's directory.
        name: The bundle's name on the wire; made from the directory's name if left out.
        epochs: Passes over the training images.
        seed: For weights, patterns and the order of the images.
        max_drop: Accuracy that the gates together may cost, as a fraction.
        delta: The probability that they cost more; None promises nothing: see `calibrate`.
        progress: Whether to draw a progress bar.
    """
    net, report = build(kind, splits.example, len(splits.train.classes), seed=seed)
    done = fit(
        net,
        splits.batches(splits.train, shuffle_seed=seed),
        splits.batches(splits.held_out),
        epochs=epochs,
        lr=LEARNING_RATE,
        progress=progress,
        accelerator="cpu",
    )
    found = calibrate(net, splits.batches(splits.held_out), max_drop=max_drop, delta=delta)
    accuracy = evaluate(net, splits.batches(splits.test)).accuracy
    bundle = export(
        net,
        splits.example,
        out,
        name=name,
        classes=splits.train.classes,
        preprocessing=splits.preprocessing,
        seed=seed,
        data=splits.name,
        metrics={
            "held_out": {"seed": splits.seed, "sizes": splits.sizes},
            "held_out_accuracy": found.accuracy,
            "test_accuracy": accuracy,
            "max_drop": max_drop,
            "delta": delta,
        },
    )
    return Trained(kind, net, bundle, done, report, found, accuracy)


def _network(widths: tuple[int, int, int, int], example: Tensor, classes: int) -> nn.Sequential:
    a, b, c, hidden = widths
    channels, height = example.shape[1], example.shape[2]
    side = -(-height // 8)  # three convolutions of stride 2, rounding up
    pool = max(1, side // 4)  # larger images are pooled to about 4×4 places
    features = c * (side // pool) ** 2
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(channels, a, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(a, a, 3, stride=2, padding=1),
            nn.ReLU(),
        ),
        nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(b, c, 3, stride=2, padding=1),
            nn.ReLU(),
        ),
        nn.Sequential(
            nn.AvgPool2d(pool) if pool > 1 else nn.Identity(),
            nn.Flatten(),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        ),
    )


def _with_exits(model: nn.Module, example: Tensor, classes: int) -> MultiExit:
    exits = {"0": PooledHead(classes, pool=2), "1": PooledHead(classes, pool=2)}
    return MultiExit(model, exits, example_input=example)


def _narrow_widths(example: Tensor, classes: int) -> tuple[int, int, int, int]:
    """The widths, in the dense network's proportions, whose cost is nearest to the sparse network's."""
    with torch.random.fork_rng(devices=[]):
        sparse, _ = build("sparse", example, classes)
        target = count(sparse, example).macs

        def macs(a: int) -> int:
            narrow = _network(_proportioned(a), example, classes)
            return count(_with_exits(narrow, example, classes), example).macs

        a = bisect.bisect_left(range(WIDTHS[0]), target, lo=2, key=macs)
        return _proportioned(min(a - 1, a, key=lambda a: abs(macs(a) - target)))


def _proportioned(first: int) -> tuple[int, int, int, int]:
    a, b, c, hidden = (round(first * w / WIDTHS[0]) for w in WIDTHS)
    return a, b, c, hidden
