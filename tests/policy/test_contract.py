"""What every registered policy keeps; a policy that is added to `POLICIES` is tested here."""

import inspect
import json
import math
import random

import numpy as np
import pytest
from worlds import ALPHA, COST, HiddenError, Startled, context, drawn, observe, play, problem

from offramp.errors import ActionError, ConfigError, PolicyStateError
from offramp.policy.base import Action
from offramp.policy.cost import CostModel
from offramp.policy.registry import POLICIES, make_policy

OPTIONS = {
    "send_input": True,
    "audit": 0.2,
    "published": True,
    "discount": 0.95,
    "window": 25,
}
LEARNERS = [name for name in POLICIES if "c" in inspect.signature(POLICIES[name]).parameters]
#: name and options: every policy as it is, and with each option that it takes
KINDS = [
    *((name, {}) for name in POLICIES),
    *(
        (name, {option: value})
        for name in POLICIES
        for option, value in OPTIONS.items()
        if option in inspect.signature(POLICIES[name]).parameters
    ),
    *((name, {"drift": Startled}) for name in LEARNERS),
    ("i-splitee", {"drift": Startled, "audit": 0.2}),
]
every = pytest.mark.parametrize(("name", "options"), KINDS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
#: Those that learn from what was seen and forget nothing.
STATIONARY = [
    (name, options)
    for name, options in KINDS
    if name in LEARNERS and not {"discount", "window", "drift"} & set(options)
]
WRONG = [
    *(("alpha", value) for value in (-0.1, 1.1, math.nan)),
    *(("mu", value) for value in (-1.0, math.nan, math.inf)),
    *(("c", value) for value in (-1.0, math.nan, math.inf)),
    *(("audit", value) for value in (-0.1, 1.1, math.nan)),
    *(("discount", value) for value in (0.0, -1.0, 1.01, math.nan)),
    *(("window", value) for value in (0, -3, 2.5, math.inf, math.nan)),
]


def made(name, options, seed=0):
    return make_policy(name, alpha=ALPHA, seed=seed, **options)


@every
def test_the_seed_decides_everything(name, options):
    samples = drawn(1, 120)
    random.seed(1)
    first = play(made(name, options, seed=5), context(), *samples)
    random.seed(2)
    assert play(made(name, options, seed=5), context(), *samples) == first


@every
def test_actions_are_what_the_edge_can_do(name, options):
    for splits in ((-1, 0, 1, 2, 3), (-1, 0, 1), (-1, 0)):
        policy, ctx = made(name, options), context(splits=splits)
        for action in play(policy, ctx, *drawn(2, 40)):
            assert action.split in splits
            assert set(action.watch) <= set(ctx.exits)
            assert all(e <= action.split for e in action.watch)


@every
def test_the_state_survives_json_and_goes_on_identically(name, options):
    policy, ctx = made(name, options, seed=3), context()
    play(policy, ctx, *drawn(3, 150))
    state = json.loads(json.dumps(policy.state(), allow_nan=False))
    restored = made(name, options, seed=99)
    restored.restore(state)
    assert restored.state() == policy.state()
    assert play(restored, context(), *drawn(4, 150)) == play(policy, ctx, *drawn(4, 150))
    assert restored.state() == policy.state()


@every
def test_a_fresh_state_is_one_too(name, options):
    restored = made(name, options)
    restored.restore(json.loads(json.dumps(made(name, options).state())))
    assert play(restored, context(), *drawn(5, 40)) == play(made(name, options), context(), *drawn(5, 40))


@every
def test_what_is_no_state_of_this_policy_is_refused_and_changes_nothing(name, options):
    policy = made(name, options)
    play(policy, context(), *drawn(6, 60))
    before = policy.state()
    others = [make_policy(other, alpha=ALPHA).state() for other in POLICIES if other != name]
    for wrong in [*others, {}, [], None, 7, "state", {**before, "policy": "x"}, {**before, "more": 1}]:
        with pytest.raises(PolicyStateError):
            policy.restore(wrong)
    assert policy.state() == before


@every
def test_nothing_is_read_that_was_not_observed(name, options):
    policy = made(name, options)
    assert policy.replay_only is ("published" in options)
    # `worlds.Seen` raises where a policy reads what nobody saw; offloads that fail are among them.
    assert len(play(policy, context(), *drawn(7, 200), failing=range(0, 200, 3))) == 200
    json.dumps(policy.state(), allow_nan=False)


def test_an_observation_raises_where_nothing_was_seen():
    policy, action = made("i-splitee", {}), Action(1, (1,))
    seen = observe(policy, context(), action, (0.2, 0.9, 0.9, 0.9), (0, 0, 0, 0))
    assert seen.confidences == {1: 0.9}
    for read in (
        lambda: seen.final_confidence,
        lambda: seen.hidden_final,
        lambda: seen.confidences[0],
        lambda: seen.labels.get(3),
    ):
        with pytest.raises(HiddenError):
            read()


@pytest.mark.parametrize("name", POLICIES)
def test_wrong_options_are_refused(name):
    takes = inspect.signature(POLICIES[name]).parameters
    for option, value in WRONG:
        if option in takes:
            with pytest.raises(ConfigError, match=option):
                make_policy(name, **{option: value})
    with pytest.raises(ConfigError, match="nowhere"):
        make_policy(name, nowhere=1)


@pytest.mark.parametrize("name", sorted({name for name, _ in STATIONARY}))
def test_a_learner_refuses_what_it_did_not_choose(name):
    policy = made(name, {})
    seen = observe(policy, context(), Action(-1), (0.9,) * 4, (0,) * 4)
    with pytest.raises(ActionError, match="before it chose"):
        policy.update(Action(0, (0,)), seen)
    policy.choose(context())
    with pytest.raises(ActionError, match="no such arm"):
        policy.update(Action(-1), seen)
    with pytest.raises(ConfigError, match="not both"):
        made(name, {"discount": 0.9, "window": 10})


# --- learning -------------------------------------------------------------------------------------------


def best_at(arm, samples=8000):
    """Samples on which an arm is best for every learner: exits before it are unsure, and disagree less."""
    rng = np.random.default_rng(arm)
    confidence = rng.uniform(0.85, 1.0, (samples, 3))
    confidence[:, :arm] = rng.uniform(0.05, 0.3, (samples, arm))
    prediction = np.ones((samples, 3), np.int32)
    prediction[:, :arm] = 0  # the exits from the best on agree with each other
    prediction[:, 0] = 0
    if arm:
        prediction[:, 1:arm] = (rng.random((samples, max(arm - 1, 0))) < 0.1).astype(np.int32)
        prediction[:, arm:] = (rng.random((samples, 1)) < 0.9).astype(np.int32)
    else:
        prediction[:, 1:] = 0
    return confidence, prediction


@pytest.mark.parametrize("arm", [0, 1, 2])
@pytest.mark.parametrize(("name", "options"), STATIONARY)
def test_stationary_learners_find_the_best_arm_and_regret_grows_sublinearly(name, options, arm):
    cost = CostModel.in_layers((2, 6, 8), gamma=0.05, offload=0.5)
    policy = made(name, {**options, "c": 0.3})
    confidence, prediction = best_at(arm)
    world = problem(confidence, cost=cost, prediction=prediction, heads=policy.watches)
    earned = rewards(name, world)
    assert earned.argmax() == arm
    orders = np.stack([np.random.default_rng(run).permutation(len(world)) for run in range(6)])
    regret = (earned.max() - earned)[policy.replay(world, orders)]
    half = len(world) // 2
    early, late = regret[:, :half].sum(axis=1).mean(), regret[:, half:].sum(axis=1).mean()
    # Regret of t^p has a second half of 2^p − 1 times the first: p = 1 gives 1, p = 1/2 gives .41.
    assert late <= 0.41 * early
    assert (regret[:, half:] == 0).mean() > 0.9


def rewards(name, world):
    """Per arm the mean of what it would have earned, of everything recorded."""
    if name == "uee-ucb":
        return (world.prediction != world.prediction[:, :1]).mean(axis=0) - world.local_cost
    answered = np.where(world.sure, world.confidence, world.confidence[:, -1:])
    return (answered - np.where(world.sure, world.local_cost, world.offload_cost)).mean(axis=0)


def misleading(samples=20_000):
    """Half of the time the first exit is sure and cheap; otherwise it would have to offload, which is dear.

    Whoever plays the second arm, which is the best and always sure, sees only the first one's good half.
    """
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.88, 0.98, (samples, 3))
    confidence[rng.random(samples) < 0.5, 0] = 0.2
    return problem(confidence, cost=CostModel.in_layers((1, 3, 9), gamma=0.1, offload=0.9))


def test_audits_take_the_bias_away_that_gates_leave():
    world = misleading()
    earned = rewards("i-splitee", world)
    assert earned.argmax() == 1
    orders = np.stack([np.random.default_rng(run).permutation(len(world)) for run in range(6)])
    late = {}
    for kind, options in {"seen": {}, "audited": {"audit": 0.1}, "published": {"published": True}}.items():
        policy = made("i-splitee", {**options, "c": 0.3})
        assert policy.biased is (kind == "seen")
        late[kind] = (policy.replay(world, orders)[:, 10_000:] == 1).mean()
    assert late["published"] > 0.97
    assert late["audited"] > 0.97
    assert late["seen"] < 0.8


@pytest.mark.parametrize("audit", [0.02, 0.1, 0.5, 1.0])
def test_what_is_learned_with_audits_is_unbiased(audit):
    """The mean that arm 0 has learned from plays of arm 1 is its true reward, within 5 standard errors."""
    world = misleading()
    policy = made("i-splitee", {"audit": audit})
    ctx = context(3, cost=CostModel.in_layers((1, 3, 9), gamma=0.1, offload=0.9))
    policy.choose(ctx)
    rng = np.random.default_rng(1)
    for row in world.confidence:
        action = Action(1, (), watch=(0, 1)) if rng.random() < audit else Action(1, (1,), watch=(0,))
        policy.update(action, observe(policy, ctx, action, row, (0, 0, 0)))
    truth = rewards("i-splitee", world)[0]
    # What varies is the difference of C_L and C_1, of standard deviation .041, in half of the samples.
    error = 5 * 0.041 * math.sqrt(0.5 / audit / len(world))
    assert policy.counts[0] == len(world)
    assert policy.means[0] == pytest.approx(truth, abs=error)
    assert error < 0.011


def test_an_audit_has_no_gate_and_shows_its_exit():
    policy = made("i-splitee", {"audit": 1.0})
    actions = play(policy, context(), *drawn(8, 6))
    assert actions[:4] == [
        Action(0, (), watch=(0,)),
        Action(1, (), watch=(0, 1)),
        Action(2, (), watch=(0, 1, 2)),
        Action(3, (), watch=(0, 1, 2)),
    ]
    assert COST.paid(0, True) == observe(policy, context(), actions[0], (0.9,) * 4, (0,) * 4).cost


def test_a_published_policy_is_not_audited():
    with pytest.raises(ConfigError, match="published"):
        make_policy("i-splitee", published=True, audit=0.1)


@pytest.mark.parametrize("options", [{"discount": 0.98}, {"window": 60}], ids=["discount", "window"])
@pytest.mark.parametrize("name", sorted({name for name, _ in STATIONARY}))
def test_what_forgets_follows_a_change(name, options):
    cost = CostModel.in_layers((2, 6, 8), gamma=0.05, offload=0.5)
    first, second = best_at(0, 1500), best_at(1, 1500)
    confidence, prediction = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    world = problem(confidence, cost=cost, prediction=prediction, heads=made(name, {}).watches)
    order = np.arange(len(world))[None].repeat(3, axis=0)
    settled = {
        kind: (made(name, {**chosen, "c": 0.15}).replay(world, order)[:, 1600:2200] == 1).mean()
        for kind, chosen in {"forgets": options, "keeps": {}}.items()
    }
    assert settled["forgets"] > 0.7
    assert settled["forgets"] > settled["keeps"] + 0.1
