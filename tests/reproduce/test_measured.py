"""Policies where milliseconds are what costs: which simple way is as good depends on edge and link."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from recorded_traces import made_up

from offramp.errors import TraceError
from offramp.replay.trace import Trace
from offramp.reproduce.measured import Measured, measured, measured_sentences, measured_table


@pytest.fixture(scope="module")
def trace() -> Trace:
    return made_up("b", None, 400, 0)


def test_a_slow_edge_sends_and_a_slow_link_keeps(trace: Trace) -> None:
    found = measured(trace, 2, slowdowns=(3.0, 100.0), links=((0.1, 300.0), (1000.0, 1.0)))
    ms = {(m.slowdown, m.rate_mbps): m.ms for m in found}
    # 3.5 ms of stages; 3,072 bytes take 246 ms at 0.1 Mbit/s.
    assert ms[3.0, 0.1]["edge-only"] == pytest.approx(3 * 3.5)
    assert ms[3.0, 0.1]["server-only"] == pytest.approx(300 + 245.76 + 3.5)
    assert ms[100.0, 1000.0]["server-only"] == pytest.approx(1 + 0.0246 + 3.5, abs=0.01)
    assert ms[100.0, 1000.0]["edge-only"] == pytest.approx(350)
    for m in found:
        best = min(m.ms[m.best_arm], m.ms["server-only"])
        # 400 inputs: trying every way once is a good part of the time where some take a hundred times longer.
        assert m.ms["dynamic-split"] <= 1.2 * best + 5
        assert m.ms[m.best_arm] == min(
            v for k, v in m.ms.items() if k == "edge-only" or (k.startswith("split-") and not k.endswith("all"))
        )


def test_the_gates_are_the_traces_own(trace: Trace) -> None:
    closed = dataclasses.replace(trace, meta=trace.meta.model_copy(update={"thresholds": (*(1.5,) * 6, None)}))
    links = ((10.0, 20.0),)
    gated, never = (measured(t, 2, slowdowns=(10.0,), links=links)[0].ms for t in (trace, closed))
    # 5 ms of stage 0; with the gate shut the head on top, and every cut sent.
    assert never["split-0"] == pytest.approx(5 + 0.2 + 20 + 2.4576 + 3.0)
    assert gated["split-0"] < never["split-0"]
    assert never["split-0-all"] == pytest.approx(never["split-0"] - 0.2)


def row(where: str, **ms: float) -> Measured:
    names = {
        "sent": "server-only",
        "first": "split-0-all",
        "edge": "edge-only",
        "learner": "i-splitee,send_input=true,mu=5.0,c=0.25",
        "dynamic": "dynamic-split",
    }
    return Measured(float(where), 1.0, 50.0, {names[k]: v for k, v in ms.items()}, "edge-only")


def test_sentences_say_where_it_is_as_good_and_where_not() -> None:
    found = [
        row("3", sent=77.0, first=250.0, edge=7.0, learner=8.0, dynamic=7.7),
        row("30", sent=10.0, first=10.05, edge=70.0, learner=10.0, dynamic=10.0),
    ]
    sent, first, learner, dynamic = measured_sentences("N", found)
    assert "'send the input' is as good as any fixed way at 30x, 1 Mbit/s; not at 3x, 1 Mbit/s, up to 11.0" in sent
    assert "'arm 0, offload all' is as good as any fixed way at 30x, 1 Mbit/s; not at 3x, 1 Mbit/s" in first
    assert "at most 1.143 times" in learner
    assert "at most 1.100 times" in dynamic
    (only, *_) = measured_sentences("N", found[:1])
    assert "at none; not at 3x, 1 Mbit/s" in only
    assert "77.0" in measured_table("T", found, "bundle")


def test_traces_that_nobody_timed_are_refused(trace: Trace) -> None:
    bare = dataclasses.replace(trace, meta=trace.meta.model_copy(update={"stage_ms": (), "exit_ms": ()}))
    with pytest.raises(TraceError, match="says nothing of milliseconds"):
        measured(bare, 1)
    assert np.isfinite(list(measured(trace, 1, (3.0,), ((1.0, 1.0),))[0].ms.values())).all()
