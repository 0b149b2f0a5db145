"""Several inputs under way: one result per input, in order, whatever comes back when."""

import random
import signal
import threading
import time

import numpy as np
import pytest

from offramp.errors import ActionError, ConfigError, DeadlineError, ServerUnavailableError
from offramp.policy.base import Action, Policy
from offramp.policy.fixed import ServerOnly
from offramp.policy.i_splitee import ISplitEE
from offramp.policy.registry import POLICIES, make_policy
from offramp.runtime.breaker import CircuitBreaker
from offramp.runtime.edge import Edge
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailReply

UNSURE = {0: 0.6, 2: 0.7, 3: 0.95}
#: A thread that waits for another one fails the test rather than hanging it.
PATIENCE_S = 20.0


class Script(Policy):
    """Plays given actions in turn, and keeps what it was asked and told, and by which thread."""

    def __init__(self, *actions):
        self.actions, self.log, self.threads = actions, [], set()
        self.chosen = 0

    def choose(self, context):
        self.threads.add(threading.get_ident())
        self.log.append(("choose", self.chosen))
        self.chosen += 1
        return self.actions[(self.chosen - 1) % len(self.actions)]

    def update(self, action, observation):
        self.threads.add(threading.get_ident())
        # The last exit's confidence says which input it was; see `numbered`.
        self.log.append(("update", round(100 * observation.confidence) - 60))


class Far:
    """A tail that answers the request of input i when `answer(i)` returns, and counts those at once."""

    def __init__(self, tail, answer=lambda index: None):
        self._tail, self._answer, self._lock = tail, answer, threading.Lock()
        self.now = self.most = self.calls = 0

    def infer(self, request, timeout_s=None):
        with self._lock:
            self.now, self.calls = self.now + 1, self.calls + 1
            self.most = max(self.most, self.now)
        try:
            (cut,) = request.tensors.values()
            number = None if cut.dtype == np.uint8 else round(100 / (1 + np.exp(-cut[0, 7]))) - 60
            self._answer(number)
            return self._tail.infer(request, timeout_s)
        finally:
            with self._lock:
                self.now -= 1

    def close(self):
        pass


@pytest.fixture(scope="module")
def tail(tiny):
    return Tail(Stages(tiny))


@pytest.fixture
def numbered(says):
    """Inputs of which the last exit's confidence tells the number: 60 % and as many percent more."""
    return lambda count: [says({0: 0.55, 2: 0.55, 3: 0.6 + i / 100}, label=1) for i in range(count)]


@pytest.fixture
def make_edge(tiny):
    def make(server=None, policy=None, **options):
        return Edge(tiny, server, policy, **{"deadline_ms": 1e3 * PATIENCE_S, **options})

    return make


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before]
    assert left == []


def until(holds):
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def sure_of(results):
    return [round(100 * r.confidence) - 60 for r in results]


# --- one result per input, in order ---------------------------------------------------------------------


@pytest.mark.parametrize("under_way", [1, 2, 3, 8, 50])
def test_results_are_those_of_one_by_one_and_in_order(make_edge, tail, numbered, under_way):
    delays = random.Random(under_way)
    far = Far(tail, lambda index: time.sleep(delays.random() / 200))
    actions = (Action(0), Action(-1, mode="uint8"), Action(3), Action(2, (0, 2)), Action(1, watch=(0,)))
    inputs = numbered(30)
    expected = list(make_edge(tail, Script(*actions)).run(inputs))
    found = list(make_edge(far, Script(*actions)).run(inputs, under_way=under_way))
    assert [r.index for r in found] == list(range(30))
    for one, other in zip(found, expected, strict=True):
        same = ("status", "exit", "where", "probabilities", "action", "cost", "payload_bytes", "error")
        assert [getattr(one, name) for name in same] == [getattr(other, name) for name in same]
    assert far.most <= under_way


def test_the_next_heads_run_while_answers_are_awaited(make_edge, tail, numbered):
    together = threading.Barrier(4)  # nobody gets an answer before four have asked
    far = Far(tail, lambda index: together.wait(PATIENCE_S))
    results = list(make_edge(far, ServerOnly()).run(numbered(12), under_way=4))
    assert sure_of(results) == list(range(12))
    assert {r.status for r in results} == {"ok"}
    assert far.most == 4


def test_no_more_are_taken_than_may_be_under_way(make_edge, tail, numbered):
    taken = given = most = 0

    def inputs():
        nonlocal taken, most
        for x in numbered(20):
            taken += 1
            most = max(most, taken - given)
            yield x

    for _ in make_edge(Far(tail), Script(Action(0), Action(3))).run(inputs(), under_way=3):
        given += 1  # the loop takes no further one before it is asked for the next result
        time.sleep(0.002)
    assert (taken, given) == (20, 20)
    assert most <= 3


def test_an_input_that_cannot_be_run_fails_alone_and_in_its_place(make_edge, tail, numbered):
    inputs = numbered(6)
    inputs[0], inputs[3], inputs[5] = np.zeros(7, np.float32), None, "text"
    policy = Script(Action(0))
    results = list(make_edge(tail, policy).run(inputs, under_way=3))
    assert [(r.index, r.status) for r in results] == list(
        enumerate(["failed", "ok", "ok", "failed", "ok", "failed"])
    )
    assert len(policy.log) == 6  # three were chosen for and told


def test_nothing_to_run(make_edge, tail):
    assert list(make_edge(tail).run([], under_way=4)) == []


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "4", None])
def test_so_many_cannot_be_under_way(make_edge, wrong):
    with pytest.raises(ConfigError, match="at least 1"):
        make_edge().run([], under_way=wrong)


# --- what the policy is told, and when ------------------------------------------------------------------


def test_a_policy_chooses_in_order_and_is_told_when_answers_come(make_edge, tail, numbered):
    policy = Script(Action(0), Action(0), Action(3))  # the third is answered on the edge

    def answer(index):
        if index == 0:
            until(lambda: ("update", 1) in policy.log)

    results = list(make_edge(Far(tail, answer), policy).run(numbered(3), under_way=3))
    assert sure_of(results) == [0, 1, 2]
    assert [n for what, n in policy.log if what == "choose"] == [0, 1, 2]
    updates = [n for what, n in policy.log if what == "update"]
    assert sorted(updates) == [0, 1, 2]
    assert updates.index(1) < updates.index(0)
    assert policy.log.index(("update", 0)) > policy.log.index(("choose", 1))


def test_an_order_of_answers_does_not_count_as_latency(make_edge, tail, numbered):
    policy = Script(Action(0))

    def answer(index):
        if index == 0:
            until(lambda: ("update", 1) in policy.log)
            time.sleep(0.05)

    first, other = make_edge(Far(tail, answer), policy).run(numbered(2), under_way=2)
    assert other.latency_ms.total < first.latency_ms.total - 50


def test_one_thread_asks_the_policy_and_measures(make_edge, tail, numbered, monkeypatch):
    policy = Script(Action(0), Action(1, (0,)), Action(3))
    edge = make_edge(Far(tail), policy)
    for name in ("ran_stage", "ran_exit", "was_answered", "paid"):
        old = getattr(edge._conditions, name)

        def watched(*arguments, old=old):
            policy.threads.add(threading.get_ident())
            return old(*arguments)

        monkeypatch.setattr(edge._conditions, name, watched)
    list(edge.run(numbered(30), under_way=4))
    assert policy.threads == {threading.get_ident()}


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_copes_with_answers_out_of_order(make_edge, tail, numbered, name):
    delays = random.Random(0)
    far = Far(tail, lambda index: time.sleep(delays.random() / 500))
    options = {"alpha": 0.75} if name not in ("edge-only", "server-only") else {}
    policy = make_policy(name, seed=1, **options)
    results = list(make_edge(far, policy).run(numbered(40) * 2, under_way=4))
    assert [r.index for r in results] == list(range(80))
    assert {r.status for r in results} == {"ok"}
    state = policy.state()
    other = make_policy(name, seed=1, **options)
    other.restore(state)
    assert other.state() == state
    assert state.get("plays", 80) == 80


def test_a_learner_finds_the_arm_although_it_is_told_late(make_edge, tail, says):
    # As one by one: exit 0 is never sure, and an offload from there is the best that there is.
    far = Far(tail, lambda index: time.sleep(0.001))
    policy = ISplitEE(alpha=0.75, c=0.1)
    results = list(make_edge(far, policy).run([says({0: 0.6, 2: 0.95, 3: 0.96})] * 200, under_way=4))
    assert [r.action.split for r in results[-50:]].count(0) >= 45


# --- servers that fail ----------------------------------------------------------------------------------


def test_each_input_falls_back_alone(make_edge, tail, numbered):
    def answer(index):
        if index % 3 == 1:
            raise ServerUnavailableError("gone")

    edge = make_edge(Far(tail, answer), Script(Action(0)), breaker=CircuitBreaker(failures=100))
    results = list(edge.run(numbered(12), under_way=4))
    assert [r.status for r in results] == ["ok", "degraded", "ok"] * 4
    assert [(r.where, r.error) for r in results[:2]] == [("server", None), ("edge", "gone")]
    assert sure_of(results) == list(range(12))  # the edge holds the whole network


def test_one_that_is_late_holds_up_no_other(make_edge, tail, numbered):
    def answer(index):
        if index == 0:
            until(lambda: len([what for what, _ in policy.log if what == "update"]) == 3)
            raise DeadlineError("late")

    policy = Script(Action(0))
    results = list(make_edge(Far(tail, answer), policy).run(numbered(8), under_way=4))
    assert [r.status for r in results] == ["degraded"] + ["ok"] * 7
    assert max(r.latency_ms.total for r in results[1:4]) < results[0].latency_ms.total


def test_a_dead_server_is_asked_by_no_more_than_were_under_way(make_edge, tail, numbered):
    def answer(index):
        raise ServerUnavailableError("gone")

    far = Far(tail, answer)
    breaker = CircuitBreaker(failures=2, reset_s=1e9)
    results = list(make_edge(far, ServerOnly(), breaker=breaker).run(numbered(30), under_way=4))
    assert {r.status for r in results} == {"degraded"}
    assert 2 <= far.calls <= 2 + 3


def test_one_probe_at_a_time(make_edge, tail, numbered, clock):
    down, asked = True, threading.Event()

    def answer(index):
        if down:
            raise ServerUnavailableError("gone")
        asked.set()
        time.sleep(0.02)

    far = Far(tail, answer)
    breaker = CircuitBreaker(failures=1, reset_s=5.0, clock=clock)
    edge = make_edge(far, ServerOnly(), breaker=breaker)
    edge.infer(numbered(1)[0])
    down, clock.now = False, clock.now + 5.0
    results = list(edge.run(numbered(12), under_way=4))
    statuses = [r.status for r in results]
    assert statuses[:4] == ["ok", "degraded", "degraded", "degraded"]  # the first is the probe
    assert asked.is_set()
    assert not breaker.open


# --- ends -----------------------------------------------------------------------------------------------


def test_leaving_early_leaves_no_thread(make_edge, tail, numbered):
    edge = make_edge(Far(tail, lambda index: time.sleep(0.005)), ServerOnly())
    for result in edge.run(numbered(40), under_way=4):
        if result.index == 5:
            break
    assert edge.infer(numbered(1)[0]).status == "ok"  # and the edge goes on


def test_an_iterator_that_is_never_begun_starts_no_thread(make_edge, tail, numbered):
    before = threading.active_count()
    results = make_edge(tail).run(numbered(4), under_way=4)
    assert threading.active_count() == before
    results.close()


def test_an_error_of_the_one_who_asks_ends_it(make_edge, tail, numbered):
    def consume():
        for result in make_edge(Far(tail), ServerOnly()).run(numbered(40), under_way=4):
            if result.index == 3:
                raise LookupError("full")

    with pytest.raises(LookupError):
        consume()


@pytest.mark.parametrize("under_way", [1, 4])
def test_a_source_that_fails_loses_nothing_that_came_before(make_edge, tail, numbered, under_way):
    def inputs():
        yield from numbered(3)
        raise OSError("unplugged")

    found = []
    far = Far(tail, lambda index: time.sleep(0.02))
    with pytest.raises(OSError, match="unplugged"):
        found.extend(make_edge(far, ServerOnly()).run(inputs(), under_way=under_way))  # keeps what came before
    assert sure_of(found) == [0, 1, 2]


@pytest.mark.parametrize("under_way", [1, 4])
def test_an_impossible_action_is_raised_after_the_results_before_it(make_edge, tail, numbered, under_way):
    far = Far(tail, lambda index: time.sleep(0.02))
    policy = Script(Action(0), Action(0), Action(9))
    found = []
    with pytest.raises(ActionError, match="split 9"):
        found.extend(make_edge(far, policy).run(numbered(8), under_way=under_way))
    assert sure_of(found) == [0, 1]


def test_a_channels_own_mistake_is_not_hidden(make_edge, tail, numbered):
    def answer(index):
        time.sleep(0.01 * (5 - index))
        if index == 2:
            raise ZeroDivisionError

    found = []
    with pytest.raises(ZeroDivisionError):
        found.extend(make_edge(Far(tail, answer), ServerOnly()).run(numbered(5), under_way=5))
    assert sure_of(found) == [0, 1]


def test_ctrl_c_hands_out_what_is_under_way(make_edge, tail, numbered):
    main = threading.main_thread()
    if threading.current_thread() is not main:
        pytest.skip("signals reach the main thread only")
    four = threading.Barrier(4)

    def answer(index):
        if four.wait(PATIENCE_S) == 0:
            time.sleep(0.15)  # by then nothing is left to do but to wait
            signal.pthread_kill(main.ident, signal.SIGINT)
        time.sleep(0.3)

    edge, found = make_edge(Far(tail, answer), ServerOnly()), []

    def endless():
        while True:
            yield from numbered(10)

    with pytest.raises(KeyboardInterrupt):
        found.extend(edge.run(endless(), under_way=4))
    assert sure_of(found) == [0, 1, 2, 3]
    assert {r.status for r in found} == {"ok"}


def test_a_source_that_waits_holds_up_neither_results_nor_the_end(make_edge, tail, numbered):
    given = threading.Event()

    def inputs():
        yield from numbered(2)
        assert given.wait(PATIENCE_S)  # nothing more until both results are out
        yield from numbered(1)

    results = make_edge(Far(tail), ServerOnly()).run(inputs(), under_way=4)
    assert sure_of([next(results), next(results)]) == [0, 1]
    given.set()
    assert sure_of(results) == [0]


def test_a_source_that_never_gives_way_does_not_hold_up_who_leaves(make_edge, tail, numbered):
    let_go = threading.Event()

    def inputs():
        yield from numbered(2)
        assert let_go.wait(PATIENCE_S)

    results = make_edge(Far(tail), ServerOnly()).run(inputs(), under_way=4)
    next(results)
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < PATIENCE_S / 2
    let_go.set()  # its thread ends with it
    until(lambda: not any(t.name == "offramp-read" for t in threading.enumerate()))


# --- everything at once ---------------------------------------------------------------------------------

REPLIES = {
    "late": DeadlineError("late"),
    "gone": ServerUnavailableError("gone"),
    "nan": TailReply(np.full((1, 2), np.nan, np.float32)),
    "shape": TailReply(np.zeros((3, 2), np.float32)),
    "exit": TailReply(np.zeros((1, 2), np.float32), np.array([-5])),
}


class Faulty:
    """A tail that is slow, gone, late or out of its mind, as a seed says."""

    def __init__(self, tail, seed):
        self._tail, self._draws, self._lock = tail, random.Random(seed), threading.Lock()
        self._faulty = self._draws.choice((0.0, 0.2, 0.9))

    def infer(self, request, timeout_s=None):
        with self._lock:
            pause, fault = self._draws.random() / 300, self._draws.random() < self._faulty
            kind = self._draws.choice(list(REPLIES))
        time.sleep(pause)
        if not fault:
            return self._tail.infer(request, timeout_s)
        if isinstance(REPLIES[kind], Exception):
            raise REPLIES[kind]
        return REPLIES[kind]

    def close(self):
        pass


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_input_has_one_result_right_or_marked(make_edge, tail, says, seed):
    draws = random.Random(seed)
    count, under_way = draws.randint(1, 40), draws.randint(2, 9)
    inputs, labels = [], []
    for _ in range(count):
        labels.append(draws.randint(0, 1) if draws.random() < 0.9 else None)
        sure = {e: draws.choice((0.6, 0.9)) for e in (0, 2, 3)}
        inputs.append("broken" if labels[-1] is None else says(sure, label=labels[-1]))
    policy = make_policy(draws.choice(list(POLICIES)), seed=seed)
    breaker = CircuitBreaker(failures=draws.choice((1, 3, 1000)), reset_s=draws.choice((0.0, 0.005)))
    edge = make_edge(Faulty(tail, seed), policy, breaker=breaker)
    results = list(edge.run(iter(inputs), under_way=under_way))
    assert [r.index for r in results] == list(range(count))
    assert [r.label for r in results] == labels  # every exit says the same class, so right is right anywhere
    for r, label in zip(results, labels, strict=True):
        assert r.status == "failed" if label is None else r.status in ("ok", "degraded")
        assert (r.error is not None) == (r.status != "ok")
        assert r.where != "server" or r.status == "ok"
