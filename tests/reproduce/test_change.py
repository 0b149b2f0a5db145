"""Everybody at every level, and a world that changes half-way."""

from __future__ import annotations

import numpy as np
import pytest
from recorded_traces import made_up, write_traces

from offramp.errors import TraceError
from offramp.policy.cost import CostModel
from offramp.replay.comparisons import asked
from offramp.replay.replay import replay
from offramp.reproduce.change import FORMS, change_facts, change_table, changed, find_change, sentence
from offramp.reproduce.gates import gates_of
from offramp.reproduce.level_tables import averages_table, bars_table, levels_table
from offramp.reproduce.levels import AUDITED, BEST, LEARNER, play_levels
from offramp.reproduce.recorded import NETWORKS, Recorded, recorded
from offramp.reproduce.traces import DISTORTIONS

DEPTHS = (3, 6, 9, 12, 15, 18, 19)
LEVELS = DISTORTIONS[::6]


def priced(offload: int) -> CostModel:
    return CostModel.in_layers(DEPTHS, gamma=0.1, offload=0.1 * offload)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = write_traces(tmp_path_factory.mktemp("levels"), 1500)
    return recorded(folder, NETWORKS[0], LEVELS, None)


def test_averages_are_those_of_every_level(found: Recorded) -> None:
    gates = gates_of(found)[0]
    setting = play_levels(found.levels, gates, "5γ", priced(5), 2)
    assert setting.levels == ("none", "gaussian_noise:0.1", "gaussian_blur:1")
    alone = [
        replay([t], asked("i-splitee,alpha=0.7"), cost=priced(5), seeds=2).played[0] for t in found.levels.values()
    ]
    learner = setting.policies[LEARNER]
    np.testing.assert_allclose(learner.cost, [p.cost for p in alone])
    np.testing.assert_allclose(learner.accuracy, [p.accuracy for p in alone])
    best = setting.policies[BEST]
    for i, k in enumerate(setting.best):
        arm = setting.policies["edge-only" if k == 6 else f"split-{k}"]
        np.testing.assert_array_equal(best.cost[i], arm.cost[i])
        assert not arm.level_regret[i].any()
    final = setting.final.cost.mean()
    assert final == pytest.approx(1.9)
    assert setting.saved(LEARNER) == pytest.approx(1 - np.mean([p.cost for p in alone]) / 1.9)
    assert setting.points("edge-only") == setting.saved("edge-only") == 0
    assert setting.points("server-only") == 0
    assert setting.arms == (*(f"split-{k}" for k in range(6)), "edge-only")
    # Heads are free and gates are shared, so both papers' learners are one.
    np.testing.assert_array_equal(setting.policies["splitee-s"].cost, learner.cost)
    assert setting.policies[AUDITED].offloaded.mean() > learner.offloaded.mean()
    for table in (bars_table("t", [setting]), averages_table("t", [setting]), levels_table("t", setting)):
        assert "-0.0 " not in table
        assert "i-splitee" in table.lower()


def test_the_change_is_the_first_at_which_the_best_arms_differ_by_enough(found: Recorded) -> None:
    gates = gates_of(found)[0]
    offload, first, second, gap = find_change(found, gates, priced)

    def rewards(o: int, level: str) -> dict[int, float]:
        trace = gates.on(found.levels[level])
        return dict(replay([trace], asked("edge-only"), cost=priced(o), seeds=1).arm_rewards)

    def gap_of(o: int, a: str, b: str) -> float:
        ra, rb = rewards(o, a), rewards(o, b)
        best_a, best_b = max(ra, key=ra.__getitem__), max(rb, key=rb.__getitem__)
        return min(ra[best_a] - ra[best_b], rb[best_b] - rb[best_a])

    pairs = [(a, b) for a in found.levels for b in found.levels]
    assert gap == pytest.approx(gap_of(offload, first, second), abs=1e-6)
    assert gap == pytest.approx(max(gap_of(offload, a, b) for a, b in pairs), abs=1e-6)
    assert gap >= 0.3
    assert max(gap_of(offload - 1, a, b) for a, b in pairs) < 0.3
    assert max(rewards(offload, first), key=rewards(offload, first).__getitem__) < max(
        rewards(offload, second), key=rewards(offload, second).__getitem__
    )


def test_who_forgets_recovers(found: Recorded) -> None:
    change = changed(found, gates_of(found)[0], priced, 2)
    by_name = {played.name: played for played in change.found.played}
    stays, moves = change.found.played[:2]
    half = len(change.found.traces[0])
    # The best arm of either half has no regret there; staying with the other's loses at least the gap an input.
    assert change.regret(stays)[0, np.searchsorted(change.found.steps, half)] == pytest.approx(0, abs=1e-6)
    assert change.second_half(stays).mean() >= 0.29 * half
    assert change.second_half(moves).mean() == pytest.approx(0, abs=1e-6)
    regrets = [change.second_half(by_name[form]).mean() for form in FORMS]
    assert regrets[2] < 0.7 * regrets[0]
    shares = [by_name[form].splits_by_trace[1].get(change.best[1], 0.0) for form in FORMS]
    assert shares[2] > shares[0]
    facts = change_facts(change)
    assert facts["policies"][FORMS[0]]["regret_second_half"] == pytest.approx(regrets[0])  # type: ignore[index]
    assert f"o = {change.offload}γ" in sentence(change)
    assert f"{regrets[0]:.0f}" in change_table(change, "t")


def test_levels_that_are_alike_hold_no_change() -> None:
    plain = made_up("b", None, 200, 0)
    alike = Recorded(NETWORKS[0], {"none": plain, "again": plain}, None)
    with pytest.raises(TraceError, match=r"no two levels have best arms that differ by 0\.3"):
        find_change(alike, gates_of(alike)[0], priced)
