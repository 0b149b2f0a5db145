import json
import sys

import numpy as np
import pytest
from worlds import ALPHA, Startled, context, drawn, observe, play

from offramp.errors import ConfigError, MissingExtraError, PolicyStateError
from offramp.policy.base import Action, Observation
from offramp.policy.cost import CostModel
from offramp.policy.drift import DriftReset
from offramp.policy.fixed import EdgeOnly
from offramp.policy.i_splitee import ISplitEE
from offramp.policy.registry import make_policy

LEARNERS = ["i-splitee", "splitee", "splitee-s", "uee-ucb"]
COST = CostModel.in_layers((3, 6, 9, 12), gamma=0.03, offload=0.4)


class Recorder:
    """A detector that keeps what it is told, and raises the alarm at one number."""

    def __init__(self, alarm_at=None):
        self.told, self.alarm_at, self.drift_detected = [], alarm_at, False

    def update(self, x):
        self.told.append(x)
        self.drift_detected = len(self.told) == self.alarm_at


class Made:
    """Makes recorders and keeps them."""

    def __init__(self, *alarms):
        self.alarms, self.kept = list(alarms), []

    def __call__(self):
        self.kept.append(Recorder(self.alarms.pop(0) if self.alarms else None))
        return self.kept[-1]


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("options", [{}, {"discount": 0.95}, {"window": 25}], ids=str)
def test_without_an_alarm_it_plays_as_the_learner_alone(name, options):
    watched = make_policy(name, alpha=ALPHA, drift=Recorder, **options)
    alone = make_policy(name, alpha=ALPHA, **options)
    assert play(watched, context(), *drawn(1)) == play(alone, context(), *drawn(1))
    assert watched.state() == alone.state()
    assert watched.alarms == 0


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("options", [{}, {"discount": 0.95}, {"window": 25}], ids=str)
def test_after_an_alarm_it_plays_as_a_fresh_learner_from_that_input_on(name, options):
    confidence, prediction = drawn(2, 120)
    confidence[:80] = np.maximum(confidence[:80], 0.13)
    confidence[80, :] = 0.05  # whatever arm is played, this one startles
    confidence[81:] = np.maximum(confidence[81:], 0.13)
    policy = make_policy(name, alpha=ALPHA, drift=Startled, **options)
    ctx = context()
    played = play(policy, ctx, confidence[:81], prediction[:81])
    assert policy.alarms == 1
    fresh = make_policy(name, alpha=ALPHA, **options)
    fresh.choose(context())
    fresh.update(played[80], observe(fresh, context(), played[80], confidence[80], prediction[80]))
    assert policy.state() == fresh.state()
    rest = confidence[81:], prediction[81:]
    assert play(policy, ctx, *rest) == play(fresh, context(), *rest)


def test_the_draws_of_audits_go_on_over_an_alarm():
    policy = make_policy("i-splitee", alpha=ALPHA, audit=0.3, seed=4, drift=Startled)
    play(policy, context(), *drawn(3, 200))
    assert policy.alarms > 3
    assert (policy.state()["seed"], policy.state()["step"]) == (4, 200)


def test_every_exit_up_to_the_split_has_a_detector_of_its_own_and_an_alarm_renews_all():
    made = Made(None, None, 3)  # the first is only looked at; the second and third watch exits 0 and 1
    policy, ctx = DriftReset(ISplitEE(alpha=ALPHA), made), context()
    policy.choose(ctx)
    action = Action(1, (1,), watch=(0,))
    for t in range(5):
        seen = {0: 0.2 + t / 100, 1: 0.9}
        # Exit 2 was run because a server failed: its inputs are not everybody's.
        policy.update(action, Observation(confidences={**seen, 2: 0.0}, exit=1, confidence=0.9))
    assert [recorder.told for recorder in made.kept[1:]] == [
        pytest.approx([0.2, 0.21, 0.22]),
        [0.9] * 3,
        pytest.approx([0.23, 0.24]),
        [0.9] * 2,
    ]
    assert policy.alarms == 1


@pytest.mark.parametrize("name", LEARNERS)
def test_a_state_is_the_learners_and_detectors_start_anew(name):
    made = Made()
    policy = make_policy(name, alpha=ALPHA, drift=made)
    play(policy, context(), *drawn(4, 60))
    state = json.loads(json.dumps(policy.state()))
    alone = make_policy(name, alpha=ALPHA)
    alone.restore(state)
    assert alone.state() == state
    before = len(made.kept)
    policy.restore(state)
    play(policy, context(), *drawn(5, 1))
    assert len(made.kept) > before
    assert len(made.kept[-1].told) == 1
    with pytest.raises(PolicyStateError, match=name):
        policy.restore({**state, "policy": "x"})


def test_a_published_learner_stays_one_for_replays():
    assert make_policy("i-splitee", published=True, drift=Startled).replay_only
    assert make_policy("i-splitee", alpha=0.7, drift=Startled).alpha == 0.7


@pytest.mark.parametrize(
    ("name", "drift", "said"),
    [
        ("i-splitee", "advin", "not 'advin'; did you mean 'adwin'"),
        ("i-splitee", "zzz", r"a drift detector is 'adwin', .*, not 'zzz'$"),
        ("i-splitee", 3, "not 3$"),
        ("i-splitee", Recorder(), "a function that makes one"),
        ("i-splitee", dict, "update"),
        ("cascade", "adwin", "cascade takes no option 'drift'"),
        ("random", "adwin", "random takes no option 'drift'"),
        ("server-only", "adwin", "server-only takes no option 'drift'"),
        ("split-1", "adwin", "split-1 takes no option 'drift'"),
    ],
)
def test_what_is_no_detector_or_no_learner_is_refused(name, drift, said):
    with pytest.raises(ConfigError, match=said):
        make_policy(name, drift=drift)


def test_only_learners_are_wrapped():
    with pytest.raises(ConfigError, match="'edge only' learns nothing"):
        DriftReset(EdgeOnly(), Startled)
    with pytest.raises(ConfigError, match="'i-splitee' learns nothing"):
        DriftReset("i-splitee", Startled)


def test_without_river_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "river", None)
    monkeypatch.delitem(sys.modules, "river.drift", raising=False)
    with pytest.raises(MissingExtraError, match=r"needs river, .*pip install 'offramp\[drift\]'"):
        make_policy("i-splitee", drift="adwin")
    make_policy("i-splitee", drift=Startled)


# --- the real detector --------------------------------------------------------------------------------


def confidences(rng, samples, means):
    """Of exits with these means, as spread out as a trained network's, and alike on the same input."""
    spread = rng.normal(0, 0.15, (samples, 1)) + rng.normal(0, 0.1, (samples, len(means)))
    return np.clip(np.asarray(means) + spread, 0, 1)


#: First nobody but the last exit is sure and arm 3 is best; then the first exit is as sure as any, and arm 0 is.
BEFORE, AFTER = (0.35, 0.4, 0.5, 0.9), (0.7, 0.7, 0.7, 0.6)


def test_rewards_would_raise_false_alarms_where_confidences_raise_none():
    """Why rewards are not watched: while SplitEE finds its best arm, only what it earns changes."""
    drift = pytest.importorskip("river.drift", reason="river is not installed: pip install 'offramp[drift]'")
    alarms, false = 0, 0
    for seed in range(20):
        policy, ctx, earned = make_policy("splitee", alpha=0.6, drift="adwin"), context(cost=COST), drift.ADWIN()
        for row in confidences(np.random.default_rng(seed), 3000, BEFORE):
            action = policy.choose(ctx)
            seen = observe(policy, ctx, action, row, (0,) * 4)
            policy.update(action, seen)
            earned.update(seen.confidence - seen.cost)
            false += earned.drift_detected
        alarms += policy.alarms
    assert alarms == 0
    assert false > 5


def test_a_change_is_found_that_the_arm_played_does_not_show():
    """Exit 0 becomes sure while arm 3, which is played, earns what it did."""
    pytest.importorskip("river", reason="river is not installed: pip install 'offramp[drift]'")
    for seed in range(5):
        rng, ctx = np.random.default_rng(seed), context(cost=COST)
        policy = make_policy("i-splitee", alpha=0.6, c=0.3, drift="adwin")
        zeros = np.zeros((600, 4), np.int32)
        before = play(policy, ctx, confidences(rng, 600, BEFORE), zeros)
        assert {action.split for action in before[-100:]} == {3}
        assert policy.alarms == 0
        play(policy, ctx, confidences(rng, 100, (0.8, *BEFORE[1:])), zeros)
        assert policy.alarms == 1


@pytest.mark.parametrize("name", LEARNERS)
def test_a_world_that_stays_raises_no_alarm_while_the_learner_moves(name):
    pytest.importorskip("river", reason="river is not installed: pip install 'offramp[drift]'")
    alarms, arms = 0, set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        policy = make_policy(name, alpha=0.6, drift="adwin")
        prediction = rng.integers(0, 2, (1500, 4)).astype(np.int32)
        played = play(policy, context(cost=COST), confidences(rng, 1500, (0.55, 0.75, 0.8, 0.85)), prediction)
        alarms, arms = alarms + policy.alarms, arms | {action.split for action in played[200:]}
    assert alarms == 0
    assert len(arms) > 1


@pytest.mark.parametrize("name", ["i-splitee", "splitee-s"])
def test_a_change_is_found_within_a_hundred_inputs_and_the_new_best_arm_with_it(name):
    pytest.importorskip("river", reason="river is not installed: pip install 'offramp[drift]'")
    found, late = [], {"watched": [], "alone": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        confidence = np.concatenate([confidences(rng, 1500, BEFORE), confidences(rng, 500, AFTER)])
        prediction = np.zeros(confidence.shape, np.int32)
        for kind, options in {"watched": {"drift": "adwin"}, "alone": {}}.items():
            policy, ctx = make_policy(name, alpha=0.6, c=0.3, **options), context(cost=COST)
            alarms, actions = [], []
            for t in range(len(confidence)):
                action = policy.choose(ctx)
                policy.update(action, observe(policy, ctx, action, confidence[t], prediction[t]))
                actions.append(action.split)
                alarms.append(getattr(policy, "alarms", 0))
            late[kind].append(np.mean(np.array(actions[1600:]) == 0))
            if kind == "watched":
                assert alarms[1499] == 0
                found.append(alarms.index(1) - 1500)
    assert max(found) < 100
    assert np.mean(late["watched"]) > 0.8
    assert np.mean(late["alone"]) < 0.2
