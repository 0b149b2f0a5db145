import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import ActionError, ConfigError
from offramp.policy.base import Action, Context, Observation
from offramp.policy.cost import CostModel
from offramp.policy.i_splitee import ISplitEE


def context(n=3, *, splits=None, exits=None, thresholds=None, depths=None):
    last = n - 1
    return Context(
        splits=tuple(range(-1, n)) if splits is None else splits,
        exits=tuple(range(last)) if exits is None else exits,
        last=last,
        thresholds=thresholds or (None,) * n,
        modes={},
        mode="float",
        cost=CostModel.in_layers(depths or tuple(3 * (i + 1) for i in range(n))),
    )


def seen(action, confidences, alpha, ctx):
    """What an edge would report: exits up to the split, the last one only if it was really run."""
    k, last = action.split, ctx.last
    if k == last:
        final, exit_index, sent = confidences[last], last, False
    elif confidences[k] >= alpha:
        final, exit_index, sent = None, k, False
    else:
        final, exit_index, sent = confidences[last], last, True
    evaluated = {i for i in (*action.watch, k) if i in (*ctx.exits, last)}
    return Observation(
        confidences={i: confidences[i] for i in evaluated},
        final_confidence=final,
        exit=exit_index,
        confidence=confidences[exit_index],
        offloaded=sent,
        cost=ctx.cost.paid(k, sent),
    )


def oracle(samples, arms, depths, *, alpha, mu, c, gamma=0.1, o=0.5):
    """PAPERS.md §3 in its plainest form, every reward kept."""
    last = len(depths) - 1
    rewards = {arm: [] for arm in arms}
    choices = []
    for t, confidence in enumerate(samples):
        fresh = [arm for arm in arms if not rewards[arm]]
        if fresh:
            k = fresh[0]
        else:
            index = {
                arm: sum(rewards[arm]) / len(rewards[arm]) + c * math.sqrt(math.log(t + 1) / len(rewards[arm]))
                for arm in arms
            }
            k = max(arms, key=index.get)
        choices.append(k)
        final_is_known = k == last or confidence[k] < alpha
        for i in arms:
            if i > k:
                continue
            if i == last:
                rewards[i].append(confidence[last] - mu * gamma * depths[i])
            elif confidence[i] >= alpha:
                rewards[i].append(confidence[i] - mu * gamma * depths[i])
            elif final_is_known:
                rewards[i].append(confidence[last] - mu * (gamma * depths[i] + o))
    return choices, rewards


def play(policy, ctx, samples, alpha):
    choices = []
    for confidence in samples:
        action = policy.choose(ctx)
        choices.append(action.split)
        policy.update(action, seen(action, confidence, alpha, ctx))
    return choices


def drawn(seed, n, arms=3):
    rng = random.Random(seed)
    return [[rng.uniform(0.2, 1.0) for _ in range(arms)] for _ in range(n)]


def test_a_small_example_by_hand():
    # Depths 3, 6, 9: a level costs .3; α = .5.
    ctx, policy = context(), ISplitEE(alpha=0.5)
    samples = [
        (0.6, 0.0, 0.9),  # arm 0 answers: .6 − .3
        (0.4, 0.7, 0.9),  # arm 1 answers: .7 − .6; arm 0 would have offloaded, C_L unseen
        (0.2, 0.8, 1.0),  # arm 2: 1 − .9; arm 1 .8 − .6; arm 0 1 − (.3 + .5), C_L seen
    ]
    assert play(policy, ctx, samples, 0.5) == [0, 1, 2]
    assert policy.counts == {0: 2, 1: 2, 2: 1}
    assert policy.means == pytest.approx({0: 0.25, 1: 0.15, 2: 0.1})
    # Indices at t = 3: .25 + √(ln 4/2) = 1.083, .15 + .833 = .983, .1 + √(ln 4) = 1.277
    action = policy.choose(ctx)
    assert action.split == 2
    policy.update(action, seen(action, (0.1, 0.1, 0.9), 0.5, ctx))
    # Arm 0: (.3 + .2 + .1)/3; arm 1: (.1 + .2 − .2)/3; arm 2: (.1 + 0)/2
    assert policy.means == pytest.approx({0: 0.2, 1: 0.1 / 3, 2: 0.05})
    # At t = 4: .2 + √(ln 5/3) = .932, .033 + .732 = .766, .05 + √(ln 5/2) = .947
    assert policy.choose(ctx).split == 2


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    mu=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    c=st.sampled_from([0.1, 0.5, 1.0]),
    depths=st.sampled_from([(3, 6, 9), (3, 6, 9, 12, 15, 18, 19), (2, 19), (7,)]),
    holes=st.booleans(),
)
def test_chooses_and_learns_as_the_oracle(seed, alpha, mu, c, depths, holes):
    n = len(depths)
    exits = tuple(i for i in range(n - 1) if not (holes and i % 2))
    ctx = context(n, depths=depths, exits=exits)
    policy = ISplitEE(alpha=alpha, mu=mu, c=c)
    samples = drawn(seed, 120, n)
    choices, rewards = oracle(samples, ctx.arms, depths, alpha=alpha, mu=mu, c=c)
    assert play(policy, ctx, samples, alpha) == choices
    assert policy.counts == {arm: len(values) for arm, values in rewards.items()}
    assert policy.means == pytest.approx({arm: sum(v) / len(v) if v else 0.0 for arm, v in rewards.items()})
    assert policy.plays == len(samples)


def test_every_arm_is_played_once_first_the_shallowest_first():
    ctx, policy = context(5), ISplitEE(alpha=0.0)
    assert play(policy, ctx, drawn(0, 5, 5), 0.0) == [0, 1, 2, 3, 4]


def test_of_equal_indices_the_shallowest():
    ctx, policy = context(), ISplitEE(alpha=0.5, mu=0.0)
    play(policy, ctx, [(0.7, 0.7, 0.7)], 0.5)  # arm 0 seen once
    policy.restore({**policy.state(), "counts": [4, 4, 4], "sums": [2.8, 2.8, 2.8]})
    assert policy.means == {0: 0.7, 1: 0.7, 2: 0.7}
    assert policy.choose(ctx).split == 0


def test_the_action_is_the_papers_arm_and_watches_what_lies_before():
    ctx, policy = context(4, exits=(0, 2)), ISplitEE()
    actions = []
    for confidence in drawn(1, 3, 4):
        actions.append(policy.choose(ctx))
        policy.update(actions[-1], seen(actions[-1], confidence, 0.5, ctx))
    assert actions == [Action(0, (0,)), Action(2, (2,), watch=(0,)), Action(3, (), watch=(0, 2))]


def test_an_unseen_final_confidence_teaches_nothing():
    ctx, policy = context(), ISplitEE(alpha=0.5)
    policy.choose(ctx)
    policy.update(
        Action(1, (1,), watch=(0,)),
        Observation(confidences={0: 0.4, 1: 0.9}, exit=1, confidence=0.9, cost=0.6),
    )
    assert policy.counts == {0: 0, 1: 1, 2: 0}


def test_deeper_arms_are_not_taught():
    ctx, policy = context(), ISplitEE(alpha=0.5)
    policy.choose(ctx)
    policy.update(
        Action(0, (0,)),
        # A fall-back ran everything; arm 1 and 2 were seen but not by playing them.
        Observation(
            confidences={0: 0.4, 1: 0.9, 2: 0.9}, final_confidence=0.9, exit=2, confidence=0.9, offloaded=True
        ),
    )
    assert policy.counts == {0: 1, 1: 0, 2: 0}


def test_an_exit_that_was_not_evaluated_teaches_nothing():
    ctx, policy = context(), ISplitEE(alpha=0.5)
    policy.choose(ctx)
    policy.update(Action(2), Observation(confidences={2: 0.9}, final_confidence=0.9, exit=2, confidence=0.9))
    assert policy.counts == {0: 0, 1: 0, 2: 1}


@pytest.mark.parametrize(("confidence", "cost"), [(0.4, 1.1), (0.0, 0.8)])
def test_a_failed_offload_is_rewarded_with_what_was_answered_less_what_was_paid(confidence, cost):
    ctx, policy = context(), ISplitEE(alpha=0.5, mu=2.0)
    policy.choose(ctx)
    policy.update(
        Action(1, (1,), watch=(0,)),
        Observation(confidences={0: 0.6, 1: 0.4}, confidence=confidence, offloaded=True, failed=True, cost=cost),
    )
    assert policy.means[1] == pytest.approx(confidence - 2.0 * cost)
    assert policy.means[0] == pytest.approx(0.6 - 2.0 * 0.3)
    assert policy.counts == {0: 1, 1: 1, 2: 0}


@pytest.mark.parametrize("final", [None, 0.9])
def test_after_a_failed_offload_an_unsure_shallower_arm_fares_alike(final):
    # Also where the edge went on to the last exit: what it would have earned there by offloading is not to be had.
    ctx, policy = context(), ISplitEE(alpha=0.5, mu=2.0)
    policy.choose(ctx)
    seen = {"exit": 1, "confidence": 0.4} if final is None else {"exit": 2, "confidence": final}
    policy.update(
        Action(1, (1,), watch=(0,)),
        Observation(
            confidences={0: 0.4, 1: 0.4}, final_confidence=final, offloaded=True, failed=True, cost=1.1, **seen
        ),
    )
    assert policy.counts == {0: 1, 1: 1, 2: 0}
    assert policy.means[0] == policy.means[1] == pytest.approx(seen["confidence"] - 2.0 * 1.1)


def test_an_audit_that_fails_tells_of_no_other_arm():
    ctx, policy = context(), ISplitEE(alpha=0.5, audit=0.5)
    policy.choose(ctx)
    policy.update(
        Action(1, (), watch=(0, 1)),
        Observation(confidences={0: 0.4, 1: 0.6}, confidence=0.6, exit=1, offloaded=True, failed=True, cost=1.1),
    )
    assert policy.counts == {0: 0, 1: 1, 2: 0}


def test_without_alpha_the_bundles_thresholds_decide():
    ctx = context(thresholds=(0.9, 0.3, None))
    policy = ISplitEE(alpha=None)
    policy.choose(ctx)
    policy.update(
        Action(1, (1,), watch=(0,)), Observation(confidences={0: 0.6, 1: 0.4}, exit=1, confidence=0.4, cost=0.6)
    )
    # .6 < .9: arm 0 would have offloaded, unseen; .4 ≥ .3: arm 1 answered.
    assert policy.counts == {0: 0, 1: 1, 2: 0}
    assert policy.means[1] == pytest.approx(0.4 - 0.6)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_converges_on_the_best_arm(best):
    rng = random.Random(best)
    sure = [
        lambda: (rng.uniform(0.85, 1.0), rng.uniform(0.85, 1.0), 1.0),  # the first exit is sure already
        lambda: (rng.uniform(0.1, 0.4), rng.uniform(0.9, 1.0), 1.0),  # only the second is
        lambda: (rng.uniform(0.1, 0.3), rng.uniform(0.1, 0.3), 1.0),  # none is: paying o is wasted
    ][best]
    # Arm 2 must not be dearer than offloading in the last case: depths 3, 6, 7.
    ctx = context(depths=(3, 6, 7))
    policy = ISplitEE(alpha=0.5, c=0.3)
    choices = play(policy, ctx, [sure() for _ in range(3000)], 0.5)
    assert choices[-1000:].count(best) > 850


def test_a_new_context_with_the_same_arms_goes_on_learning():
    policy = ISplitEE(alpha=0.5)
    play(policy, context(), drawn(0, 20), 0.5)
    before = dict(policy.counts)
    policy.choose(context())
    assert policy.counts == before


def test_a_context_with_other_arms_is_refused():
    policy = ISplitEE()
    policy.choose(context(3))
    with pytest.raises(ActionError, match=r"\(0, 1, 2\).*\(0, 1, 2, 3\)"):
        policy.choose(context(4))


def test_an_edge_without_arms_is_refused():
    with pytest.raises(ActionError, match="exit"):
        ISplitEE().choose(context(3, splits=(1,), exits=(0,)))


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": 1.01},
        {"alpha": -0.01},
        {"alpha": math.nan},
        {"mu": -1.0},
        {"mu": math.nan},
        {"c": -0.1},
        {"c": math.nan},
    ],
)
def test_bad_arguments(bad):
    with pytest.raises(ConfigError):
        ISplitEE(**bad)
