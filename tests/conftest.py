"""What several test folders share: a small trained network on real digits, and its bundle.

torch is imported inside the fixtures, so that tests of the edge side can run where there is none.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

import offramp as off
from offramp.datasets import ImageData, mnist_subset

if TYPE_CHECKING:
    from torch import Tensor


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Tests run beside each other, so one thread each is fastest, and sums keep one order."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> tuple[ImageData, ImageData]:
    """The packaged MNIST subset: training and test part."""
    return mnist_subset()


@pytest.fixture(scope="session")
def digit_images(digits: tuple[ImageData, ImageData]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """2,000 test digits as pixels (N, 28, 28), and their labels."""
    return digits[1].images, digits[1].labels


@pytest.fixture(scope="session")
def digit_inputs(digit_images: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Tensor:
    """The same digits as the network takes them: (N, 1, 28, 28), x/255."""
    import torch

    return torch.from_numpy(digit_images[0]).float().div(255).unsqueeze(1)


@pytest.fixture(scope="session")
def digits_net(digits: tuple[ImageData, ImageData]) -> off.MultiExit:
    """A sparse network with two early exits, trained one epoch on 4,000 digits, calibrated on 1,000 others.

    Shared by the whole session: tests that change it work on a deepcopy.
    """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    train = digits[0]
    x = torch.from_numpy(train.images[:5000]).float().div(255).unsqueeze(1)
    y = torch.from_numpy(train.labels[:5000])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(1, 32, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(32, 32, 3, stride=2, padding=1),
                nn.ReLU(),
            ),
            nn.Sequential(
                nn.Conv2d(32, 64, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3, stride=2, padding=1),
                nn.ReLU(),
            ),
            nn.Sequential(nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
        off.sparsify_(model, off.SparsityConfig(density=0.25))
        net = off.MultiExit(model, {"0": off.PooledHead(10, 4), "1": off.PooledHead(10, 4)}, example_input=x[:1])
        shuffle = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(x[:4000], y[:4000]), batch_size=64, shuffle=True, generator=shuffle)
        off.fit(net, loader, epochs=1, progress=False, accelerator="cpu")
        off.calibrate(net, DataLoader(TensorDataset(x[4000:], y[4000:]), batch_size=250))
    return net


@pytest.fixture(scope="session")
def digits_bundle(digits_net: off.MultiExit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `digits_net`. Shared by the whole session: tests that change it copy it first."""
    import torch

    path = tmp_path_factory.mktemp("bundles") / "digits.bundle"
    off.export(
        digits_net,
        torch.zeros(1, 1, 28, 28),
        path,
        classes=[str(d) for d in range(10)],
        preprocessing=off.Preprocessing(color="grey", height=28, width=28),
    )
    return path


class Clock:
    """Time that moves only when told to."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def make_bundle():
    """Writes a tiny bundle: make_bundle(path, exits=(0, 2), thresholds=…, temperatures=…, held=…)."""
    from tiny_bundle import tiny_bundle

    return tiny_bundle


@pytest.fixture(scope="session")
def tiny(make_bundle, tmp_path_factory):
    """Four stages, exits at cuts 0 and 2, thresholds .75."""
    return make_bundle(tmp_path_factory.mktemp("tiny") / "tiny.bundle")


@pytest.fixture(scope="session")
def says():
    """An input at which exit e has confidence c: says({0: .6, 2: .9, 3: .95}, label=1)."""
    from tiny_bundle import says as build

    return build
