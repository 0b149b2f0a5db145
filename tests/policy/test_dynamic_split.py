from dataclasses import replace

import pytest
from worlds import context, forecast

from offramp.errors import ActionError, ConfigError
from offramp.policy.base import Observation
from offramp.policy.dynamic_split import DynamicSplit


def told(policy, ctx, action, sure=(), *, offloaded=None):
    """What an edge would say: exits of `sure` were, the others were not."""
    confidences = {e: 0.9 if e in sure else 0.1 for e in (*action.exits, *action.watch)}
    offloaded = action.split != ctx.last and not any(e in sure for e in action.exits)
    policy.update(action, Observation(confidences=confidences, offloaded=offloaded))


def settled(policy, ctx, sure=(), inputs=40):
    for _ in range(inputs):
        action = policy.choose(ctx)
        told(policy, ctx, action, sure)
    return action.split


def at(**link):
    return replace(context(), forecast=forecast(**link))


@pytest.mark.parametrize("rate_mbps", [0.05, 0.5, 2, 10, 1000])
@pytest.mark.parametrize("round_trip_ms", [1, 10, 40])
def test_without_sure_exits_it_is_the_argmin_of_the_paper(rate_mbps, round_trip_ms):
    ctx = at(ms_per_byte=8e-3 / rate_mbps, round_trip_ms=round_trip_ms)
    wanted = min(ctx.splits, key=ctx.forecast.split_ms)
    policy = DynamicSplit(alpha=0.5, probing=0.0)
    # An exit that is never sure loses the doubt in its favour with every look.
    assert settled(policy, ctx, inputs=600) == wanted


def test_it_follows_the_link():
    policy = DynamicSplit(alpha=0.5)
    fast, slow = at(ms_per_byte=1e-6, round_trip_ms=1.0), at(ms_per_byte=0.1, round_trip_ms=100.0)
    assert settled(policy, fast) == -1
    assert settled(policy, slow) == 3
    assert settled(policy, fast) == -1


def test_it_follows_the_server_s_load():
    policy = DynamicSplit(alpha=0.5)
    idle = at(ms_per_byte=1e-6, round_trip_ms=1.0)
    busy = at(ms_per_byte=1e-6, round_trip_ms=1.0, tail_ms=(300.0, 200.0, 100.0, 50.0))
    assert settled(policy, idle) == -1
    assert settled(policy, busy) == 3


def test_an_exit_that_is_sure_keeps_inputs_on_the_edge():
    """10 ms of stage 0 and its sure exit are sooner than 40 ms on the edge or 200 over the link."""
    ctx = at(round_trip_ms=200.0)
    assert settled(DynamicSplit(alpha=0.5), ctx, sure=(0,)) == 0
    assert settled(DynamicSplit(alpha=0.5, probing=0.0), ctx, sure=()) == 3


def test_an_exit_that_was_unsure_once_is_looked_at_again():
    """Sending the input takes 29 ms and shows no exit; exit 0, once it is sure, answers after 10.5 ms."""
    ctx, policy = at(round_trip_ms=25.0, ms_per_byte=0.0), DynamicSplit(alpha=0.5)
    assert settled(policy, ctx, sure=(), inputs=20) == -1
    assert settled(policy, ctx, sure=(0,), inputs=400) == 0


def test_an_exit_whose_gate_is_shut_is_neither_tried_nor_run():
    """Sending the input takes 29 ms, keeping it 40; exit 0 would answer after 10.5 ms if it ever could."""
    ctx = replace(at(round_trip_ms=25.0, ms_per_byte=0.0), thresholds=(2.0, 2.0, 2.0, None))
    policy, actions = DynamicSplit(), []
    for _ in range(300):
        actions.append(policy.choose(ctx))
        told(policy, ctx, actions[-1])
    assert {(a.split, a.exits, a.watch) for a in actions} == {(-1, (), ())}


@pytest.mark.parametrize("discount", [0.9, 0.95, 0.99])
def test_heads_on_the_way_are_not_run_all_the_time(discount):
    """Exit 0 is on the way to split 3 and never sure."""
    ctx = replace(at(round_trip_ms=500.0), exits=(0,))
    policy, watched = DynamicSplit(alpha=0.5, discount=discount, probing=0.0), []
    for _ in range(1000):
        action = policy.choose(ctx)
        watched.append(bool(action.watch))
        told(policy, ctx, action)
    assert 0.05 < sum(watched[500:]) / 500 < 0.5


def test_what_is_never_sent_is_tried_after_a_while():
    ctx, policy = at(round_trip_ms=500.0), DynamicSplit(alpha=0.5, probing=0.5)
    sent = []
    for i in range(200):
        action = policy.choose(ctx)
        if action.split != ctx.last and not action.exits:
            sent.append(i)
        told(policy, ctx, action)
    late = [i for i in sent if i > 50]
    # 40 ms on the edge, 508 ms for the input: half of the time since the last transfer has to make up for 468.
    assert 5 <= len(late) <= 7  # every 24th input
    edge_only = replace(ctx, splits=(3,))
    fresh = DynamicSplit(alpha=0.5, probing=1.0)
    assert {settled(fresh, edge_only, inputs=1) for _ in range(5)} == {3}  # there is nobody to send to


def test_an_edge_copy_plays_what_it_has():
    policy = DynamicSplit(alpha=0.5)
    assert settled(policy, replace(at(round_trip_ms=500.0), splits=(-1, 0, 1))) in (-1, 0, 1)


def test_without_a_forecast_it_says_what_it_needs():
    with pytest.raises(ActionError, match="no forecast"):
        DynamicSplit().choose(replace(context(), forecast=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 1.5},
        {"discount": 0.0},
        {"discount": 1.1},
        {"probing": -0.1},
        {"probing": 1.1},
        {"probing": float("nan")},
    ],
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        DynamicSplit(**wrong)


@pytest.mark.parametrize(
    "damage",
    [
        {"exits": [1, 0], "sure": [1, 1], "seen": [2, 2]},
        {"exits": [0], "sure": [3], "seen": [2]},
        {"exits": [0], "sure": [1], "seen": []},
        {"exits": [0], "sure": [0], "seen": [-1]},
        {"kept_ms": -1},
    ],
)
def test_damaged_states_are_refused(damage):
    from offramp.errors import PolicyStateError

    policy = DynamicSplit()
    with pytest.raises(PolicyStateError):
        policy.restore({**policy.state(), **damage})
