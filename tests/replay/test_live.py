"""A replay against a real edge and its server: the same inputs, policy by policy, give the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import offramp as off
from offramp.datasets import mnist_subset
from offramp.policy.base import Action, Context, Observation, Policy
from offramp.policy.registry import make_policy
from offramp.replay.record import record
from offramp.replay.simulator import Simulator
from offramp.runtime.labelled import Labelled


class Recorder(Policy):
    """Passes everything on to another policy, and keeps what it was told."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.alpha, self.told = policy, policy.alpha, list[tuple[Action, Observation]]()

    def choose(self, context: Context) -> Action:
        return self.policy.choose(context)

    def update(self, action: Action, observation: Observation) -> None:
        self.told.append((action, observation))
        self.policy.update(action, observation)


@pytest.mark.parametrize(
    "name",
    ["i-splitee", "splitee", "splitee-s", "uee-ucb", "cascade", "server-only", "split-0-all"],
)
def test_what_a_policy_is_told_is_what_an_edge_tells_it(digits_bundle: Path, name: str) -> None:
    test = mnist_subset()[1]
    n = 60
    bundle = off.Bundle.load(digits_bundle)
    stages = off.Stages(bundle)
    trace = record(stages, Labelled(test.images[:n], test.labels[:n], "digits"))
    assert trace.confidence is not None
    alpha = 0.8
    live = Recorder(make_policy(name, alpha=alpha, seed=3))
    with off.Edge(bundle, off.Tail(stages), live, deadline_ms=60_000) as edge:  # type: ignore[arg-type]
        edge.context = dataclasses.replace(edge.context, mode="float")  # a trace is of cuts that lose nothing
        results = list(edge.run(test.images[:n]))
        context = edge.context
    assert all(result.status == "ok" for result in results)
    simulator, policy = Simulator(trace, context.cost, alpha), make_policy(name, alpha=alpha, seed=3)
    assert np.abs(trace.confidence[:, :-1] - alpha).min() > 1e-5  # no gate hangs on the last bits of a confidence
    for sample, (action, told) in enumerate(live.told):
        chosen = policy.choose(simulator.context)
        assert (chosen.split, chosen.exits, chosen.watch) == (action.split, action.exits, action.watch)
        seen = simulator.observation(chosen, sample, policy.alpha)
        policy.update(chosen, seen)
        assert (seen.exit, seen.offloaded, seen.failed) == (told.exit, told.offloaded, told.failed)
        assert seen.cost == told.cost
        assert seen.labels == told.labels
        assert seen.confidences == pytest.approx(told.confidences, abs=1e-5)
        assert seen.confidence == pytest.approx(told.confidence, abs=1e-5)
        assert seen.final_confidence == pytest.approx(told.final_confidence, abs=1e-5)
        assert told.hidden_final is None
        assert seen.payload_bytes == told.payload_bytes
        outcome = simulator.outcome(chosen, policy.alpha)
        assert trace.prediction[sample, outcome.column[sample]] == results[sample].label
