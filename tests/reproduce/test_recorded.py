"""The folder of traces, the choice of gates, and the bound in hindsight."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_traces import COUNTED, made_up, write_traces

from offramp.errors import OfframpError, TraceError
from offramp.policy.cost import CostModel
from offramp.replay.trace import Trace
from offramp.reproduce.gates import gates_of, gates_table, robust_thresholds
from offramp.reproduce.hindsight import reach
from offramp.reproduce.recorded import NETWORKS, Recorded, recorded
from offramp.reproduce.traces import DISTORTIONS

MOBILENET, RESNET = NETWORKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_traces(tmp_path_factory.mktemp("recorded"))


def read(folder: Path, limit: int | None = None) -> Recorded:
    return recorded(folder, MOBILENET, DISTORTIONS, limit)


def test_a_networks_traces_by_level(folder: Path) -> None:
    found = read(folder)
    assert list(found.levels)[:2] == ["none", "gaussian_noise:0.02"]
    assert len(found.levels) == 13
    assert found.depths == (3, 6, 9, 12, 15, 18, 19)
    assert recorded(folder, RESNET, DISTORTIONS, None).depths == COUNTED
    assert found.held_out is not None
    few = read(folder, 20)
    assert {len(t) for t in few.levels.values()} == {20}
    assert (few.plain.label == found.plain.label[:20]).all()
    assert few.held_out is not None
    assert len(few.held_out) == 300


def changed(**changes: Any) -> Trace:
    """What stands instead of the level that the tests replace."""
    trace = made_up(MOBILENET.name, DISTORTIONS[1], 30, 0)
    meta = trace.meta.model_copy(update={k: v for k, v in changes.items() if k in trace.meta.model_dump()})
    if "confidence_array" in changes:
        return dataclasses.replace(trace, meta=meta, confidence=None)
    if "label" in changes:
        return dataclasses.replace(trace, meta=meta, label=np.full(30, -1, np.int32))
    return dataclasses.replace(trace, meta=meta)


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (None, r"there is no .*noise-0\.02\.npz; `offramp reproduce mobilenetv2` makes"),
        (changed(digest="other"), "of another bundle than the traces before it: digest other, not mobilenetv2"),
        (changed(depths=(1, 2, 3, 4, 5, 6, 7)), "of another bundle .*: depths"),
        (changed(thresholds=(*(0.6,) * 6, None)), "of another bundle .*: thresholds"),
        (changed(thresholds=()), "does not tell the bundle's thresholds"),
        (changed(distortion="gaussian_blur:1"), "traced under gaussian_blur:1, which is not what its name says"),
        (changed(confidence_array=None), "no confidences, or samples without a label"),
        (changed(label=None), "no confidences, or samples without a label"),
    ],
)
def test_traces_that_do_not_belong_together(tmp_path: Path, trace: Trace | None, message: str) -> None:
    write_traces(tmp_path, 20)
    path = tmp_path / f"{MOBILENET.name}-gaussian_noise-0.02.npz"
    path.unlink()
    if trace is not None:
        trace.save(path)
    with pytest.raises(TraceError, match=message):
        read(tmp_path)
    assert recorded(tmp_path, RESNET, DISTORTIONS, None).held_out is not None


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no folder .*none with traces; give it by --traces"):
        read(tmp_path / "none")
    (tmp_path / f"{MOBILENET.name}.npz").write_bytes(b"no trace")
    with pytest.raises(OfframpError, match="is not a trace"):
        read(tmp_path)


def test_gates_are_the_bundles_the_papers_and_those_of_held_out_images(folder: Path, tmp_path: Path) -> None:
    found = read(folder)
    gates = gates_of(found)
    assert [g.name for g in gates] == ["bundle", "paper", "distorted"]
    assert gates[0].thresholds == (0.7,) * 6
    assert gates[1].thresholds == (0.5,) * 6
    assert gates[2].thresholds == robust_thresholds(found.held_out)  # type: ignore[arg-type]
    assert gates[1].on(found.plain).meta.thresholds == (*(0.5,) * 6, None)
    assert "0.7000 (" in gates_table(gates, found)
    bare = read(write_traces(tmp_path, 20, held_out=None))
    assert bare.held_out is None
    assert [g.name for g in gates_of(bare)] == ["bundle", "paper"]
    assert "In brackets" not in gates_table(gates_of(bare), bare)


def test_certified_gates_lose_no_more_than_allowed_and_need_samples() -> None:
    """Every wrong early answer at a confidence below .6, none above: the gate finds the place."""
    n = 4000
    rng = np.random.default_rng(0)
    confidence = rng.random((n, 7)).astype(np.float32)
    label = np.zeros(n, np.int32)
    prediction = np.where(confidence >= 0.6, 0, 1).astype(np.int32)
    prediction[:, -1] = 0
    trace = dataclasses.replace(
        made_up("b", None, n, 0), prediction=prediction, confidence=confidence, label=label
    )
    for threshold in robust_thresholds(trace, 0.02, 0.1):
        assert 0.575 < threshold < 0.6
    assert all(t > 1 for t in robust_thresholds(trace, 1e-4, 0.1))


def test_the_bound_in_hindsight_is_the_best_of_all_thresholds() -> None:
    traces = [made_up("b", d, 60, i) for i, d in enumerate(DISTORTIONS[::6])]
    cost = CostModel.in_layers((3, 6, 9, 12, 15, 18, 19), gamma=0.1, offload=0.3)
    found, best = reach(traces, cost, 2.0), 0.0
    candidates = np.unique(np.concatenate([np.asarray(t.confidence)[:, :-1].ravel() for t in traces]))
    for k in range(6):
        for threshold in (*candidates.tolist(), 2.0):
            points, costs = 0.0, 0.0
            for t in traces:
                sure = np.asarray(t.confidence)[:, k] >= threshold
                right = t.prediction == t.label[:, None]
                points += 100 * (np.where(sure, right[:, k], right[:, -1]).mean() - right[:, -1].mean()) / 3
                costs += (cost.paid(k, False) * sure.mean() + cost.paid(k, True) * (~sure).mean()) / 3
            if points >= -2 - 1e-9:
                best = max(best, 1 - costs / 1.9)
    assert found.saved == pytest.approx(best)
    assert found.points >= -2 - 1e-9
    assert reach(traces, cost, 100.0).saved > found.saved
