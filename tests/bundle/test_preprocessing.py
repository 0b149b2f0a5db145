from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.bundle.manifest import Preprocessing
from offramp.bundle.preprocessing import preprocess
from offramp.errors import InputError


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    color=st.sampled_from(["grey", "rgb"]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    n=st.integers(0, 4),
    per_channel=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_trainings_formula(color: str, size: tuple[int, int], n: int, per_channel: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels = 3 if color == "rgb" else 1
    count = channels if per_channel else 1
    mean, std = tuple(rng.uniform(0, 1, count)), tuple(rng.uniform(0.1, 1, count))
    images = rng.integers(0, 256, (n, *size, *((3,) if color == "rgb" else ())), np.uint8)
    spec = Preprocessing(color=color, height=size[0], width=size[1], mean=mean, std=std)
    x = torch.from_numpy(images).float() / 255
    x = x.permute(0, 3, 1, 2) if color == "rgb" else x.unsqueeze(1)
    shape = (1, count, 1, 1)
    expected = (x - torch.tensor(mean).float().view(shape)) / torch.tensor(std).float().view(shape)
    got = preprocess(images, spec)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.shape == (n, channels, *size)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_another_scale() -> None:
    spec = Preprocessing(color="grey", height=1, width=2, scale=2.0, mean=(1.0,), std=(4.0,))
    assert preprocess(np.array([[[0, 5]]], np.uint8), spec).tolist() == [[[[-0.25, 2.25]]]]


GREY = Preprocessing(color="grey", height=4, width=6)
RGB = Preprocessing(color="rgb", height=4, width=6)


@pytest.mark.parametrize(
    ("spec", "images"),
    [
        (GREY, np.zeros((2, 4, 6), np.float32)),
        (GREY, np.zeros((2, 4, 6), np.int64)),
        (GREY, np.zeros((2, 6, 4), np.uint8)),
        (GREY, np.zeros((4, 6), np.uint8)),
        (GREY, np.zeros((2, 4, 6, 3), np.uint8)),
        (RGB, np.zeros((2, 4, 6), np.uint8)),
        (RGB, np.zeros((2, 3, 4, 6), np.uint8)),
        (RGB, np.zeros((2, 4, 6, 4), np.uint8)),
    ],
)
def test_other_images_are_refused(spec: Preprocessing, images: np.ndarray) -> None:
    with pytest.raises(InputError, match=rf"expected {spec.color} pixels as uint8 .* got {images.dtype}"):
        preprocess(images, spec)
