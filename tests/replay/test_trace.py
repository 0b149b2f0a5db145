"""Traces: what goes round, what is recorded, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp as off
from offramp.bundle.preprocessing import preprocess
from offramp.datasets import mnist_subset
from offramp.datasets.distortion import Distortion
from offramp.errors import ConfigError, InputError, TraceError
from offramp.replay.record import record
from offramp.replay.trace import Trace, TraceMeta
from offramp.report.tracing import trace_text
from offramp.runtime.gate import Gate
from offramp.runtime.labelled import Labelled

META = TraceMeta(
    bundle="b",
    exits=(0, 2),
    stage_ms=(1.0, 2.0, 3.0),
    exit_ms=(0.5, 0.0),
    stage_macs=(10, 20, 30),
    exit_macs=(5, 0),
    depths=(1, 2, 3),
    cut_bytes={"float": (40, 20, 20), "uint8": (10, 5, None)},
)


def trace(**changes: Any) -> Trace:
    values: dict[str, Any] = {
        "prediction": np.array([[1, 2], [0, 0], [3, 1]], np.int32),
        "confidence": np.array([[0.5, 1.0], [0.25, 0.75], [0.0, 0.5]], np.float32),
        "label": np.array([2, 0, -1], np.int32),
        "meta": META,
    }
    return Trace(**{**values, **changes})


def same(a: Trace, b: Trace) -> bool:
    return a.meta == b.meta and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("prediction", "confidence", "label")
    )


def test_a_trace_goes_round(tmp_path: Path) -> None:
    trace().save(tmp_path / "t.npz")
    found = Trace.load(tmp_path / "t.npz")
    np.testing.assert_allclose(found.confidence, trace().confidence, atol=0.5 / 65535 + 1e-7)
    assert same(found, trace(confidence=found.confidence))
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]
    found.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "t.npz").read_bytes()


def test_a_file_keeps_the_ends_of_confidence_and_the_highest_class(tmp_path: Path) -> None:
    ends = trace(
        confidence=np.array([[0, 1], [1, 0], [1e-9, 1 - 1e-7]], np.float32),
        prediction=np.full((3, 2), 65535, np.int32),
    )
    ends.save(tmp_path / "t.npz")
    found = Trace.load(tmp_path / "t.npz")
    assert found.confidence.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert same(found, trace(confidence=found.confidence, prediction=ends.prediction))
    with pytest.raises(TraceError, match="classes up to 65535, not 65536"):
        trace(prediction=np.full((3, 2), 65536, np.int32)).save(tmp_path / "more.npz")


def test_the_same_trace_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        trace().save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_accuracy_counts_samples_whose_label_is_known() -> None:
    assert trace().accuracy == (0.5, 1.0)
    assert all(np.isnan(trace(label=np.full(3, -1, np.int32)).accuracy))


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"prediction": np.zeros((3, 3), np.int32)},
        r"prediction: expected int32 of shape \(3, 2\), a column for each of the exits \(0, 2\), got .*\(3, 3\)",
    ),
    ({"prediction": [[0, 0]] * 3}, "prediction: expected an array of int32, got list"),
    ({"label": np.array(1, np.int32)}, r"expected .* of shape \(1, 2\)"),
    ({"prediction": np.zeros((3, 2), np.int64)}, "prediction: expected int32 .*, got int64"),
    ({"confidence": np.zeros((2, 2), np.float32)}, "confidence: expected float32"),
    *(
        (
            {"confidence": np.array([[0, 1], [0.5, 0.5], [0.5, wrong]], np.float32)},
            f"confidence: {wrong} of exit 2 on sample 2 is outside",
        )
        for wrong in (math.nan, math.inf, 1.5, -0.5)
    ),
    ({"label": np.array([0, -2, 1], np.int32)}, "class indices below 0"),
    (
        {
            "prediction": np.zeros((0, 2), np.int32),
            "confidence": np.zeros((0, 2), np.float32),
            "label": np.zeros(0, np.int32),
        },
        "at least one sample",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_arrays_that_do_not_agree_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"exits": (2, 0)},
        {"exits": (0, 1)},
        {"exits": ()},
        {"stage_ms": (1.0, 2.0)},
        {"stage_ms": (1.0, 2.0, float("nan"))},
        {"exit_macs": (1,)},
        {"depths": (1, 2, -3)},
        {"cut_bytes": {"float": (1, 2)}},
        {"extra": 1},
    ],
)
def test_a_record_of_costs_that_does_not_agree_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TraceMeta(**{**META.model_dump(), **changes})


def archive(**changes: Any) -> bytes:
    t = trace()
    meta = np.frombuffer(META.model_dump_json().encode(), np.uint8)
    arrays: dict[str, Any] = {"format": np.int64(1), "label": t.label}
    arrays["prediction"], arrays["confidence"] = np.uint16(t.prediction), np.uint16(65535 * t.confidence)
    arrays = {name: a for name, a in {**arrays, "meta": meta, **changes}.items() if a is not None}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


HOSTILE: list[tuple[bytes, str]] = [
    (b"", "is not a trace"),
    (b"not an archive", "is not a trace"),
    (b"\x93NUMPY\x01\x00\x76\x00" + b"{'shape': (2,L, ".ljust(118), "is not a trace"),
    (archive()[:200], "is not a trace"),
    (archive()[:-30], "is not a trace"),
    (archive(label=None), "is not a trace: .*label"),
    (archive(format=np.int64(2)), "has trace format 2; this offramp reads 1"),
    (archive(format=np.array([1, 1])), "is not a trace"),
    (archive(meta=np.frombuffer(b"{", np.uint8)), "Invalid JSON"),
    (archive(meta=np.frombuffer(b"{}", np.uint8)), "Field required"),
    (archive(meta=np.frombuffer(b"\xff\xfe", np.uint8)), "t.npz"),
    (archive(prediction=np.array([{}], object)), "is not a trace"),
    (archive(prediction=np.zeros((3, 5), np.uint16)), "t.npz: prediction: expected"),
    (archive(prediction=np.zeros((3, 2), np.int32)), "t.npz: prediction: expected uint16, got int32"),
    (archive(confidence=np.zeros((3, 2), np.float32)), "t.npz: confidence: expected uint16, got float32"),
]


@pytest.mark.parametrize(("content", "message"), HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(TraceError, match=message):
        Trace.load(tmp_path / "t.npz")


def test_a_plain_array_is_no_trace(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros(3))
    with pytest.raises(TraceError, match="is not a trace"):
        Trace.load(tmp_path / "t.npy")


def test_paths_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot read .*none"):
        Trace.load(tmp_path / "none.npz")
    with pytest.raises(TraceError, match="cannot write to"):
        trace().save(tmp_path / "no" / "folder.npz")


# --- recording -------------------------------------------------------------------------------------------


@pytest.fixture
def some_digits() -> Labelled:
    test = mnist_subset()[1]
    return Labelled(test.images[:120], test.labels[:120], "digits")


def test_a_trace_says_what_the_edge_says(digits_bundle: Path, some_digits: Labelled) -> None:
    bundle = off.Bundle.load(digits_bundle)
    stages = off.Stages(bundle)
    done: list[int] = []
    found = record(stages, some_digits, on_batch=done.append)
    assert sum(done) == len(found) == 120
    last = bundle.manifest.last
    assert found.meta.exits == tuple(range(last + 1))
    gate = Gate(bundle.tuning)
    spec = bundle.manifest.preprocessing
    assert spec is not None
    for i in (0, 60, 119):
        tensors = [preprocess(some_digits.inputs[i : i + 1], spec)]
        for e in range(last + 1):
            tensors, _ = stages.stage(e, tensors)
            logits = stages.exit(e, tensors)[0] if e < last else tensors[0]
            belief = gate.belief(e, logits[0])
            assert found.prediction[i, e] == belief.label
            assert found.confidence[i, e] == pytest.approx(belief.confidence, abs=1e-5)
    assert (found.label == some_digits.labels).all()
    macs = sum(found.meta.stage_macs) + sum(found.meta.exit_macs)
    assert macs == sum(g.macs for g in bundle.manifest.graphs() if not g.file.startswith("codecs"))
    assert all(ms > 0 for ms in (*found.meta.stage_ms, *found.meta.exit_ms[:-1]))
    assert found.meta.exit_ms[-1] == 0
    assert found.meta.cut_bytes["float"] == tuple(
        sum(t.bytes for t in bundle.manifest.cut(k)) for k in range(-1, last)
    )
    assert found.meta.digest == bundle.digest
    shown = trace_text(found)
    assert f"{100 * found.accuracy[0]:.2f}" in shown
    assert "float 784 B" not in shown  # the input's bytes belong to no exit


def test_noise_is_recorded_and_does_harm(digits_bundle: Path, some_digits: Labelled) -> None:
    stages = off.Stages(off.Bundle.load(digits_bundle))
    plain = record(stages, some_digits)
    noisy = record(stages, some_digits, distortion=Distortion("gaussian_noise", 0.8, seed=5))
    assert (noisy.meta.distortion, noisy.meta.seed) == ("gaussian_noise:0.8", 5)
    assert (noisy.prediction != plain.prediction).any()


def test_what_cannot_be_traced(digits_bundle: Path, some_digits: Labelled, tmp_path: Path) -> None:
    bundle = off.Bundle.load(digits_bundle)
    stages = off.Stages(bundle)
    with pytest.raises(ConfigError, match="got 0 inputs"):
        record(stages, Labelled(some_digits.inputs[:0], some_digits.labels[:0], "none"))
    floats = dataclasses.replace(some_digits, inputs=(some_digits.inputs[:, None] / np.float32(255)))
    with pytest.raises(InputError, match="a distortion takes pixels, uint8"):
        record(stages, floats, distortion=Distortion("gaussian_blur", 1.0))
    with pytest.raises(InputError, match=r"not finite|NaN"):
        record(stages, dataclasses.replace(floats, inputs=np.full_like(floats.inputs, np.nan)))
    with pytest.raises(InputError, match="labels from 0 to 10 do not go with 10 classes"):
        record(
            stages,
            dataclasses.replace(some_digits, labels=np.where(some_digits.labels == 9, 10, some_digits.labels)),
        )
    with pytest.raises(InputError, match="expected grey pixels"):
        record(stages, dataclasses.replace(some_digits, inputs=some_digits.inputs[:, :14]))
    copy = bundle.edge_copy(tmp_path / "edge", 1)
    with pytest.raises(ConfigError, match="is an edge copy"):
        record(off.Stages(copy), some_digits)
