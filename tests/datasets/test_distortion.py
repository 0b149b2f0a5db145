"""Distorted images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from offramp.datasets.distortion import NOISE_LEVELS, Distortion
from offramp.errors import ConfigError


def grey(n: int = 3, side: int = 40) -> np.ndarray:
    """Images without values near the ends, so that clipping does not change the noise."""
    return np.random.RandomState(0).randint(100, 156, (n, side, side)).astype(np.uint8)


def test_noise_has_the_stated_deviation_on_pixels_from_0_to_1() -> None:
    images = grey(20)
    for sigma in NOISE_LEVELS:
        noise = (Distortion("gaussian_noise", sigma)(images).astype(float) - images) / 255
        rounding = (1 / 255) ** 2 / 12
        assert noise.std() == pytest.approx(np.sqrt(sigma**2 + rounding), rel=0.02)
        assert abs(noise.mean()) < 4 * sigma / np.sqrt(noise.size)


def test_pixels_beyond_the_ends_are_clipped() -> None:
    black = np.zeros((10, 8, 8), np.uint8)
    noisy = Distortion("gaussian_noise", 100.0)(black)
    assert 0.4 < (noisy == 0).mean() < 0.6
    assert 0.4 < (noisy == 255).mean() < 0.6


def test_the_seed_decides_the_noise_whatever_the_batch() -> None:
    images = np.full((1500, 4, 4), 128, np.uint8)
    first, again = (Distortion("gaussian_noise", 0.1, seed=3)(images) for _ in range(2))
    assert (first == again).all()
    assert (first[1000:] != first[:500]).any()
    assert (first != Distortion("gaussian_noise", 0.1, seed=4)(images)).any()
    assert (first[:7] == Distortion("gaussian_noise", 0.1, seed=3)(images[:7])).all()


def test_blur_is_a_gaussian_of_the_stated_deviation() -> None:
    point = np.zeros((1, 33, 33), np.uint8)
    point[0, 16, 16] = 255
    wide = Distortion("gaussian_blur", 2.0)(point).astype(float)
    places = np.arange(33) - 16
    expected = 255 * np.exp(-(places**2) / 8)[:, None] * np.exp(-(places**2) / 8)[None, :] / (8 * np.pi)
    assert np.abs(wide[0] - expected).max() <= 0.51


def test_blur_is_near_to_pillows() -> None:
    image = np.random.RandomState(1).randint(0, 256, (24, 24, 3)).astype(np.uint8)
    ours = Distortion("gaussian_blur", 1.0)(image[None])[0].astype(float)
    theirs = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0)), float)
    inner = np.s_[4:-4, 4:-4]  # Pillow approximates, and treats borders in another way
    assert np.abs(ours[inner] - theirs[inner]).mean() < 2


@pytest.mark.parametrize("kind", ["gaussian_noise", "gaussian_blur"])
def test_no_strength_changes_nothing(kind: str) -> None:
    images = np.random.RandomState(0).randint(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    assert (Distortion.parse(f"{kind}:0")(images) == images).all()


def test_colours_are_blurred_apart_and_a_flat_image_stays() -> None:
    flat = np.tile(np.array([10, 128, 250], np.uint8), (1, 9, 9, 1))
    assert (Distortion("gaussian_blur", 1.5)(flat) == flat).all()


def test_the_text_form_goes_round() -> None:
    for text in ("gaussian_noise:0.1", "gaussian_blur:0.8", "gaussian_noise:0"):
        assert str(Distortion.parse(text)) == text
    assert Distortion.parse("gaussian_noise:.04", seed=2) == Distortion("gaussian_noise", 0.04, 2)


@pytest.mark.parametrize("text", ["", "gaussian_noise", "gaussian_noise:", "fog:1", "gaussian_blur:a", ":1"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"KIND:SIGMA, such as gaussian_noise:0\.1"):
        Distortion.parse(text)


@pytest.mark.parametrize("sigma", ["-0.1", "nan", "inf", "1e9"])
def test_a_strength_that_cannot_be_is_refused(sigma: str) -> None:
    with pytest.raises(ConfigError, match="sigma lies between 0 and 100"):
        Distortion.parse(f"gaussian_blur:{sigma}")
