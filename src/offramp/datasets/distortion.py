"""Distorted images: Gaussian noise and Gaussian blur at stated strengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError

__all__ = ["NOISE_LEVELS", "Distortion", "Kind"]

Kind = Literal["gaussian_noise", "gaussian_blur"]

#: Standard deviations of Gaussian noise: the five of CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv 1903.12261,
#: their code's constants for 32×32 images), and a milder one before them.
NOISE_LEVELS = (0.02, 0.04, 0.06, 0.08, 0.09, 0.10)

#: How many images are worked on at a time; in float64 they take eight times their bytes.
_CHUNK = 1000


@dataclass(frozen=True)
class Distortion:
    """Something done to images before a network sees them.

    Noise is added to pixels in [0, 1]; blur is a Gaussian over rows and columns, reflected at the borders. The
    result is rounded to whole pixels from 0 to 255, as CIFAR-10-C stores its images.

    Attributes:
        kind: "gaussian_noise" or "gaussian_blur".
        sigma: The standard deviation: of noise on pixels in [0, 1], of blur in pixels.
        seed: For the noise.

    Raises:
        ConfigError: An unknown kind, or a sigma that is negative or not finite.
    """

    kind: Kind
    sigma: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"a distortion is one of {', '.join(get_args(Kind))}, not {self.kind!r}")
        if not (math.isfinite(self.sigma) and 0 <= self.sigma <= 100):
            raise ConfigError(f"a distortion's sigma lies between 0 and 100, not {self.sigma}")

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> Distortion:
        """From "gaussian_noise:0.1" or "gaussian_blur:0.8".

        Raises:
            ConfigError: Another form.
        """
        kind, colon, sigma = text.partition(":")
        known = next((k for k in get_args(Kind) if k == kind), None)
        try:
            value = float(sigma)
        except ValueError:
            value = None
        if known is None or not colon or value is None:
            raise ConfigError(f"a distortion is KIND:SIGMA, such as {' or '.join(_EXAMPLES)}, not {text!r}")
        return cls(known, value, seed)

    def __str__(self) -> str:
        return f"{self.kind}:{self.sigma:g}"

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Distorts images, uint8 of shape (N, H, W) or (N, H, W, 3)."""
        rng = np.random.RandomState(self.seed % 2**32)
        out = np.empty_like(images)
        for begin in range(0, len(images), _CHUNK):
            part = images[begin : begin + _CHUNK] / 255
            if self.kind == "gaussian_noise":
                part += rng.normal(scale=self.sigma, size=part.shape) if self.sigma else 0.0
            else:
                part = _blurred(part, self.sigma)
            out[begin : begin + _CHUNK] = np.round(255 * part.clip(0, 1))
        return out


_EXAMPLES = ("gaussian_noise:0.1", "gaussian_blur:0.8")


def _blurred(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """A separable convolution with a Gaussian that is cut off at four standard deviations."""
    radius = math.ceil(4 * sigma)
    if radius == 0:
        return x
    places = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (places / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        widths = [(radius, radius) if a == axis else (0, 0) for a in range(x.ndim)]
        padded = np.pad(x, widths, mode="symmetric")
        n = x.shape[axis]
        x = sum(
            (weight * np.take(padded, range(i, i + n), axis) for i, weight in enumerate(kernel)), np.zeros_like(x)
        )
    return x
