"""The studies' images: their forms, their order, and what is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.datasets import ImageData
from offramp.errors import ConfigError, DatasetError
from offramp.reproduce import images as module
from offramp.reproduce.images import COLOUR, GREY, held_out, images
from offramp.reproduce.loop import Samples

SUBSET = "mnist-subset"


def test_784_pixels_are_padded_to_800_as_8_before_and_8_behind() -> None:
    for rows, maps in zip(images(SUBSET, "padded", 50), images(SUBSET, "maps", 50), strict=True):
        assert (rows.x.shape, maps.x.shape) == ((50, 800), (50, 1, 28, 28))
        assert torch.equal(rows.x[:, 8:792], maps.x.flatten(1))
        assert not rows.x[:, :8].any()
        assert not rows.x[:, 792:].any()
        assert torch.equal(rows.y, maps.y)
        assert (rows.x.dtype, rows.y.dtype) == (torch.float32, torch.int64)


def test_grey_pixels_lie_between_0_and_1() -> None:
    x = images(SUBSET, "maps", 50)[0].x
    assert (x.min(), x.max()) == (0, 1)
    assert torch.equal((x * 255).round() / 255, x)


def test_images_are_shuffled_the_same_way_every_time(digits: tuple[ImageData, ImageData]) -> None:
    for found, part in zip(images(SUBSET, "maps"), digits, strict=True):
        assert len(found) == len(part)
        order = np.random.RandomState(0).permutation(len(part))
        np.testing.assert_array_equal(found.y.numpy(), part.labels[order])
        assert (found.y.numpy() != part.labels).any()
        pixels = (255 * found.x[:200, 0]).round().byte().numpy()
        np.testing.assert_array_equal(pixels, part.images[order[:200]])


def test_a_limit_takes_the_first_of_the_same_order() -> None:
    for few, many in zip(images(SUBSET, "maps", 30), images(SUBSET, "maps", 50), strict=True):
        assert torch.equal(few.x, many.x[:30])
        assert torch.equal(few.y, many.y[:30])
    assert [len(part) for part in images(SUBSET, "maps", 10**6)] == [len(part) for part in images(SUBSET, "maps")]


def colours(images_: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> tuple[Samples, ImageData]:
    """Colour images as the studies take them, and in the same order as they were."""
    part = ImageData(images_, np.arange(len(images_)) % 10, tuple("abcdefghij"))
    monkeypatch.setattr(module, "cifar10", lambda: (part, part))
    found = images.__wrapped__("cifar10", "maps", None)[0]  # not the cached one: these are no real images
    order = np.random.RandomState(0).permutation(len(part))
    return found, part.take(order)


def test_colours_have_mean_0_and_deviation_1(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.RandomState(1).randint(0, 256, (30, 32, 32, 3)) * (40, 90, 250) // 255
    found, part = colours(pixels.astype(np.uint8), monkeypatch)
    assert found.x.shape == (30, 3, 32, 32)
    torch.testing.assert_close(found.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.x.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert torch.equal(found.y, torch.from_numpy(part.labels))
    for c in range(3):  # each channel is its own, brighter where its pixels are
        order = part.images[0, :, :, c].ravel().argsort(kind="stable")
        assert (np.diff(found.x[0, c].flatten().numpy()[order]) >= 0).all()


def test_the_mean_of_many_colours_is_not_rounded_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A running sum in float32 loses a little with every pixel, and stands still at 2²⁴."""
    pixels = np.random.RandomState(1).randint(200, 202, (300, 32, 32, 3)).astype(np.uint8)
    found, part = colours(pixels, monkeypatch)
    expected = (part.images - part.images.mean((0, 1, 2))) / part.images.std((0, 1, 2))  # float64
    worst = float(np.abs(found.x.numpy().transpose(0, 2, 3, 1) - expected).max())
    assert worst < 1e-2


@pytest.mark.parametrize(("count", "share", "apart"), [(60_000, 1 / 6, 10_000), (600, 1 / 6, 100), (10, 0.25, 2)])
def test_the_last_images_are_held_out(count: int, share: float, apart: int) -> None:
    learnt, rest = held_out(Samples(torch.arange(count), torch.arange(count)), share)
    assert (len(learnt), len(rest)) == (count - apart, apart)
    assert torch.equal(torch.cat([learnt.x, rest.x]), torch.arange(count))
    assert torch.equal(torch.cat([learnt.y, rest.y]), torch.arange(count))


def test_a_sixth_is_held_out_unless_told() -> None:
    learnt, rest = held_out(Samples(torch.zeros(66), torch.zeros(66)))
    assert (len(learnt), len(rest)) == (55, 11)


def test_an_unknown_set_names_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"there is no data set 'minst'; known: mnist-subset, mnist, .*cifar10"):
        images("minst", "maps")
    assert not set(GREY) & set(COLOUR)


def test_a_set_that_is_not_at_hand_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match="fashion-mnist"):
        images.__wrapped__("fashion-mnist", "maps", None)
