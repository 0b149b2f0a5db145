"""Which images of a data set the recipes train on, hold out, and test on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from offramp.datasets import ImageData
from offramp.errors import DatasetError
from offramp.recipes import build, load_splits

#: Training images of the made-up sets, and how many of them are held out.
WHOLE, HELD_OUT = 1050, 105
NAMES = ("mnist", "fashion-mnist", "kmnist", "cifar10")


def numbered(n: int, first: int, shape: tuple[int, ...]) -> ImageData:
    """Images that tell their number by their first two pixels."""
    images = np.zeros((n, *shape), np.uint8)
    flat = images.reshape(n, -1)
    flat[:, 0], flat[:, 1] = np.divmod(np.arange(first, first + n), 256)
    return ImageData(images, np.arange(n) % 10, tuple("abcdefghij"))


def numbers(data: ImageData) -> list[int]:
    flat = data.images.reshape(len(data), -1).astype(int)
    return (flat[:, 0] * 256 + flat[:, 1]).tolist()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Small data sets in place of the real ones; what was asked for is noted."""
    noted: list[str] = []

    def made(name: str, shape: tuple[int, ...]) -> tuple[ImageData, ImageData]:
        noted.append(name)
        return numbered(WHOLE, 0, shape), numbered(30, 5000, shape)

    monkeypatch.setattr("offramp.datasets.parts.idx_set", lambda name: made(name, (28, 28)))
    monkeypatch.setattr("offramp.datasets.parts.cifar10", lambda: made("cifar10", (32, 32, 3)))
    return noted


@pytest.mark.parametrize("name", NAMES)
def test_held_out_images_are_training_images(asked: list[str], name: str) -> None:
    splits = load_splits(name, seed=4)
    assert asked == [splits.name] == [name]
    held_out, train = numbers(splits.held_out), numbers(splits.train)
    assert len(held_out) == HELD_OUT
    assert splits.sizes == [WHOLE - HELD_OUT, HELD_OUT, 30]
    assert sorted(held_out + train) == list(range(WHOLE))
    assert numbers(splits.test) == list(range(5000, 5030))
    assert numbers(load_splits(name, seed=4).held_out) == held_out
    assert numbers(load_splits(name, seed=5).held_out) != held_out


@pytest.mark.parametrize(("name", "shape"), [("kmnist", (1, 1, 28, 28)), ("cifar10", (1, 3, 32, 32))])
def test_the_inputs_have_the_images_form(asked: list[str], name: str, shape: tuple[int, ...]) -> None:
    splits = load_splits(name)
    assert splits.example.shape == shape
    inputs, labels = next(iter(splits.batches(splits.test)))
    assert inputs.shape == (30, *shape[1:])
    net, report = build("sparse", splits.example, 10)
    assert report is not None
    assert all(out.shape == (30, 10) for out in net(inputs))
    assert labels.tolist() == splits.test.labels.tolist()


def test_a_folder_called_like_a_data_set_is_reached_by_its_path(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(100):
        path = tmp_path / "mnist" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), i).save(path)
    monkeypatch.chdir(tmp_path)
    assert load_splits("./mnist", size=20, color=False).train.images.shape[1:] == (20, 20)
    assert asked == []
    load_splits("mnist")
    assert asked == ["mnist"]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DatasetError, match=re.escape(f"'cifar'; known: mnist-subset, {', '.join(NAMES)}")):
        load_splits("cifar")
