"""What the edge loop would have done: every action against a walk through it, step by step."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from edge_oracle import observed, walk

from offramp.errors import ActionError, ConfigError, TraceError
from offramp.policy.base import Action
from offramp.policy.cost import CostModel
from offramp.replay.simulator import Simulator
from offramp.replay.trace import Trace, TraceMeta

DEPTHS = (2, 4, 7, 9)
COST = CostModel.in_layers(DEPTHS, gamma=0.3, offload=0.7, head=0.05)
#: Cut 1 has no exit.
EXITS = (0, 2, 3)
ALPHAS = {0: 0.4, 2: 0.75}


def drawn(n: int = 40, seed: int = 0, **changes: Any) -> Trace:
    rng = np.random.default_rng(seed)
    meta = TraceMeta(bundle="b", exits=EXITS, depths=DEPTHS, cut_bytes={"float": (40, 30, 20, 10)})
    values: dict[str, Any] = {
        "prediction": rng.integers(0, 3, (n, 3)).astype(np.int32),
        "confidence": np.round(rng.random((n, 3)), 1).astype(np.float32),
        "label": rng.integers(0, 3, n).astype(np.int32),
        "meta": meta,
    }
    return Trace(**{**values, **changes})


def actions() -> list[Action]:
    found = []
    for split in (-1, 0, 1, 2, 3):
        for exits in itertools.chain.from_iterable(itertools.combinations((0, 2), r) for r in range(3)):
            watchable = [e for e in (0, 2) if e <= split]
            for watch in itertools.chain.from_iterable(
                itertools.combinations(watchable, r) for r in range(len(watchable) + 1)
            ):
                found.append(Action(split, exits, watch=watch))
    return found


@pytest.mark.parametrize("alpha", [None, 0.0, 0.5, 1.0])
def test_every_action_is_what_a_walk_gives(alpha: float | None) -> None:
    trace = drawn()
    simulator = Simulator(trace, COST, (0.4, 0.75))
    for action in actions():
        outcome = simulator.outcome(action, alpha)
        for sample in range(len(trace)):
            done = walk(trace, sample, action, ALPHAS, alpha)
            assert outcome.stopped[sample] == done.stage
            assert EXITS[outcome.column[sample]] == done.answer
            assert outcome.offloaded[sample] == done.sent
            assert outcome.cost[sample] == COST.paid(done.stage, done.sent, done.seen)
            assert simulator.observation(action, sample, alpha) == observed(trace, sample, done, COST)


def test_the_hidden_confidence_is_told_to_nobody_who_may_not_know_it() -> None:
    trace = drawn()
    simulator = Simulator(trace, COST)
    action = Action(0, (0,))
    sure = int(np.argmax(trace.confidence[:, 0] >= 0.5))  # type: ignore[index]
    assert simulator.observation(action, sure).hidden_final is None
    assert simulator.observation(action, sure).final_confidence is None
    told = simulator.observation(action, sure, reveals=True)
    assert told.hidden_final == float(trace.confidence[sure, -1])  # type: ignore[index]
    assert told.final_confidence is None


def test_arms_are_the_papers() -> None:
    simulator = Simulator(drawn(), COST)
    assert simulator.context.arms == EXITS
    assert simulator.arm(2) == Action(2, (2,))
    assert simulator.arm(2, watches=True) == Action(2, (2,), watch=(0,))
    assert simulator.arm(2, watches=True, audited=True) == Action(2, (), watch=(0, 2))
    assert simulator.arm(3, watches=True) == Action(3, (), watch=(0, 2))
    for watches in (False, True):
        problem = simulator.problem(watches=watches)
        for i, k in enumerate(problem.arms):
            outcome = simulator.outcome(simulator.arm(k, watches=watches))
            paid = np.where(problem.sure[:, i], problem.local_cost[i], problem.offload_cost[i])
            np.testing.assert_array_equal(outcome.cost, paid)
            np.testing.assert_array_equal(outcome.offloaded, ~problem.sure[:, i])


def test_what_cannot_be_simulated() -> None:
    meta, t = TraceMeta(bundle="b", exits=(3,), depths=DEPTHS), drawn()
    with pytest.raises(TraceError, match="no early exit"):
        Simulator(Trace(t.prediction[:, 2:].copy(), None, t.label, meta))
    with pytest.raises(TraceError, match="2 samples are fewer than the 3 exits"):
        Simulator(drawn(2))
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            Simulator(drawn(), alpha=alpha)
    with pytest.raises(ConfigError, match=r"a threshold for each of the exits \(0, 2\), got 1"):
        Simulator(drawn(), alpha=(0.5,))
    with pytest.raises(ConfigError, match="2 stages, the trace of 4"):
        Simulator(drawn(), CostModel.in_layers((1, 2)))
    for action in (Action(4), Action(-2), Action(1, (1,)), Action(0, (0,), watch=(2,)), Action(2, (7,))):
        with pytest.raises(ActionError, match="none that this edge can do"):
            Simulator(drawn()).outcome(action)


def test_without_confidences_no_gate_is_closed_and_nobody_is_told_how_sure_an_exit_is() -> None:
    trace = drawn(confidence=None)
    with pytest.raises(ConfigError, match=r"no exit can reach a threshold of 0\.5"):
        Simulator(trace, alpha=0.5)
    simulator = Simulator(trace, COST, 0.0)
    for action in actions():
        outcome = simulator.outcome(action)
        for sample in range(len(trace)):
            done = walk(trace, sample, action, {0: 0.0, 2: 0.0}, None)
            assert (outcome.stopped[sample], EXITS[outcome.column[sample]]) == (done.stage, done.answer)
    with pytest.raises(TraceError, match=r"exit 0 cannot reach 0\.5"):
        simulator.outcome(Action(0, (0,)), 0.5)
    seen = simulator.observation(Action(2, (2,), watch=(0,)), 1)
    assert seen.labels == {0: trace.prediction[1, 0], 2: trace.prediction[1, 1]}
    assert np.isnan(seen.confidence)
    assert seen.final_confidence is None
    for asks in (lambda c: c[0], lambda c: c.get(0), len, list, lambda c: 0 in c):
        with pytest.raises(TraceError, match="no confidences"):
            asks(seen.confidences)
