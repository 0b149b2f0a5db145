import json
import math

import numpy as np
import pytest

from offramp.bundle.bundle import Bundle
from offramp.errors import (
    ActionError,
    BundleError,
    ConfigError,
    DeadlineError,
    DigestMismatchError,
    InputError,
    ProtocolError,
    ServerBusyError,
    ServerRefusedError,
    ServerUnavailableError,
    StageError,
)
from offramp.policy.base import Action, Policy
from offramp.policy.cascade import ThresholdCascade
from offramp.policy.cost import CostModel
from offramp.policy.fixed import EdgeOnly, FixedSplit, ServerOnly
from offramp.policy.i_splitee import ISplitEE
from offramp.runtime.breaker import CircuitBreaker
from offramp.runtime.edge import Edge
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailReply

UNSURE = {0: 0.6, 2: 0.7, 3: 0.95}


class Script(Policy):
    """Plays given actions in turn, and keeps what it is told."""

    def __init__(self, *actions, alpha=None):
        self.actions, self.alpha = actions, alpha
        self.told, self.seen = [], []
        self._turn = 0

    def choose(self, context):
        self._turn += 1
        return self.actions[(self._turn - 1) % len(self.actions)]

    def update(self, action, observation):
        self.told.append(action)
        self.seen.append(observation)


class FakeChannel:
    """Answers as told; keeps requests and timeouts."""

    def __init__(self, answer):
        self._answer = answer
        self.requests, self.timeouts, self.closed = [], [], False

    def infer(self, request, timeout_s=None):
        self.requests.append(request)
        self.timeouts.append(timeout_s)
        return self._answer(request, timeout_s)

    def close(self):
        self.closed = True


def raising(error):
    def answer(request, timeout_s):
        raise error

    return FakeChannel(answer)


def replying(*, label=1, confidence=0.9, exits=(3,), server_ms=None, logits=None):
    z = [[0.0, 0.0]]
    z[0][label] = math.log(confidence / (1 - confidence))
    return FakeChannel(
        lambda *_: TailReply(
            np.array(z, np.float32) if logits is None else logits,
            None if exits is None else np.array(exits, np.int64),
            server_ms,
        )
    )


@pytest.fixture(scope="module")
def tail(tiny):
    return Tail(Stages(tiny))


@pytest.fixture
def make_edge(tiny, clock):
    """An edge on the tiny bundle whose time stands still, each stage counting as `stage_ms`."""

    def make(server=None, policy=None, *, bundle=tiny, stage_ms=None, **options):
        edge = Edge(bundle, server, policy, clock=clock, sleep=clock.sleep, **options)
        if stage_ms is not None:
            edge.stage_ms[:] = stage_ms
        return edge

    return make


# --- what is answered, and where ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["float", "uint8"])
@pytest.mark.parametrize(
    ("action", "exit_index", "where"),
    [
        (Action(-1), 3, "server"),
        (Action(-1, exits=(0,)), 3, "server"),
        (Action(0), 3, "server"),
        (Action(0, exits=(0,)), 3, "server"),
        (Action(0, watch=(0,)), 3, "server"),
        (Action(1), 3, "server"),
        (Action(1, exits=(0,)), 3, "server"),
        (Action(2, exits=(0, 2)), 3, "server"),
        (Action(2, exits=(2,), watch=(0,)), 3, "server"),
        (Action(3), 3, "edge"),
        (Action(3, exits=(0, 2)), 3, "edge"),
        (Action(3, watch=(0, 2)), 3, "edge"),
    ],
)
def test_every_action_gives_one_result_per_input_in_order(make_edge, tail, says, action, mode, exit_index, where):
    action = Action(action.split, action.exits, mode, action.watch)
    inputs = [says({0: 0.6, 2: 0.7, 3: 0.8 + i / 50}, label=i % 2) for i in range(7)]
    results = list(make_edge(tail, Script(action)).run(inputs))
    assert [r.index for r in results] == list(range(7))
    assert [r.label for r in results] == [i % 2 for i in range(7)]
    assert [r.class_name for r in results] == ["no", "yes"] * 3 + ["no"]
    assert {(r.status, r.exit, r.where, r.error, r.action) for r in results} == {
        ("ok", exit_index, where, None, action)
    }
    for i, r in enumerate(results):
        assert r.confidence == pytest.approx(0.8 + i / 50, abs=0.01)
        assert r.probabilities[r.label] == r.confidence
        assert sum(r.probabilities) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("confidences", "exit_index", "where"),
    [
        ({0: 0.8, 2: 0.9, 3: 0.9}, 0, "edge"),
        ({0: 0.7, 2: 0.9, 3: 0.6}, 2, "edge"),
        ({0: 0.7, 2: 0.7, 3: 0.6}, 3, "server"),
    ],
)
def test_a_cascade_stops_at_the_first_exit_that_is_sure(make_edge, tail, says, confidences, exit_index, where):
    policy = Script(Action(2, (0, 2)))
    result = make_edge(tail, policy).infer(says(confidences))
    assert (result.exit, result.where, result.status) == (exit_index, where, "ok")
    assert result.confidence == pytest.approx(confidences[exit_index], abs=1e-6)
    assert sorted(policy.seen[0].confidences) == [e for e in (0, 2) if e <= exit_index]


def test_the_policys_alpha_goes_before_the_bundles_threshold(make_edge, tail, says):
    x = says({0: 0.6, 2: 0.8, 3: 0.9})
    assert make_edge(tail, Script(Action(2, (0, 2)), alpha=0.5)).infer(x).exit == 0
    assert make_edge(tail, Script(Action(2, (0, 2)), alpha=0.99)).infer(x).exit == 3


def test_watched_exits_are_seen_and_do_not_answer(make_edge, tail, says):
    policy = Script(Action(2, watch=(0, 2)), Action(2, (2,), watch=(0,)))
    edge = make_edge(tail, policy)
    sure = says({0: 0.9, 2: 0.8, 3: 0.6})
    assert [edge.infer(sure).exit for _ in range(2)] == [3, 2]
    assert policy.seen[0].confidences == pytest.approx({0: 0.9, 2: 0.8})
    assert policy.seen[1].confidences == pytest.approx({0: 0.9, 2: 0.8})


def test_exits_that_are_not_asked_for_are_not_evaluated(make_edge, tail, says):
    policy = Script(Action(2, (2,)))
    assert make_edge(tail, policy).infer(says({0: 0.99, 2: 0.9})).exit == 2
    assert set(policy.seen[0].confidences) == {2}


@pytest.mark.parametrize(
    ("action", "exit_index", "final"),
    [
        (Action(0, (2,)), 2, False),
        (Action(0, (0, 2)), 2, False),
        (Action(-1, (0,)), 0, False),
        (Action(0, (0,)), 3, True),
        (Action(0), 3, True),
        (Action(-1), 3, True),
    ],
)
def test_the_server_may_leave_early_only_if_an_exit_beyond_the_split_may(
    make_edge, tail, says, action, exit_index, final
):
    channel = FakeChannel(tail.infer)
    policy = Script(action)
    confidence = 0.8 if exit_index == 0 else 0.7
    result = make_edge(channel, policy).infer(says({0: confidence, 2: 0.9, 3: 0.99}))
    assert (result.exit, result.where, result.status) == (exit_index, "server", "ok")
    assert channel.requests[0].final is final
    # What the server's early exit said is no final confidence.
    assert policy.seen[0].final_confidence == (pytest.approx(0.99) if exit_index == 3 else None)
    assert exit_index not in policy.seen[0].confidences


@pytest.mark.parametrize(
    ("action", "model", "names", "payload"),
    [
        (Action(-1, mode="float"), "tiny", ["input"], 32),
        (Action(-1, mode="uint8"), "tiny-uint8", ["input_uint8"], 8),
        (Action(0, mode="float"), "tiny-tail-0", ["cut_0"], 32),
        (Action(1, mode="uint8"), "tiny-tail-1-uint8", ["cut_1_uint8"], 8),
        (Action(2, mode="uint8"), "tiny-tail-2-uint8", ["cut_2_uint8"], 8),
    ],
)
def test_what_is_sent(make_edge, tail, tiny, says, action, model, names, payload):
    channel, policy = FakeChannel(tail.infer), Script(action)
    result = make_edge(channel, policy).infer(says(UNSURE))
    (request,) = channel.requests
    assert request.model == model
    assert list(request.tensors) == names
    assert request.digest == tiny.digest
    assert sum(t.nbytes for t in request.tensors.values()) == payload
    assert result.payload_bytes == policy.seen[0].payload_bytes == payload


def test_nothing_is_sent_for_what_is_answered_on_the_edge(make_edge, says):
    channel = raising(AssertionError("called"))
    edge = make_edge(channel, Script(Action(0, (0,)), Action(3)))
    assert [edge.infer(says({0: 0.9, 3: 0.6})).payload_bytes for _ in range(2)] == [0, 0]
    assert channel.requests == []


@pytest.mark.parametrize("split", [-1, 0, 1])
def test_split_in_float_the_answer_is_the_whole_networks_bit_for_bit(digits_bundle, digit_images, split):
    bundle = Bundle.load(digits_bundle)
    whole = Edge(bundle)
    with Edge(bundle, Tail(Stages(bundle)), Script(Action(split, mode="float"))) as edge:
        for image in digit_images[0][:10]:
            result, expected = edge.infer(image), whole.infer(image)
            assert result.probabilities == expected.probabilities
            assert (result.where, expected.where) == ("server", "edge")


def test_digits_are_recognised_from_pixels_and_from_inputs(digits_bundle, digit_images):
    images, labels = digit_images
    edge = Edge(digits_bundle)
    results = list(edge.run(images[:200]))
    assert sum(r.label == y for r, y in zip(results, labels, strict=False)) > 130  # after one epoch
    as_input = (images[0] / np.float32(255)).astype(np.float32)[None]
    assert edge.infer(as_input).label == edge.infer(as_input[None]).label == results[0].label


# --- inputs ---------------------------------------------------------------------------------------------


BAD_INPUTS = {
    "shape": np.zeros(7, np.float32),
    "batch": np.zeros((2, 8), np.float32),
    "rank": np.zeros((), np.float32),
    "dtype": np.zeros(8, np.float64),
    "pixels without preprocessing": np.zeros((28, 28), np.uint8),
    "nan": np.full(8, np.nan, np.float32),
    "inf": np.array([0, np.inf, 0, 0, 0, 0, 0, 0], np.float32),
    "text": "eight",
    "nothing": None,
    "ragged": [[1.0, 2.0], [3.0]],
}


@pytest.mark.parametrize("bad", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_an_input_that_cannot_be_run_fails_alone(make_edge, says, bad):
    policy = Script(Action(3))
    results = list(make_edge(policy=policy).run([says(UNSURE), bad, says(UNSURE, label=0)]))
    assert [(r.index, r.status, r.label) for r in results] == [(0, "ok", 1), (1, "failed", None), (2, "ok", 0)]
    failed = results[1]
    assert (failed.exit, failed.where, failed.confidence, failed.probabilities) == (None, None, None, None)
    assert failed.error
    assert len(policy.seen) == 2  # nothing was seen, nothing is told


def test_infer_raises_what_run_reports(make_edge):
    with pytest.raises(InputError):
        make_edge().infer(np.zeros(7, np.float32))


def test_pixels_of_another_size_fail(digits_bundle):
    (result,) = Edge(digits_bundle).run([np.zeros((27, 28), np.uint8)])
    assert (result.status, result.label) == ("failed", None)
    assert "(28, 28)" in result.error


def test_a_batch_axis_of_one_may_lead(make_edge, says):
    x = says(UNSURE)
    assert make_edge().infer(x[None]).probabilities == make_edge().infer(x).probabilities


def test_inputs_are_taken_one_by_one(make_edge, says):
    taken = []

    def inputs():
        for i in range(3):
            taken.append(i)
            yield says(UNSURE)

    run = make_edge().run(inputs())
    next(run)
    assert taken == [0]


# --- splits, actions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "served", "splits", "exits"),
    [
        (4, True, (-1, 0, 1, 2, 3), (0, 2)),
        (4, False, (3,), (0, 2)),
        (2, True, (-1, 0, 1), (0,)),
        (2, False, (1,), (0,)),
        (1, True, (-1, 0), (0,)),
    ],
)
def test_what_the_policies_are_offered(make_edge, tiny, tmp_path, held, served, splits, exits):
    bundle = tiny.edge_copy(tmp_path / "copy", held)
    context = make_edge(replying() if served else None, bundle=bundle).context
    assert (context.splits, context.exits, context.last) == (splits, exits, 3)
    assert context.thresholds == (0.75, None, 0.75, None)
    assert dict(context.modes) == dict.fromkeys(range(-1, min(held, 3)), ("float", "uint8"))
    assert context.cost.paid(0, True) == pytest.approx(0.8)
    assert context.cost.paid(3, False) == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("served", "action", "why"),
    [
        (False, Action(-1), "no server"),
        (False, Action(0), "no server"),
        (True, Action(4), "split 4"),
        (True, Action(-2), "split -2"),
        (True, Action(2, (1,)), r"exits \[1\]"),  # a cut without an exit
        (True, Action(1, watch=(2,)), r"exits \[2\]"),  # beyond the split
        (True, Action(2, watch=(1,)), r"exits \[1\]"),
        (True, Action(0, (-1,)), r"exits \[-1\]"),
        (True, Action(0, mode="uint3"), "uint3"),
    ],
)
def test_impossible_actions_are_errors_of_the_policy(make_edge, tail, says, served, action, why):
    edge = make_edge(tail if served else None, Script(action))
    with pytest.raises(ActionError, match=why):
        edge.infer(says(UNSURE))
    with pytest.raises(ActionError):  # not hidden in a "failed" result either
        list(edge.run([says(UNSURE)]))


def test_a_split_beyond_the_held_stages_is_an_error(make_edge, tiny, tmp_path, says):
    edge = make_edge(replying(), FixedSplit(2), bundle=tiny.edge_copy(tmp_path / "copy", 2))
    with pytest.raises(ActionError, match="split 2"):
        edge.infer(says(UNSURE))


@pytest.mark.parametrize("deadline", [0, -1, math.nan])
def test_a_deadline_must_be_positive(tiny, deadline):
    with pytest.raises(ConfigError, match="deadline_ms"):
        Edge(tiny, deadline_ms=deadline)


def test_a_bundle_may_be_given_by_its_path(tiny, says, tmp_path):
    assert Edge(str(tiny.path)).infer(says(UNSURE)).exit == 3
    with pytest.raises(BundleError):
        Edge(tmp_path / "none")


def test_closing_closes_the_channel(make_edge):
    channel = replying()
    with make_edge(channel):
        assert not channel.closed
    assert channel.closed


# --- when the server brings no answer -------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ServerUnavailableError("gone"),
        DeadlineError("late"),
        ServerBusyError("busy"),
        DigestMismatchError("other"),
        ServerRefusedError("no"),
        ProtocolError("what"),
        InputError("a local tail did not like it"),
        StageError("a local tail broke"),
    ],
)
def test_a_failing_server_leaves_the_answer_to_the_edge(make_edge, says, error):
    policy = Script(Action(0, (0,)))
    result = make_edge(raising(error), policy).infer(says(UNSURE))
    assert (result.status, result.where, result.exit) == ("degraded", "edge", 3)
    assert result.confidence == pytest.approx(0.95)
    assert str(error) in result.error
    assert result.payload_bytes == 32  # it was sent all the same


def test_a_channels_own_mistake_is_not_hidden(make_edge, says):
    with pytest.raises(ZeroDivisionError):
        make_edge(raising(ZeroDivisionError()), FixedSplit(0)).infer(says(UNSURE))


#: Milliseconds per stage; the time of what the edge runs itself stands still, what is waited counts.
STAGE_MS = [10.0, 20.0, 30.0, 40.0]


def waiting(clock, waited_ms, error=None):
    """A channel that takes its time, at most what it is given, and then brings nothing."""

    def answer(request, timeout_s):
        clock.now += min(waited_ms / 1e3, timeout_s)
        raise error or DeadlineError("no answer in time")

    return FakeChannel(answer)


@pytest.mark.parametrize(
    ("split", "exits", "deadline_ms", "waited_ms", "timeout_ms", "exit_index", "status"),
    [
        # The input is sent: 10 ms are kept to reach exit 0.
        (-1, (), 100, 1e9, 90, 0, "degraded"),
        (-1, (), 100, 60, 90, 2, "degraded"),  # 40 ms left: every stage counts alone, all but the last
        (-1, (), 100, 0, 90, 3, "degraded"),
        # Exit 0 was evaluated: nothing is kept back.
        (0, (0,), 100, 1e9, 100, 0, "degraded"),
        (0, (0,), 100, 65, 100, 2, "degraded"),
        (0, (0,), 100, 75, 100, 0, "degraded"),  # stage 1 fits, stage 2 does not; cut 1 has no exit
        # Exit 0 was not asked for, but its cut is at hand.
        (0, (), 100, 1e9, 100, 0, "degraded"),
        # Cut 1 has no exit, but exit 0 was passed on the way and can still answer.
        (1, (), 100, 1e9, 100, 0, "degraded"),
        (1, (), 200, 20, 200, 3, "degraded"),
    ],
)
def test_the_deepest_exit_that_the_deadline_allows(
    make_edge, clock, says, split, exits, deadline_ms, waited_ms, timeout_ms, exit_index, status
):
    channel, policy = waiting(clock, waited_ms), Script(Action(split, exits))
    edge = make_edge(channel, policy, stage_ms=STAGE_MS, deadline_ms=deadline_ms)
    result = edge.infer(says(UNSURE))
    (given,) = channel.timeouts
    assert 0.85 * timeout_ms <= given * 1e3 <= timeout_ms + 1e-6  # a margin may be kept besides
    assert (result.status, result.exit, result.where) == (status, exit_index, "edge")
    assert result.confidence == pytest.approx(UNSURE[exit_index], abs=1e-6)
    assert result.latency_ms.total <= deadline_ms + 1e-6


def test_a_timeout_that_comes_a_little_late_still_leaves_time_for_the_exit_kept_back(make_edge, clock, says):
    def answer(request, timeout_s):
        clock.now += timeout_s + 0.001  # no timer is exact
        raise DeadlineError("no answer in time")

    edge = make_edge(FakeChannel(answer), ServerOnly(), stage_ms=STAGE_MS, deadline_ms=100)
    result = edge.infer(says(UNSURE))
    assert (result.status, result.exit) == ("degraded", 0)


def test_an_edge_that_would_be_late_in_any_case_leaves_all_the_time_to_the_server(make_edge, clock, says):
    channel = replying()
    edge = make_edge(channel, ServerOnly(), stage_ms=[200.0, 20.0, 30.0, 40.0], deadline_ms=100)
    result = edge.infer(says(UNSURE))
    assert (result.status, result.where) == ("ok", "server")
    assert channel.timeouts == pytest.approx([0.1])


def test_a_stage_that_was_slow_once_is_tried_again_before_inputs_fail_for_ever(make_edge, clock, says):
    edge = make_edge(raising(ServerUnavailableError("gone")), ServerOnly(), stage_ms=STAGE_MS, deadline_ms=100)
    edge.stage_ms[0] = 1000.0
    statuses = [edge.infer(says(UNSURE)).status for _ in range(40)]
    back = statuses.index("degraded")
    assert 5 < back < 30
    assert statuses == ["failed"] * back + ["degraded"] * (40 - back)


def test_a_stage_that_would_be_too_slow_stays_so_while_there_is_an_answer(make_edge, clock, says):
    stage_ms = [10.0, 20.0, 500.0, 40.0]
    edge = make_edge(
        raising(ServerUnavailableError("gone")), Script(Action(0)), stage_ms=stage_ms, deadline_ms=100
    )
    for _ in range(20):
        assert edge.infer(says(UNSURE)).exit == 0
    assert edge.stage_ms[2] == 500.0


def test_no_exit_in_reach_fails(make_edge, clock, says, make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "b", exits=(2,), held=2)
    policy = Script(Action(1))
    edge = make_edge(raising(ServerUnavailableError("gone")), policy, bundle=bundle)
    (result,) = edge.run([says(UNSURE)])
    assert (result.status, result.label, result.exit, result.where) == ("failed", None, None, None)
    assert "gone" in result.error
    (seen,) = policy.seen
    assert (seen.exit, seen.confidence, seen.final_confidence) == (None, 0.0, None)
    assert seen.failed
    assert seen.offloaded
    assert dict(seen.confidences) == {}


def test_an_exit_passed_on_the_way_is_the_deepest_reached(make_edge, tiny, tmp_path, says):
    # Two stages held, cut 1 without an exit, exit 0 not asked for: it was reached all the same.
    bundle = tiny.edge_copy(tmp_path / "copy", 2)
    edge = make_edge(raising(ServerUnavailableError("gone")), FixedSplit(1), bundle=bundle)
    result = edge.infer(says(UNSURE))
    assert (result.status, result.exit, result.where) == ("degraded", 0, "edge")


@pytest.mark.parametrize("action", [Action(0, (0,)), Action(0, watch=(0,)), Action(0)])
def test_a_deadline_that_has_passed_before_sending(make_edge, clock, says, action):
    channel, policy = replying(), Script(action)
    edge = make_edge(channel, policy, deadline_ms=50, stage_ms=STAGE_MS)
    late = policy.choose
    policy.choose = lambda context: (setattr(clock, "now", clock.now + 0.06), late(context))[1]
    result = edge.infer(says(UNSURE))
    assert channel.requests == []
    assert (result.status, result.exit, result.where) == ("degraded", 0, "edge")
    assert "50 ms" in result.error
    assert result.payload_bytes == 0
    assert policy.seen[0].failed
    assert not policy.seen[0].offloaded
    assert policy.seen[0].cost == pytest.approx(0.3)  # nothing sent, nothing paid for it
    assert edge.breaker.allows()  # the server has done nothing wrong


def test_a_late_answer_is_dropped(make_edge, clock, says):
    def answer(request, timeout_s):
        clock.now += timeout_s + 0.001
        return TailReply(np.array([[9.0, 0.0]], np.float32), np.array([3]))

    policy = Script(Action(0, (0,)))
    result = make_edge(FakeChannel(answer), policy, deadline_ms=50, stage_ms=STAGE_MS).infer(says(UNSURE))
    assert (result.status, result.exit, result.label) == ("degraded", 0, 1)
    assert policy.seen[0].final_confidence is None
    assert policy.seen[0].failed


def test_an_edge_copy_without_a_server_answers_as_deep_as_it_can(make_edge, tiny, tmp_path, says):
    bundle = tiny.edge_copy(tmp_path / "copy", 3)
    result = make_edge(policy=EdgeOnly(), bundle=bundle).infer(says(UNSURE))
    assert (result.status, result.exit, result.where) == ("degraded", 2, "edge")
    sure = make_edge(policy=ThresholdCascade(), bundle=bundle).infer(says({0: 0.6, 2: 0.9}))
    assert (sure.status, sure.exit) == ("ok", 2)


def test_the_breaker_stops_calls_and_probes_again(make_edge, clock, says):
    channel = raising(ServerUnavailableError("gone"))
    policy = Script(Action(0, (0,)))
    edge = make_edge(channel, policy, breaker=CircuitBreaker(failures=2, reset_s=5.0, clock=clock))
    results = list(edge.run([says(UNSURE)] * 6))
    assert len(channel.requests) == 2
    assert {(r.status, r.exit) for r in results} == {("degraded", 3)}
    assert [r.payload_bytes for r in results] == [32, 32, 0, 0, 0, 0]
    assert [s.offloaded for s in policy.seen] == [True, True, False, False, False, False]
    assert all(s.failed for s in policy.seen)
    clock.now += 5.0
    edge.infer(says(UNSURE))
    edge.infer(says(UNSURE))
    assert len(channel.requests) == 3  # one probe, then silence again
    clock.now += 5.0
    channel._answer = lambda *_: TailReply(np.array([[0.0, 3.0]], np.float32))
    assert [edge.infer(says(UNSURE)).status for _ in range(3)] == ["ok"] * 3


def test_the_edges_own_breaker_uses_its_clock(make_edge, clock, says):
    edge = make_edge(raising(ServerUnavailableError("gone")), FixedSplit(0))
    for _ in range(10):
        edge.infer(says(UNSURE))
    assert not edge.breaker.allows()
    clock.now += 1000
    assert edge.breaker.allows()


NONSENSE = {
    "too few classes": {"logits": np.zeros((1, 1), np.float32)},
    "too many samples": {"logits": np.zeros((2, 2), np.float32)},
    "no batch": {"logits": np.zeros(2, np.float32)},
    "no samples": {"logits": np.zeros((0, 2), np.float32)},
    "nan": {"logits": np.array([[np.nan, 0]], np.float32)},
    "inf": {"logits": np.array([[np.inf, 0]], np.float32)},
    "exit at the split": {"exits": (0,)},
    "exit before the split": {"exits": (-1,)},
    "exit beyond the last": {"exits": (4,)},
    "exit at a cut without one": {"exits": (1,)},
}


@pytest.mark.parametrize("reply", NONSENSE.values(), ids=NONSENSE)
def test_a_nonsense_answer_is_no_answer(make_edge, says, reply):
    policy = Script(Action(0, (0,)))
    edge = make_edge(replying(**reply), policy, breaker=CircuitBreaker(failures=1, reset_s=1e9))
    result = edge.infer(says(UNSURE))
    assert (result.status, result.where, result.exit) == ("degraded", "edge", 3)
    assert policy.seen[0].failed
    assert edge.breaker.open


@pytest.mark.parametrize("exits", [None, (), (3,)])
def test_a_server_that_does_not_say_which_exit_means_the_last(make_edge, says, exits):
    policy = Script(Action(0))
    result = make_edge(replying(confidence=0.8, exits=exits), policy).infer(says(UNSURE))
    assert (result.status, result.exit, result.where) == ("ok", 3, "server")
    assert policy.seen[0].final_confidence == pytest.approx(0.8)


def test_the_servers_logits_meet_the_edges_temperature(make_edge, make_bundle, tmp_path, says):
    bundle = make_bundle(tmp_path / "b", temperatures=(1.0, None, 1.0, 2.0))
    result = make_edge(replying(confidence=0.9), FixedSplit(0, gated=False), bundle=bundle).infer(says(UNSURE))
    assert result.confidence == pytest.approx(1 / (1 + math.exp(-math.log(9) / 2)))


# --- what the policy is told ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "confidences", "seen", "final", "exit_index", "offloaded", "cost"),
    [
        (Action(0, (0,)), {0: 0.9, 3: 0.6}, {0: 0.9}, None, 0, False, 0.3),
        (Action(0, (0,)), {0: 0.6, 3: 0.9}, {0: 0.6}, 0.9, 3, True, 0.8),
        (Action(2, (2,), watch=(0,)), {0: 0.9, 2: 0.8, 3: 0.6}, {0: 0.9, 2: 0.8}, None, 2, False, 0.9),
        (Action(2, (2,), watch=(0,)), {0: 0.9, 2: 0.7, 3: 0.6}, {0: 0.9, 2: 0.7}, 0.6, 3, True, 1.4),
        (Action(2, (0, 2)), {0: 0.9, 2: 0.9, 3: 0.6}, {0: 0.9}, None, 0, False, 0.3),
        (Action(3, watch=(0,)), {0: 0.9, 2: 0.9, 3: 0.6}, {0: 0.9, 3: 0.6}, 0.6, 3, False, 1.2),
        (Action(-1), {0: 0.9, 2: 0.9, 3: 0.6}, {}, 0.6, 3, True, 0.5),
        (Action(2), {0: 0.9, 2: 0.9, 3: 0.6}, {}, 0.6, 3, True, 1.4),
    ],
)
def test_the_observation_holds_what_was_seen_and_nothing_else(
    make_edge, tail, says, action, confidences, seen, final, exit_index, offloaded, cost
):
    policy = Script(action)
    result = make_edge(tail, policy).infer(says(confidences))
    (told,) = policy.seen
    assert policy.told == [action]
    assert dict(told.confidences) == pytest.approx(seen)
    assert told.final_confidence == (None if final is None else pytest.approx(final))
    assert told.exit == result.exit == exit_index
    assert told.confidence == result.confidence == pytest.approx(confidences[exit_index])
    assert told.offloaded is offloaded
    assert told.failed is False
    assert told.cost == result.cost == pytest.approx(cost)
    assert told.payload_bytes == result.payload_bytes == (32 if offloaded else 0)


def test_after_a_failure_the_policy_knows_what_was_paid_and_not_the_final_confidence(make_edge, clock, says):
    policy = Script(Action(0, (0,)))
    result = make_edge(waiting(clock, 1e9), policy, deadline_ms=50, stage_ms=STAGE_MS).infer(says(UNSURE))
    (told,) = policy.seen
    assert (told.failed, told.offloaded, told.final_confidence) == (True, True, None)
    assert dict(told.confidences) == pytest.approx({0: 0.6})
    assert (told.exit, told.confidence) == (0, pytest.approx(0.6))
    assert told.cost == result.cost == pytest.approx(0.8)
    assert told.latency_ms == result.latency_ms.total == pytest.approx(50)


def test_a_fall_back_that_goes_on_is_paid_for_and_seen(make_edge, says):
    policy = Script(Action(0, (0,)))
    make_edge(raising(ServerUnavailableError("gone")), policy).infer(says(UNSURE))
    (told,) = policy.seen
    assert told.cost == pytest.approx(1.2 + 0.5)
    assert told.final_confidence == pytest.approx(0.95)
    assert told.failed


class Breaking(Stages):
    """Sessions of which some fail from now on."""

    broken = ()

    def stage(self, index, tensors):
        if f"stage {index}" in self.broken:
            raise StageError(f"stage {index}: out of memory")
        return super().stage(index, tensors)

    def exit(self, index, tensors):
        if f"exit {index}" in self.broken:
            raise StageError(f"exit {index}: out of memory")
        return super().exit(index, tensors)

    def encode(self, cut, mode, tensors):
        if f"codec {cut}" in self.broken:
            raise StageError(f"codec {cut}: out of memory")
        return super().encode(cut, mode, tensors)


@pytest.mark.parametrize("under_way", [1, 2])
@pytest.mark.parametrize(
    ("action", "broken", "exit_index"),
    [
        (Action(0, (0,)), ["stage 1"], 0),  # it has answered, unsure
        (Action(0), ["stage 1"], 0),  # it was passed
        (Action(0, (0,)), ["stage 3", "exit 2"], 0),
        (Action(0), ["stage 3"], 2),
        (Action(0), ["stage 1", "exit 0"], None),
        (Action(-1), ["stage 0"], None),
    ],
)
def test_a_stage_that_fails_on_the_way_on_leaves_the_exit_passed_before(
    make_edge, tiny, says, action, broken, exit_index, under_way
):
    policy, stages = Script(action), Breaking(tiny)
    edge = make_edge(raising(ServerUnavailableError("gone")), policy, stages=stages)
    stages.broken = broken
    (result,) = edge.run([says(UNSURE)], under_way=under_way)
    assert (result.status, result.exit) == ("failed" if exit_index is None else "degraded", exit_index)
    assert result.error == "; and here: ".join(["gone", *(f"{what}: out of memory" for what in broken)])
    assert (result.payload_bytes, result.action) == (32, action)  # it was sent all the same
    (told,) = policy.seen
    assert (told.exit, told.failed, told.cost) == (exit_index, True, result.cost)


@pytest.mark.parametrize("under_way", [1, 2])
@pytest.mark.parametrize(
    ("action", "held", "broken", "exit_index"),
    [
        (Action(0, (0,), "uint8"), 4, [], 3),  # it goes on as far as it can
        (Action(0, (0,), "uint8"), 1, [], 0),  # it has answered, unsure
        (Action(0, (), "uint8"), 1, [], 0),  # it was passed
        (Action(-1, (), "uint8"), 4, [], 3),
        (Action(0, (), "uint8"), 4, ["stage 1", "exit 0"], None),
    ],
)
def test_a_cut_that_cannot_be_packed_leaves_the_answer_to_the_edge(
    make_edge, tiny, tmp_path, says, action, held, broken, exit_index, under_way
):
    bundle = tiny.edge_copy(tmp_path / "copy", held)
    policy, stages, server = Script(action), Breaking(bundle), replying()
    edge = make_edge(server, policy, bundle=bundle, stages=stages)
    stages.broken = [f"codec {action.split}", *broken]
    (result,) = edge.run([says(UNSURE)], under_way=under_way)
    assert (result.status, result.exit) == ("failed" if exit_index is None else "degraded", exit_index)
    assert result.where == (None if exit_index is None else "edge")
    assert result.error == "; and here: ".join(f"{what}: out of memory" for what in stages.broken)
    assert (server.requests, result.payload_bytes, result.action) == ([], 0, action)
    (told,) = policy.seen
    assert (told.exit, told.failed, told.offloaded, told.cost) == (exit_index, True, False, result.cost)
    assert not edge.breaker.open  # the server did nothing wrong


def test_given_costs_are_used(make_edge, tail, says):
    cost = CostModel.in_layers((1, 2, 3, 4), gamma=2.0, offload=7.0)
    assert make_edge(tail, FixedSplit(0), cost=cost).infer(says(UNSURE)).cost == 2.0 + 7.0


def test_a_split_at_a_cut_without_an_exit_costs_its_stages_too(make_edge, tail, says):
    costs = [make_edge(tail, FixedSplit(k, gated=False)).infer(says(UNSURE)).cost for k in (-1, 0, 1, 2)]
    assert costs[0] == pytest.approx(0.5)
    assert costs == sorted(costs)  # deeper is never cheaper


def test_a_learner_in_the_loop_finds_the_arm(make_edge, tail, says):
    # Exit 0 is never sure, exit 2 always, the last adds nothing: arm 2 saves the offload.
    policy = ISplitEE(alpha=0.75, c=0.1)
    edge = make_edge(tail, policy)
    results = list(edge.run([says({0: 0.6, 2: 0.95, 3: 0.96})] * 200))
    assert {r.status for r in results} == {"ok"}
    # Arm 0: .96 − .8 = .16; arm 2: .95 − .9 = .05; arm 3: .96 − 1.2 < 0.
    assert [r.action.split for r in results[-50:]].count(0) >= 45
    assert policy.counts[0] > policy.counts[2]


def test_what_only_a_replay_can_learn_from_is_refused(make_edge, tail):
    with pytest.raises(ConfigError, match=r"i-splitee.*published"):
        make_edge(tail, ISplitEE(published=True))


@pytest.mark.parametrize("policy", ["i-splitee", ISplitEE, 3], ids=str)
def test_what_is_no_policy_is_refused(make_edge, tail, policy):
    with pytest.raises(ConfigError, match=r"expected a policy, such as FixedSplit\(0\) or make_policy\(NAME\)"):
        make_edge(tail, policy)


def test_labels_are_told_of_the_exits_that_ran_on_the_edge(make_edge, tail, says):
    policy = Script(Action(2, (2,), watch=(0,)), Action(0, (0,)), Action(3))
    edge = make_edge(tail, policy)
    results = [edge.infer(says(UNSURE)) for _ in range(3)]
    assert [set(seen.labels) for seen in policy.seen] == [{0, 2}, {0}, {3}]
    assert all(seen.labels.keys() == seen.confidences.keys() for seen in policy.seen)
    assert policy.seen[2].labels[3] == results[2].label
    assert all(seen.hidden_final is None for seen in policy.seen)


def test_heads_are_paid_for_where_they_cost(make_edge, tail, says):
    cost = CostModel.in_layers((1, 2, 3, 4), gamma=1.0, offload=10.0, head=0.1)
    actions = (
        Action(2, (2,), watch=(0,)),
        Action(2, (2,)),
        Action(2),
        Action(3, watch=(0, 2)),
        Action(3),
        Action(-1),
    )
    edge = make_edge(tail, Script(*actions), cost=cost)
    paid = [edge.infer(says(UNSURE)).cost for _ in actions]
    assert paid == pytest.approx([13.2, 13.1, 13.0, 4.3, 4.1, 10.0])


def test_an_audit_is_offloaded_and_paid_for(make_edge, tail, says):
    policy = ISplitEE(alpha=0.5, audit=1.0)
    result = make_edge(tail, policy).infer(says(UNSURE))
    assert (result.action, result.where) == (Action(0, watch=(0,)), "server")
    assert result.cost == pytest.approx(0.8)
    assert policy.means[0] == pytest.approx(0.6 - 0.3)  # what its gate would have earned


# --- time -----------------------------------------------------------------------------------------------


def test_the_parts_of_the_latency_add_up(digits_bundle, digit_images):
    bundle = Bundle.load(digits_bundle)
    actions = [Action(k, mode=mode) for k in (-1, 0, 1) for mode in ("float", "uint8")]
    policy = Script(*actions, Action(2, (0, 1)))
    for result in Edge(bundle, Tail(Stages(bundle)), policy).run(digit_images[0][:40]):
        parts = result.latency_ms
        assert min(parts.edge, parts.link, parts.server) >= 0
        assert 0 < parts.edge + parts.link + parts.server <= parts.total + 1e-6
        assert (parts.server > 0) == (parts.link > 0) == (result.where == "server")


def test_the_link_is_what_the_server_did_not_compute(make_edge, clock, says):
    def answer(request, timeout_s):
        clock.now += 0.030
        return TailReply(np.array([[0.0, 1.0]], np.float32), server_ms=10.0)

    parts = make_edge(FakeChannel(answer), ServerOnly()).infer(says(UNSURE)).latency_ms
    assert (parts.total, parts.edge, parts.link, parts.server) == pytest.approx((30.0, 0.0, 20.0, 10.0))


def test_waiting_in_vain_is_the_links_time(make_edge, clock, says):
    parts = make_edge(waiting(clock, 40), FixedSplit(0)).infer(says(UNSURE)).latency_ms
    assert (parts.total, parts.edge, parts.link, parts.server) == pytest.approx((40.0, 0.0, 40.0, 0.0))


@pytest.mark.parametrize("claimed", [1e9, -5.0, math.nan, math.inf, -math.inf])
def test_a_server_that_lies_about_its_time_cannot_break_the_sum(make_edge, clock, says, claimed):
    def answer(request, timeout_s):
        clock.now += 0.030
        return TailReply(np.array([[0.0, 1.0]], np.float32), server_ms=claimed)

    parts = make_edge(FakeChannel(answer), ServerOnly()).infer(says(UNSURE)).latency_ms
    assert parts.link >= 0
    assert parts.server >= 0
    assert parts.link + parts.server == pytest.approx(30.0)


def test_the_stages_times_are_learned(make_edge, tiny, clock, says):
    edge = make_edge(stage_ms=[10.0] * 4)
    edge.infer(says(UNSURE))
    assert edge.stage_ms == pytest.approx([9.0] * 4)


def test_a_slow_device_sleeps(tiny, clock, says):
    def ticking():
        clock.now += 0.001
        return clock.now

    edge = Edge(tiny, slowdown=3, clock=ticking, sleep=clock.sleep)
    clock.slept.clear()
    edge.infer(says(UNSURE))
    assert clock.slept == pytest.approx([0.002] * 4)


def test_a_result_is_json(make_edge, says):
    result = make_edge(raising(ServerUnavailableError("gone")), FixedSplit(0)).infer(says(UNSURE), index=3)
    back = json.loads(json.dumps(result.to_dict()))
    assert (back["index"], back["status"], back["label"], back["action"]["split"]) == (3, "degraded", 1, 0)
    assert set(back["latency_ms"]) == {"total", "edge", "link", "server", "queue"}


def test_edges_may_share_their_sessions(make_edge, tiny, make_bundle, tmp_path, clock, says):
    stages = Stages(tiny, clock=clock, sleep=clock.sleep)
    first, second = (make_edge(policy=EdgeOnly(), stages=stages) for _ in range(2))
    assert first.infer(says(UNSURE)).probabilities == second.infer(says(UNSURE)).probabilities
    other = make_bundle(tmp_path / "other.bundle", exits=(0,), thresholds=(0.75, None, None, None))
    with pytest.raises(ConfigError, match="another bundle's"):
        make_edge(policy=EdgeOnly(), stages=Stages(other))
