"""Replays: every policy as it would have played on an edge, and regret as its definition says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from edge_oracle import observed, walk

from offramp.errors import ConfigError, OfframpError, TraceError
from offramp.policy.base import Action, Context, Observation, Policy
from offramp.policy.cost import CostModel
from offramp.policy.forecast import Forecast
from offramp.policy.registry import POLICIES, make_policy
from offramp.policy.ucb import UpperConfidence
from offramp.replay.comparisons import asked, comparisons
from offramp.replay.play import Maker
from offramp.replay.replay import Replay, replay
from offramp.replay.simulator import Simulator
from offramp.replay.trace import Trace, TraceMeta

DEPTHS = (2, 4, 7, 9)
COST = CostModel.in_layers(DEPTHS, gamma=0.05, offload=0.2, head=0.01)
FORECAST = Forecast(stage_ms=(9, 8, 7, 6), exit_ms=(1, 0, 1, 0), tail_ms=(4, 3, 2, 1), sent_bytes=(40, 30, 20, 10))
EXITS = (0, 2, 3)
ALPHAS = {0: 0.6, 2: 0.7}
NAMES = [
    *(*POLICIES, "split-0", "split-1", "split-2-all", "i-splitee,audit=0.3", "splitee,window=20"),
    *("i-splitee,audit=0.3,send_input=true", "splitee,send_input=true"),
]


def drawn(n: int = 150, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    right = rng.random((n, 3)) < (0.5, 0.7, 0.9)
    prediction = np.where(right, label[:, None], (label[:, None] + 1) % 3)
    confidence = np.clip(rng.normal((0.6, 0.7, 0.85), 0.2, (n, 3)), 0, 1)
    meta = TraceMeta(bundle="b", exits=EXITS, depths=DEPTHS, cut_bytes={"float": (40, 30, 20, 10)})
    return Trace(prediction.astype(np.int32), confidence.astype(np.float32), label.astype(np.int32), meta)


def orders_of(trace: Trace, seeds: int, seed: int) -> list[list[int]]:
    return [np.random.default_rng(seed + r).permutation(len(trace)).tolist() for r in range(seeds)]


def by_the_oracle(trace: Trace, make: Maker, order: list[int], seed: int) -> list[tuple[Action, int, float, bool]]:
    """One run: action, exit that answered, cost, and whether it was sent, per input."""
    policy, found = make(seed), []
    context = Context(
        splits=(-1, 0, 1, 2, 3),
        exits=EXITS[:-1],
        last=3,
        thresholds=(0.6, None, 0.7, None),
        modes={},
        mode="float",
        cost=COST,
        forecast=FORECAST,
    )
    for sample in order:
        action = policy.choose(context)
        done = walk(trace, sample, action, ALPHAS, policy.alpha)
        seen = observed(trace, sample, done, COST)
        if policy.replay_only:
            assert trace.confidence is not None
            seen = dataclasses.replace(seen, hidden_final=float(trace.confidence[sample, -1]))
        policy.update(action, seen)
        found.append((action, done.answer, seen.cost, done.sent))
    return found


def replayed(trace: Trace, name: str, **options: object) -> tuple[Replay, dict[str, Maker]]:
    makers = asked(name)
    kept = {"cost": COST, "forecast": FORECAST, "alpha": (0.6, 0.7), "seeds": 3, "seed": 5, **options}
    return replay([trace], makers, **kept), makers  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_plays_as_it_would_have_on_an_edge(name: str) -> None:
    trace = drawn()
    found, makers = replayed(trace, name)
    for played, make in zip(found.played, makers.values(), strict=True):
        runs = [by_the_oracle(trace, make, o, 5 + r) for r, o in enumerate(orders_of(trace, 3, 5))]
        right = []
        for order, run in zip(orders_of(trace, 3, 5), runs, strict=True):
            named = [trace.prediction[s, EXITS.index(e)] for s, (_, e, *_) in zip(order, run, strict=True)]
            right.append(np.array(named) == trace.label[order])
        np.testing.assert_allclose(played.accuracy, np.mean(right, axis=1))
        np.testing.assert_allclose(played.cost, [np.mean([c for _, _, c, _ in run]) for run in runs])
        np.testing.assert_allclose(played.offloaded, [np.mean([sent for *_, sent in run]) for run in runs])
        splits = [action.split for run in runs for action, *_ in run]
        assert played.splits == pytest.approx({k: splits.count(k) / len(splits) for k in sorted(set(splits))})
        regret = [slow_regret(trace, [a for a, *_ in run], make(0).alpha) for run in runs]
        np.testing.assert_allclose(played.regret, np.array(regret)[:, found.steps - 1], atol=1e-9)


def expected(trace: Trace, action: Action, alpha: float | None, reward: str = "confidence") -> float:
    total = 0.0
    assert trace.confidence is not None
    for s in range(len(trace)):
        done = walk(trace, s, action, ALPHAS, alpha)
        column = EXITS.index(done.answer)
        hit = trace.prediction[s, column] == trace.label[s]
        worth = float(trace.confidence[s, column]) if reward == "confidence" else float(hit)
        total += worth - COST.paid(done.stage, done.sent, done.seen)
    return total / len(trace)


def slow_regret(
    trace: Trace, actions: list[Action], alpha: float | None, reward: str = "confidence"
) -> list[float]:
    """Σ_t E[r(i*)] − E[r(i_t)], each expectation over every sample of the trace."""
    arms = [Action(0, (0,)), Action(2, (2,)), Action(3)]
    best = max(expected(trace, arm, None, reward) for arm in arms)
    known: dict[Action, float] = {}
    so_far, regret = 0.0, []
    for action in actions:
        if action not in known:
            known[action] = best - expected(trace, action, alpha, reward)
        so_far += known[action]
        regret.append(so_far)
    return regret


def test_a_learner_with_a_published_form_shows_both() -> None:
    found, makers = replayed(drawn(), "i-splitee,audit=0.3,c=0.5")
    assert list(makers) == ["i-splitee,audit=0.3,c=0.5", "i-splitee,c=0.5,published=true"]
    assert [played.replay_only for played in found.played] == [False, True]
    assert list(asked("uee-ucb")) == ["uee-ucb"]


def test_compiled_and_driven_play_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = drawn(200)
    compiled, _ = replayed(trace, "i-splitee,audit=0.2")

    def missing(*args: object, **options: object) -> None:
        from offramp.errors import MissingExtraError

        raise MissingExtraError("numba is not there")

    monkeypatch.setattr(UpperConfidence, "replay", missing)
    with pytest.warns(UserWarning, match="numba is not there; until then i-splitee is replayed input by input"):
        driven, _ = replayed(trace, "i-splitee,audit=0.2")
    for a, b in zip(compiled.played, driven.played, strict=True):
        assert a.splits == b.splits
        np.testing.assert_allclose(a.regret, b.regret)
        np.testing.assert_allclose(a.cost, b.cost)


def test_rewards_of_right_answers() -> None:
    trace = drawn()
    found, _ = replayed(trace, "split-2", reward="accuracy")
    assert found.reward == "accuracy"
    slow = {k: expected(trace, Action(k, (k,) if k < 3 else ()), None, "accuracy") for k in EXITS}
    assert found.arm_rewards == pytest.approx(slow)
    assert slow[found.best] == max(slow.values())
    assert found.played[0].regret[0, -1] == pytest.approx(len(trace) * (slow[found.best] - slow[2]))


def test_the_comparisons_of_every_table() -> None:
    trace = drawn()
    assert list(comparisons(trace)) == [
        *("split-0", "split-2", "edge-only", "random", "split-0-all", "server-only", "cascade")
    ]
    bare = dataclasses.replace(trace, confidence=None)
    assert list(comparisons(bare, offload=False)) == ["split-0", "split-2", "edge-only", "random"]
    found = replay([trace], comparisons(trace), cost=COST, seeds=2)
    best = next(p for p in found.played if p.name == ("edge-only" if found.best == 3 else f"split-{found.best}"))
    assert not best.regret.any()
    fixed = [p for p in found.played if p.name in ("split-0", "split-2", "edge-only")]
    assert all(p.regret[0, -1] >= 0 for p in fixed)
    sent = next(p for p in found.played if p.name == "server-only")
    assert sent.cost.tolist() == pytest.approx([0.2] * 2)
    assert sent.offloaded.tolist() == [1.0, 1.0]
    assert sent.accuracy.tolist() == pytest.approx([trace.accuracy[-1]] * 2)  # type: ignore[union-attr]


def test_runs_differ_by_seed_and_are_repeatable() -> None:
    trace = drawn()
    one, again = (replayed(trace, "random")[0].played[0] for _ in range(2))
    assert one.cost.tolist() == again.cost.tolist()
    assert len(set(one.cost.tolist())) > 1
    later = replayed(trace, "random", seed=6)[0].played[0]
    assert later.cost.tolist()[:2] == one.cost.tolist()[1:]


class Noted(Policy):
    """Always the same arm; notes the confidence of exit 0."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def choose(self, context: Context) -> Action:
        return context.action(3, (), (0,))

    def update(self, action: Action, observation: Observation) -> None:
        self.seen.append(observation.confidences[0])


def test_traces_follow_one_another_each_shuffled_in_itself() -> None:
    first, second = drawn(60, 1), drawn(90, 2)
    made: list[Noted] = []

    def make(seed: int) -> Noted:
        made.append(Noted())
        return made[-1]

    found = replay([first, second], {"noted": make, "split-0": asked("split-0")["split-0"]}, cost=COST, seeds=2)
    runs = [np.array(m.seen) for m in made if m.seen]
    assert len(runs) == 2
    for run in runs:
        assert run[:60].tolist() != first.confidence[:, 0].tolist()  # type: ignore[index]
        np.testing.assert_array_equal(np.sort(run[:60]), np.sort(first.confidence[:, 0]))  # type: ignore[index]
        np.testing.assert_array_equal(np.sort(run[60:]), np.sort(second.confidence[:, 0]))  # type: ignore[index]
    assert runs[0].tolist() != runs[1].tolist()
    alone = [replay([t], asked("split-0"), cost=COST, seeds=1).arm_rewards for t in (first, second)]
    together = {k: 0.4 * alone[0][k] + 0.6 * alone[1][k] for k in EXITS}
    assert found.arm_rewards == pytest.approx(together)
    regret = dict(zip(found.steps.tolist(), found.played[1].regret[0].tolist(), strict=True))
    assert regret[60] == pytest.approx(60 * (alone[0][found.best] - alone[0][0]), abs=1e-9)
    assert regret[150] == pytest.approx(150 * (together[found.best] - together[0]), abs=1e-9)


def test_without_labels_accuracy_is_left_out() -> None:
    trace = dataclasses.replace(drawn(), label=np.full(150, -1, np.int32))
    found, _ = replayed(trace, "split-0")
    assert found.played[0].accuracy is None
    with pytest.raises(TraceError, match="not every label is known"):
        replayed(trace, "split-0", reward="accuracy")


def test_without_confidences_only_who_needs_none_plays() -> None:
    bare = dataclasses.replace(drawn(), confidence=None)
    found = replay([bare], asked("uee-ucb"), cost=COST, seeds=2)
    assert (found.reward, found.alpha) == ("accuracy", 0.0)
    assert found.played[0].learns
    for name in ("i-splitee", "splitee", "splitee-s"):
        with pytest.raises(TraceError, match="no confidences"):
            replay([bare], asked(name), cost=COST)
    with pytest.raises(ConfigError, match="no confidences to reward"):
        replay([bare], asked("random"), reward="confidence")


def test_a_policy_that_breaks_the_rules_is_told() -> None:
    class Beyond(Policy):
        def choose(self, context: Context) -> Action:
            return Action(9)

        def update(self, action: Action, observation: Observation) -> None:
            raise AssertionError

    with pytest.raises(OfframpError, match="none that this edge can do"):
        replay([drawn()], {"beyond": lambda seed: Beyond()}, seeds=1)


def test_what_cannot_be_replayed() -> None:
    trace = drawn()
    with pytest.raises(ConfigError, match="at least one trace and one policy"):
        replay([], asked("random"))
    with pytest.raises(ConfigError, match="at least one trace and one policy"):
        replay([trace], {})
    with pytest.raises(ConfigError, match="'mine' is to be a function that makes a policy from a seed, not 'rand"):
        replay([trace], {"mine": "random"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="at least one run"):
        replay([trace], asked("random"), seeds=0)
    deeper = dataclasses.replace(trace, meta=trace.meta.model_copy(update={"depths": (1, 2, 3, 4)}))
    with pytest.raises(TraceError, match="traces of different networks: depths"):
        replay([trace, deeper], asked("random"))
    with pytest.raises(TraceError, match="some have confidences and some have none"):
        replay([trace, dataclasses.replace(trace, confidence=None)], asked("random"))
    with pytest.raises(ConfigError, match="worth its confidence or its accuracy"):
        replay([trace], asked("random"), reward="luck")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("i-spliteee", "did you mean 'i-splitee'"),
        ("i-splitee,audt=0.1", "did you mean 'audit'"),
        ("i-splitee,audit", "'audit' in 'i-splitee,audit' is no OPTION=VALUE"),
        ("i-splitee,audit=much", "audit is float, not 'much'"),
        ("i-splitee,seed=3", "given by --seed"),
        ("i-splitee,audit=1.5", "between 0 and 1"),
        ("i-splitee,mu=-1", "at least 0"),
        ("i-splitee,audit=0.1,published=true", "leave"),
        ("split-0,c=1", "takes no option 'c'"),
        ("", "unknown policy"),
    ],
)
def test_policies_that_cannot_be_typed(wanted: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(wanted)


CONSTANT = [name for name in (*POLICIES, "split-0", "split-1-all") if make_policy(name).constant]


@pytest.mark.parametrize("name", CONSTANT)
def test_a_policy_that_calls_itself_constant_is(name: str) -> None:
    """A replay asks it once, and tells it nothing."""
    policy = make_policy(name)
    assert type(policy).update is Policy.update
    context = Simulator(drawn(), COST).context
    assert len({policy.choose(context) for _ in range(20)}) == 1
