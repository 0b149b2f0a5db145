from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offramp.bundle.codec import IR_VERSION, OPSET, uint8_codec
from offramp.bundle.manifest import TensorSpec

SPEC = TensorSpec(name="cut_0", dtype="float32", shape=(7,))


def round_trip(
    values: NDArray[np.float32], value_range: tuple[float, float]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    encoder, decoder = uint8_codec([SPEC], value_range)
    (packed,) = ort.InferenceSession(encoder.SerializeToString()).run(None, {"cut_0": values})
    (back,) = ort.InferenceSession(decoder.SerializeToString()).run(None, {"cut_0_uint8": packed})
    assert packed.dtype == np.uint8
    assert back.dtype == np.float32
    assert packed.shape == back.shape == values.shape
    return packed, back


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.floats(-100, 100), st.floats(1e-3, 100), st.integers(0, 2**32 - 1))
def test_the_error_is_at_most_half_a_step(low: float, width: float, seed: int) -> None:
    """Within the range that calibration saw, zero always included."""
    high = low + width
    values = np.random.default_rng(seed).uniform(low, high, (3, 7)).astype(np.float32)
    values[0, :3] = low, high, 0
    values = np.clip(values, min(low, 0), max(high, 0)).astype(np.float32)
    _, back = round_trip(values, (low, high))
    step = (max(high, 0) - min(low, 0)) / 255
    assert np.abs(back - values).max() <= step / 2 * (1 + 1e-4)


def test_zero_stays_exact() -> None:
    for value_range in ((-1.0, 2.0), (0.5, 1.0), (-3.0, -1.0), (-0.3, 7.1)):
        assert (round_trip(np.zeros((1, 7), np.float32), value_range)[1] == 0).all()


def test_pixels_stay_exact() -> None:
    pixels = np.zeros((37, 7), np.uint8)
    pixels.flat[:256] = np.arange(256)
    packed, back = round_trip(pixels.astype(np.float32) / np.float32(255), (0.0, 1.0))
    assert (packed == pixels).all()
    np.testing.assert_allclose(back, pixels / 255, rtol=2e-7, atol=0)


def test_values_beyond_the_range_are_clipped() -> None:
    values = np.array([[-5, -1, 0, 0.4, 1, 1.2, 9]], np.float32)
    packed, back = round_trip(values, (0.0, 1.0))
    assert packed.tolist() == [[0, 0, 0, 102, 255, 255, 255]]
    assert back.min() == 0
    assert back.max() == pytest.approx(1)


def test_a_range_without_width() -> None:
    assert (round_trip(np.zeros((2, 7), np.float32), (0.0, 0.0))[1] == 0).all()


def test_several_tensors_cross_together() -> None:
    specs = [SPEC, TensorSpec(name="cut_0_1", dtype="float32", shape=(2, 3))]
    encoder, decoder = uint8_codec(specs, (-1, 1))
    rng = np.random.default_rng(0)
    feed = {"cut_0": rng.uniform(-1, 1, (2, 7)), "cut_0_1": rng.uniform(-1, 1, (2, 2, 3))}
    feed = {k: v.astype(np.float32) for k, v in feed.items()}
    packed = ort.InferenceSession(encoder.SerializeToString()).run(None, feed)
    names = [o.name for o in encoder.graph.output]
    assert names == ["cut_0_uint8", "cut_0_1_uint8"]
    back = ort.InferenceSession(decoder.SerializeToString()).run(None, dict(zip(names, packed, strict=True)))
    for got, expected in zip(back, feed.values(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1.01 / 255)


def test_old_runtimes_take_it() -> None:
    for model in uint8_codec([SPEC], (0, 1)):
        assert model.ir_version == IR_VERSION
        assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
