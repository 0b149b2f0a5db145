from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import pytest

from offramp.bundle.bundle import Bundle
from offramp.bundle.manifest import Tuning
from offramp.errors import ConfigError, InputError
from offramp.runtime.modes import ModeFigures, measure_modes, retuned_modes
from offramp.runtime.stages import Stages


def test_figures_are_those_of_each_crossing(tiny: Bundle, says) -> None:
    """Against a chain that is run by hand, sample by sample."""
    stages = Stages(tiny)
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.4, 0.9, (150, 4))
    inputs = np.stack([says(dict(enumerate(row)), label=i % 2) for i, row in enumerate(sure)])
    inputs += rng.normal(0, 0.05, inputs.shape).astype(np.float32)
    labels = rng.integers(0, 2, 150)
    told: list[int] = []
    found = measure_modes(stages, inputs, labels, batch=40, on_batch=told.append)
    assert told == [40, 40, 40, 30]
    last = tiny.manifest.last
    assert [(f.cut, f.mode) for f in found] == [(c, m) for c in range(-1, last) for m in ("float", "uint8")]
    plain = None
    for f in found:
        answers, sizes = [], []
        for x in inputs:
            tensors = [x[None]]
            for i in range(last + 1):
                if i == f.cut + 1:
                    packed, _ = stages.encode(f.cut, f.mode, tensors)
                    sizes.append(len(zlib.compress(packed[0].tobytes(), wbits=31)))
                    tensors, _ = stages.decode(f.cut, f.mode, packed)
                tensors, _ = stages.stage(i, tensors)
            answers.append(int(tensors[0][0].argmax()))
        said = np.array(answers)
        plain = said if plain is None else plain
        assert f.accuracy == pytest.approx((said == labels).mean())
        assert f.changed == pytest.approx((said != plain).mean())
        assert f.payload_bytes == packed[0].nbytes
        assert f.gzip_bytes == pytest.approx(np.mean(sizes[:100]))
        assert min(f.encode_ms, f.decode_ms) >= 0 if f.mode == "float" else min(f.encode_ms, f.decode_ms) > 0
        assert f.gzip_ms > 0


ROW = ModeFigures(
    cut=0, mode="float", payload_bytes=4000, gzip_bytes=3000, encode_ms=0, decode_ms=0, gzip_ms=0.1,
    accuracy=0.9, changed=0,
)  # fmt: skip


def test_compression_pays_below_the_rate_where_it_takes_as_long_as_it_saves() -> None:
    assert ROW.gzip_below_mbps == pytest.approx(1000 * 8 / 0.1e-3 / 1e6)
    assert dataclasses.replace(ROW, gzip_bytes=4100).gzip_below_mbps == 0
    assert dataclasses.replace(ROW, gzip_ms=0.0).gzip_below_mbps == 0


def test_the_usual_mode_has_the_fewest_bytes_of_those_that_lose_little() -> None:
    tuning = Tuning(temperatures=(1.0, 1.0, 1.0), thresholds=(0.5, 0.6, None))
    rows = [
        dataclasses.replace(ROW, cut=cut, mode=mode, payload_bytes=size, accuracy=accuracy, gzip_bytes=size - 8)
        for cut, mode, size, accuracy in (
            (-1, "float", 800, 0.9), (-1, "uint2", 50, 0.1),
            (0, "float", 4000, 0.9), (0, "uint8", 1000, 0.9), (0, "uint4", 500, 0.893), (0, "uint2", 250, 0.92),
            (1, "float", 400, 0.9), (1, "uint8", 100, 0.899), (1, "uint4", 50, 0.891), (1, "uint2", 25, 0.80),
        )
    ]  # fmt: skip
    modes = {loss: retuned_modes(tuning, rows, max_loss=loss).mode for loss in (0.0, 0.005, 0.01, 0.2)}
    assert modes == {0.0: "float", 0.005: "uint8", 0.01: "uint4", 0.2: "uint2"}
    partial = [row for row in rows if (row.cut, row.mode) != (1, "uint4")]
    assert retuned_modes(tuning, partial, max_loss=0.01).mode == "uint8"
    found = retuned_modes(tuning, rows)
    assert found.gzip_below_mbps["cut_1.uint4"] == pytest.approx(8 * 8 / 0.1e-3 / 1e6)
    assert found.thresholds == tuning.thresholds
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="max_loss"):
            retuned_modes(tuning, rows, max_loss=wrong)
    with pytest.raises(ConfigError, match="no modes"):
        retuned_modes(tuning, [])


def test_what_cannot_be_measured_is_refused(tiny: Bundle, tmp_path: Path) -> None:
    stages = Stages(tiny)
    x = np.zeros((3, *tiny.manifest.inputs[0].shape), np.float32)
    for inputs, labels, words in (
        (x[:0], np.zeros(0, np.int64), "got 0 inputs"),
        (x, np.zeros(2, np.int64), r"got 3 inputs and labels of shape \(2,\)"),
        (x, np.zeros((3, 1), np.int64), r"labels of shape \(3, 1\)"),  # which NumPy would broadcast
        (x, np.int64(0), r"labels of shape \(\)"),
    ):
        with pytest.raises(ConfigError, match=words):
            measure_modes(stages, inputs, labels)
    for labels, words in (
        (np.full(3, 2), "labels from 2 to 2 do not go with 2 classes"),
        (np.full(3, -1), "labels from -1 to -1"),
        (np.zeros(3), "whole numbers, not float64"),
    ):
        with pytest.raises(InputError, match=words):
            measure_modes(stages, x, labels)
    assert measure_modes(stages, x, [0, 1, 0])[0].accuracy in (1 / 3, 2 / 3)  # type: ignore[arg-type]
    for size in (0, -1):
        with pytest.raises(ConfigError, match=f"at least 1 input, not {size}"):
            measure_modes(stages, x, np.zeros(3, np.int64), batch=size)
    with pytest.raises(InputError, match="expected float32"):
        measure_modes(stages, x.astype(np.float64), np.zeros(3, np.int64))
    with pytest.raises(ConfigError, match="edge copy"):
        measure_modes(Stages(tiny.edge_copy(tmp_path / "edge", 2)), x, np.zeros(3, np.int64))
