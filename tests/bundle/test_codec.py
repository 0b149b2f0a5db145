from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offramp.bundle.codec import IR_VERSION, OPSET, make_codec
from offramp.bundle.manifest import TensorSpec
from offramp.bundle.quantiser import MODES, Mode, Quantiser, fit_quantiser

SPEC = TensorSpec(name="cut_0", dtype="float32", shape=(7,))


def round_trip(
    values: NDArray[np.float32], value_range: tuple[float, float]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    encoder, decoder = make_codec([SPEC], [Quantiser.of_range(*value_range)], "uint8")
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
    encoder, decoder = make_codec(specs, [Quantiser.of_range(-1, 1)] * 2, "uint8")
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
    for model in make_codec([SPEC], [Quantiser.of_range(0, 1)], "uint8"):
        assert model.ir_version == IR_VERSION
        assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]


def through(
    quantisers: list[Quantiser | None], specs: list[TensorSpec], values: list[NDArray[np.generic]], mode: str
) -> tuple[list[NDArray[np.generic]], list[NDArray[np.generic]]]:
    encoder, decoder = make_codec(specs, quantisers, mode)
    feed = {spec.name: value for spec, value in zip(specs, values, strict=True)}
    packed = ort.InferenceSession(encoder.SerializeToString()).run(None, feed)
    names = [value.name for value in decoder.graph.input]
    assert names == [f"{spec.name}_{mode}" for spec in specs]
    back = ort.InferenceSession(decoder.SerializeToString()).run(None, dict(zip(names, packed, strict=True)))
    return packed, back


def by_hand(values: NDArray[np.float32], how: Quantiser) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The definition in the quantiser's docstring, one value at a time along the channels."""
    shape = [1] * values.ndim
    if how.axis is not None:
        shape[how.axis + 1] = -1
    scale, zero = how.scale.reshape(shape), how.zero.reshape(shape).astype(np.float32)
    levels = np.clip(np.rint(values / scale) + zero, 0, 2**how.bits - 1)
    return ((levels - zero) * scale).astype(np.float32), levels.astype(np.uint8)


@pytest.mark.parametrize("shape", [(4, 3, 3), (6, 5), (2, 3, 7), (11,), (1, 1, 1), (3, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_what_its_quantiser_says(mode: str, shape: tuple[int, ...]) -> None:
    """Whatever the shape, values that do not fill their last byte included; beyond the range too."""
    rng = np.random.default_rng(0)
    gains = rng.uniform(0.1, 10, shape[:1] + (1,) * (len(shape) - 1))
    seen = (rng.standard_normal((20, *shape)) * gains).astype(np.float32)
    how = fit_quantiser(seen, MODES[mode])
    values = (3 * rng.standard_normal((5, *shape)) * gains).astype(np.float32)
    spec = TensorSpec(name="cut_0", dtype="float32", shape=shape)
    packed, back = through([how], [spec], [values], mode)
    expected, levels = by_hand(values, how)
    np.testing.assert_array_equal(back[0], expected)
    size, bits = int(np.prod(shape)), MODES[mode].bits
    assert packed[0].dtype == np.uint8
    assert packed[0].nbytes == 5 * -(-size * bits // 8)
    if bits < 8:  # parts of equal length over each other, the first in the lowest bits
        width = packed[0].shape[1]
        rows = np.zeros((5, width * 8 // bits), np.uint8)
        rows[:, :size] = levels.reshape(5, -1)
        joined = sum((rows[:, i * width : (i + 1) * width] << (bits * i)) for i in range(8 // bits))
        np.testing.assert_array_equal(packed[0], joined)


def test_what_has_no_quantiser_travels_as_it_is() -> None:
    specs = [
        TensorSpec(name="cut_0_0", dtype="float32", shape=(4,)),
        TensorSpec(name="cut_0_1", dtype="int64", shape=(3,)),
        TensorSpec(name="cut_0_2", dtype="float32", shape=(2,)),
    ]
    values = [np.eye(4, dtype=np.float32), np.arange(12).reshape(4, 3), np.full((4, 2), -np.inf, np.float32)]
    packed, back = through([Quantiser.of_range(0, 1, bits=2), None, None], specs, values, "uint2")
    assert [p.dtype for p in packed] == [np.uint8, np.int64, np.float32]
    for got, value in zip(back, values, strict=True):
        np.testing.assert_array_equal(got, value)


def test_clipping_and_channels_lower_the_error() -> None:
    rng = np.random.default_rng(1)
    gains = np.geomspace(0.1, 10, 8)[:, None, None]
    seen = (np.maximum(rng.standard_normal((64, 8, 6, 6)), 0) * gains).astype(np.float32)
    test = (np.maximum(rng.standard_normal((64, 8, 6, 6)), 0) * gains).astype(np.float32)

    def error(how: Quantiser) -> float:
        return float(((by_hand(test, how)[0] - test) ** 2 / gains**2).mean())

    kept = []
    for bits in (2, 4):
        whole = Quantiser.of_range(seen.min(), seen.max(), bits)
        shared, apart = (fit_quantiser(seen, Mode(bits, per_channel=p)) for p in (False, True))
        assert shared.axis is None
        assert apart.axis == 0
        assert error(apart) < 0.5 * error(shared) < 0.5 * error(whole)
        kept.append((2**bits - 1) * apart.scale / seen.max(axis=(0, 2, 3)))
    assert (kept[0] < kept[1]).all()  # fewer bits want more clipping
    assert (kept[1] < 0.95).all()


def test_channels_may_come_last() -> None:
    rng = np.random.default_rng(2)
    tokens = (rng.standard_normal((64, 10, 12)) * np.geomspace(0.01, 10, 12)).astype(np.float32)
    assert fit_quantiser(tokens, MODES["uint4"]).axis == 1
    assert fit_quantiser(np.moveaxis(tokens, 2, 1), MODES["uint4"]).axis == 0


def test_a_channel_that_is_always_zero() -> None:
    seen = np.zeros((8, 3, 4, 4), np.float32)
    seen[:, 1] = np.linspace(0, 5, 128).reshape(8, 4, 4)
    for mode in MODES.values():
        how = fit_quantiser(seen, mode)
        assert np.isfinite(how.scale).all()
        assert (how.scale > 0).all()
        np.testing.assert_array_equal(by_hand(seen, how)[0][:, [0, 2]], 0)
