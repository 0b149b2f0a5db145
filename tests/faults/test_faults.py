"""Every fault by its name: one result per input, in order, right or marked; nothing hangs, nothing is left."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from schedules import Fault, Schedule, drawn
from trial import trial
from world import Leaks, wrong

from offramp.policy.base import Action
from offramp.runtime.result import Latency, Result

USUAL = {
    "seed": 5,
    "server": "process",
    "mode": "float",
    "deadline_ms": 60,
    "held": 4,
    "measured": False,
    "slowdown": 1,
    "pace_ms": 2,
    "for_ms": 350,
    "failures": 3,
    "reset_ms": 50,
}
FAULTS = {
    "killed and started again": [Fault(50, "kill")],
    "frozen": [Fault(50, "freeze", 300)],
    "cut": [Fault(50, "cut"), Fault(100, "cut", 100)],
    "stalled": [Fault(50, "stall", 300)],
    "slowed to 1 kbit a second": [Fault(50, "slow", 300, 1000)],
    "half a response": [Fault(50 + 10 * i, "half", 0, 9 + 20 * i) for i in range(8)],
    "a clock that jumps": [Fault(50, "clock", 0, 86_400), Fault(100, "clock", 0, -172_800)],
}
#: Whose requests are lost, however quickly they are repeated.
LOSING = ("killed and started again", "frozen", "stalled", "slowed to 1 kbit a second")


@pytest.mark.parametrize(
    ("policy", "under_way"),
    [("split-0-all", 1), ("server-only", 4), ("split-0", 4), ("i-splitee", 1), ("dynamic-split", 4)],
)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault(world, fault, policy, under_way):
    results, problems = trial(
        world, Schedule(policy=policy, under_way=under_way, faults=tuple(FAULTS[fault]), **USUAL)
    )
    assert problems == []
    statuses = Counter(r.status for r in results)
    assert statuses["ok"] > 0
    if fault in LOSING and policy in ("split-0-all", "server-only"):
        assert statuses["degraded"] > 0  # and that it is asked again once mended is the trial's own check


@pytest.mark.parametrize("under_way", [1, 4])
def test_a_connection_whose_way_is_gone_is_replaced(world, monkeypatch, under_way):
    # Nobody resets it: left to the system, the edge would be alone for a quarter of an hour.
    monkeypatch.setattr("offramp.serving.channel._SILENT_MS", 500)
    schedule = Schedule(policy="server-only", under_way=under_way, faults=(Fault(50, "lose"),), **USUAL)
    results, problems = trial(world, schedule)
    assert problems == []
    assert Counter(r.status for r in results)["degraded"] > 0


@pytest.mark.parametrize("seed", range(10))
def test_random_schedules(world, seed):
    """The first ten of `make soak`."""
    assert trial(world, drawn(seed, kill=0))[1] == []


# --- what the checks find -------------------------------------------------------------------------------

X = np.array([1.0, -1.0, 0.0, 0.0, 2.0, 0.0, 3.0, -3.0], np.float32)


def result(**changes):
    """A server's answer that is right, or is not."""
    probabilities = tuple(1 / (1 + np.exp(np.array([-6.0, 6.0]))))
    usual = {
        "status": "ok",
        "label": 0,
        "confidence": probabilities[0],
        "probabilities": probabilities,
        "exit": 3,
        "where": "server",
        "action": Action(0, (0,)),
        "latency_ms": Latency(total=5.0),
    }
    return Result(0, **{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"status": "degraded", "error": "gone", "where": "edge"}, None),
        ({"status": "degraded", "where": "edge"}, "reason"),
        ({"error": "gone"}, "reason"),
        ({"status": "failed", "error": "gone", "label": None}, "failed"),
        ({"probabilities": (0.99, 0.01)}, "says"),
        ({"exit": 2}, "says"),
        ({"label": 1}, "label"),
        ({"confidence": 0.9}, "label"),
        ({"latency_ms": Latency(total=1e6)}, "deadline"),
    ],
)
def test_a_wrong_result_is_found(world, changes, says):
    found = wrong(world, world.bundle, X, result(**changes), alpha=None, deadline_ms=60)
    assert found is None if says is None else says in found


def test_an_unsure_exit_that_answers_is_found(world):
    probabilities = tuple(world.truth(X, 0))
    unsure = result(
        exit=0, where="edge", probabilities=probabilities, label=0, confidence=max(probabilities), status="ok"
    )
    assert wrong(world, world.bundle, X, unsure, alpha=None, deadline_ms=60) is None
    assert "unsure" in wrong(world, world.bundle, X, unsure, alpha=0.9, deadline_ms=60)


def test_an_answer_to_what_cannot_be_run_is_found(world):
    assert "cannot be run" in wrong(world, world.bundle, X[:7], result(), alpha=None, deadline_ms=60)


def test_what_is_left_behind_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("world.PATIENCE_S", 0.3)
    with Leaks() as leaks:
        file = (tmp_path / "open").open("w")
    assert str(tmp_path / "open") in leaks.found()
    file.close()
    assert leaks.found() is None


def test_a_result_that_is_missing_is_found(world, monkeypatch):
    run = SimpleNamespace()
    from offramp.runtime.edge import Edge

    run.whole = Edge.run

    def without_one(edge, inputs, *, under_way):
        return (r for r in run.whole(edge, inputs, under_way=under_way) if r.index != 3)

    monkeypatch.setattr(Edge, "run", without_one)
    _, problems = trial(world, Schedule(policy="server-only", under_way=1, faults=(), **USUAL))
    assert any("inputs gave" in problem for problem in problems)
