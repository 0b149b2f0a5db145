"""What an edge measures, and what policies are told of it."""

from dataclasses import replace

import numpy as np
import pytest

from offramp.errors import ConfigError, ServerUnavailableError
from offramp.policy.base import Action, Policy
from offramp.policy.cost import CostModel, MeasuredCost
from offramp.policy.dynamic_split import DynamicSplit
from offramp.policy.i_splitee import ISplitEE
from offramp.runtime.conditions import Conditions
from offramp.runtime.edge import Edge
from offramp.runtime.stages import Stages
from offramp.runtime.tail import TailReply

STAGE_MS, EXIT_MS = (8.0, 4.0, 2.0, 2.0), 0.5
#: Inputs of eight floats: one byte each in uint8.
SIZES = (32, 32, 32, 32)


class Timed(Stages):
    """Stages that take a stated time, on a clock that moves only then."""

    def stage(self, index, tensors):
        outputs, _ = super().stage(index, tensors)
        self._sleep(STAGE_MS[index] / 1e3)
        return outputs, STAGE_MS[index]

    def exit(self, index, tensors):
        outputs, _ = super().exit(index, tensors)
        self._sleep(EXIT_MS / 1e3)
        return outputs, EXIT_MS


class Far:
    """A server behind a link of a rate and a round trip, which may change."""

    def __init__(self, clock, *, ms_per_byte=0.1, round_trip_ms=20.0, server_ms=4.0):
        self.clock, self.ms_per_byte = clock, ms_per_byte
        self.round_trip_ms, self.server_ms, self.down = round_trip_ms, server_ms, False
        self.says = server_ms

    def infer(self, request, timeout_s=None):
        if self.down:
            self.clock.sleep(0.001)
            raise ServerUnavailableError("gone")
        size = sum(t.nbytes for t in request.tensors.values())
        self.clock.sleep((self.round_trip_ms + self.ms_per_byte * size + self.server_ms) / 1e3)
        return TailReply(np.array([[0.0, 3.0]], np.float32), np.array([3]), self.says)

    def close(self):
        pass


@pytest.fixture
def timed(tiny, clock):
    return Timed(tiny, clock=clock, sleep=clock.sleep)


@pytest.fixture
def make_edge(tiny, clock, monkeypatch):
    monkeypatch.setattr("offramp.runtime.edge.Stages", Timed)

    def make(server=None, policy=None, **options):
        return Edge(tiny, server, policy, clock=clock, sleep=clock.sleep, deadline_ms=1e6, **options)

    return make


class Ask(Policy):
    """Plays given actions in turn; keeps the contexts."""

    wants_forecast = True

    def __init__(self, *actions):
        self.actions, self.contexts, self.seen = actions, [], []

    def choose(self, context):
        self.contexts.append(context)
        return self.actions[(len(self.contexts) - 1) % len(self.actions)]

    def update(self, action, observation):
        self.seen.append(observation)


def test_a_forecast_begins_with_stages_as_measured_and_a_free_link(timed):
    forecast = Conditions(timed, (0, 2), CostModel.in_layers((3, 6, 9, 12))).forecast
    assert forecast.stage_ms == pytest.approx(STAGE_MS)
    assert forecast.exit_ms == pytest.approx((EXIT_MS, 0, EXIT_MS, 0))
    assert forecast.sent_bytes == SIZES
    assert (forecast.round_trip_ms, forecast.ms_per_byte, set(forecast.tail_ms)) == (0, 0, {0})
    assert forecast.stage_work == ((0, 0),) * 4  # the tiny network computes nothing


def test_a_process_that_was_kept_from_running_is_not_a_slow_stage(timed):
    conditions = Conditions(timed, (0, 2), CostModel.in_layers((3, 6, 9, 12)))
    conditions.ran_stage(1, 5000.0)
    conditions.ran_exit(0, 5000.0)
    assert conditions.stage_ms[1] < 1.5 * STAGE_MS[1]
    assert conditions.exit_ms[0] < 1.8 * EXIT_MS
    for _ in range(100):  # unless it is slow from now on
        conditions.ran_stage(1, 400.0)
    assert conditions.stage_ms[1] == pytest.approx(400.0, rel=0.01)


def test_stages_are_judged_by_the_shorter_of_two_runs(tiny, clock):
    class Hiccups(Timed):
        calls = 0

        def stage(self, index, tensors):
            self.calls += 1
            outputs, ms = super().stage(index, tensors)
            return outputs, 100 * ms if self.calls in (2, 3) else ms

    stages = Hiccups(tiny, clock=clock, sleep=clock.sleep)
    assert Conditions(stages, (0, 2), CostModel.in_layers((3, 6, 9, 12))).stage_ms == pytest.approx(STAGE_MS)


def test_a_forecast_follows_link_and_server(make_edge, clock, says):
    far, policy = Far(clock), Ask(Action(-1, mode="uint8"), Action(0))
    edge = make_edge(far, policy)
    for _ in range(30):
        edge.infer(says({}))
    forecast = policy.contexts[-1].forecast
    # Payloads this alike do not tell round trip and rate apart, but what a transfer takes.
    assert forecast.round_trip_ms + 32 * forecast.ms_per_byte == pytest.approx(23.2, rel=0.05)
    # 4 ms for everything behind the input's cut (16 ms here) and as much behind cut 0 (8 ms): in between.
    assert 4 < forecast.tail_ms[0] < 8
    assert forecast.tail_ms == pytest.approx([forecast.tail_ms[0] * left / 16 for left in (16, 8, 4, 2)])


@pytest.mark.parametrize("says", [None, 0.0], ids=["nothing", "no time"])
def test_a_server_that_no_longer_says_what_it_takes_is_not_counted_twice(make_edge, clock, says):
    far, policy = Far(clock), Ask(Action(-1))
    edge = make_edge(far, policy)
    for _ in range(20):
        edge.infer(np.zeros(8, np.float32))
    told = policy.contexts[-1].forecast
    assert told.tail_ms[0] == pytest.approx(4.0, rel=0.05)
    far.says = says  # another make now: its time is the link's
    for _ in range(30):
        edge.infer(np.zeros(8, np.float32))
    silent = policy.contexts[-1].forecast
    assert silent.sending_ms(-1) == pytest.approx(told.sending_ms(-1), rel=0.05)
    assert silent.tail_ms[0] < 0.3  # a forecast is renewed once it is 5 % off
    far.says = 4.0
    for _ in range(30):
        edge.infer(np.zeros(8, np.float32))
    assert policy.contexts[-1].forecast.tail_ms[0] == pytest.approx(4.0, rel=0.1)


def test_a_context_stays_the_same_until_a_latency_has_changed(make_edge, clock, says):
    far, policy = Far(clock), Ask(Action(0, (0,)))
    edge = make_edge(far, policy)
    for _ in range(20):
        edge.infer(says({0: 0.6}))
    settled = policy.contexts[-1]
    edge.infer(says({0: 0.6}))
    edge.infer(says({0: 0.6}))
    assert policy.contexts[-1] is settled
    far.ms_per_byte = 3.0
    for _ in range(4):
        edge.infer(says({0: 0.6}))
    assert policy.contexts[-1] is not settled
    assert policy.contexts[-1].forecast.split_ms(0) == pytest.approx(8 + 20 + 96 + 4, rel=0.1)


def test_who_does_not_ask_gets_one_context_for_all(make_edge, clock, says):
    policy = Ask(Action(0, (0,)))
    policy.wants_forecast = False
    edge = make_edge(Far(clock), policy)
    for _ in range(10):
        edge.infer(says({0: 0.6}))
    assert len({id(context) for context in policy.contexts}) == 1


def test_measured_cost_is_what_the_input_took(make_edge, clock, says):
    policy = Ask(Action(0, (0,)), Action(3))
    edge = make_edge(Far(clock), policy, cost=MeasuredCost())
    sent, local = edge.infer(says({0: 0.6})), edge.infer(says({}))
    # 1 is the dearest split as forecast at the start: all 16 ms on the edge, the link being free.
    assert sent.cost == pytest.approx((8 + 0.5 + 20 + 3.2 + 4) / 16)
    assert local.cost == pytest.approx(16 / 16)
    assert [seen.cost for seen in policy.seen] == [sent.cost, local.cost]


def test_expected_costs_follow_the_link(make_edge, clock, says):
    far, policy = Far(clock), Ask(Action(-1))
    edge = make_edge(far, policy, cost=MeasuredCost())
    for _ in range(10):
        edge.infer(says({}))
    cheap = policy.contexts[-1].cost.paid(-1, True)
    assert cheap == pytest.approx((20 + 3.2 + 4) / 16, rel=0.05)
    far.ms_per_byte = 5.0
    for _ in range(6):
        edge.infer(says({}))
    assert policy.contexts[-1].cost.paid(-1, True) == pytest.approx((20 + 160 + 4) / 16, rel=0.1)


def test_the_papers_units_stay_whatever_the_link_does(make_edge, clock, says):
    far, policy = Far(clock), Ask(Action(0, (0,)))
    edge = make_edge(far, policy)
    costs = [edge.infer(says({0: 0.6})).cost for _ in range(3)]
    far.ms_per_byte = 9.0
    costs += [edge.infer(says({0: 0.6})).cost for _ in range(5)]
    assert costs == pytest.approx([0.8] * 8)


def test_a_send_without_an_answer_teaches_that_it_takes_longer(make_edge, clock, says):
    far, policy = Far(clock), Ask(Action(-1))
    edge = make_edge(far, policy)
    for _ in range(10):
        edge.infer(says({}))
    before = policy.contexts[-1].forecast.split_ms(-1)
    far.down = True  # refused at once: that says nothing of the link
    edge.infer(says({}))
    edge.infer(says({}))
    assert policy.contexts[-1].forecast.split_ms(-1) == before


@pytest.mark.parametrize("learner", [DynamicSplit, lambda: ISplitEE(alpha=0.75, send_input=True, mu=5, c=0.25)])
def test_policies_follow_a_link_that_drops(make_edge, clock, says, learner):
    """16 ms on the edge; the input takes 7 ms over the good link and 220 over the bad one."""
    far, policy = Far(clock, ms_per_byte=0.05, round_trip_ms=1.4), learner()
    if isinstance(policy, ISplitEE):
        policy = ISplitEE(alpha=0.75, send_input=True, mu=5, c=0.25, discount=0.95)
    edge = make_edge(far, policy, cost=MeasuredCost())
    unsure = says({0: 0.6, 2: 0.6, 3: 0.9})
    first = [edge.infer(unsure) for _ in range(150)]
    assert [r.action.split for r in first[-60:]].count(-1) >= 50
    far.ms_per_byte, far.round_trip_ms = 5.0, 60.0
    second = [edge.infer(unsure) for _ in range(150)]
    assert [r.action.split for r in second[-60:]].count(3) >= 50


def test_stages_that_are_not_held_are_judged_by_their_work(tiny, tmp_path, clock, monkeypatch):
    copy = tiny.edge_copy(tmp_path / "copy", 2)
    work = [(100, 0), (200, 0), (300, 0), (600, 0)]
    conditions = Conditions(Timed(copy, clock=clock, sleep=clock.sleep), (0,), CostModel.in_layers((3, 6, 9, 12)))
    monkeypatch.setattr(conditions, "_stage_work", work)
    assert conditions._all_stages_ms() == pytest.approx([8, 4, 12, 24])  # 12 ms for 300


def test_what_costs_nothing_cannot_be_weighed(timed):
    forecast = Conditions(timed, (), CostModel.in_layers((3, 6, 9, 12))).forecast
    idle = replace(forecast, sent_bytes=(0,) * 4)  # it computes nothing, and now sends nothing
    with pytest.raises(ConfigError, match="energy cannot be weighed"):
        MeasuredCost(0, 0, 1).prices(idle)


def test_a_head_that_became_slow_renews_the_context(make_edge, says, monkeypatch):
    policy = Ask(Action(3, watch=(0,)))
    edge = make_edge(None, policy, cost=MeasuredCost())
    edge.infer(says({}))
    monkeypatch.setattr(f"{__name__}.EXIT_MS", 50.0)
    for _ in range(40):
        edge.infer(says({}))
    before, now = policy.contexts[0], policy.contexts[-1]
    assert now.forecast.exit_ms[0] == pytest.approx(50, rel=0.1)
    assert now.cost.exits[0] > 50 * before.cost.exits[0]


def test_a_clock_that_jumps_back_ends_no_run(make_edge, clock, says, monkeypatch):
    far, policy = Far(clock), Ask(Action(-1), Action(0, (0,)), Action(3))
    edge = make_edge(far, policy, cost=MeasuredCost())
    unsure = says({0: 0.6})
    edge.infer(unsure)
    monkeypatch.setattr(f"{__name__}.STAGE_MS", (-9e3,) * 4)
    monkeypatch.setattr(f"{__name__}.EXIT_MS", -9e3)
    far.round_trip_ms = -9e3
    assert [r.status for r in edge.run([unsure] * 6)] == ["ok"] * 6


@pytest.mark.parametrize("known", [0, 100])
def test_dynamic_split_leaves_a_server_that_is_down_and_comes_back(make_edge, clock, says, known):
    """The input takes 7 ms while the server is there, 16 ms on the edge; exit 0 is sure after 8.5 ms."""
    far, policy = Far(clock, round_trip_ms=4.0, server_ms=0.0), DynamicSplit()
    edge, sure = make_edge(far, policy), says({0: 0.9, 2: 0.9, 3: 0.9})
    up = [edge.infer(sure) for _ in range(known)]
    assert [r.action.split for r in up[-50:]].count(-1) >= known // 2 * 0.8
    far.down = True
    down = [edge.infer(sure) for _ in range(300)]
    assert [r.status for r in down[-200:]].count("ok") >= 190
    assert sum(r.latency_ms.total for r in down[-200:]) / 200 < 9.5
    far.down = False
    back = [edge.infer(sure) for _ in range(600)]
    assert [r.action.split for r in back[-100:]].count(-1) >= 80


def test_payload_alone_weighs_nothing_without_a_server(make_edge, clock):
    with pytest.raises(ConfigError, match="payload alone"):
        make_edge(None, Ask(Action(3)), cost=MeasuredCost(0, 1, 0))
    make_edge(Far(clock), Ask(Action(3)), cost=MeasuredCost(0, 1, 0))
    make_edge(None, Ask(Action(3)), cost=MeasuredCost(1, 1, 0))
