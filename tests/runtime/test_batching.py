"""Requests that share the stages. `Held` stages compute when told to, so that who runs with whom is certain."""

import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest

from offramp.bundle.bundle import Bundle
from offramp.bundle.preprocessing import preprocess
from offramp.errors import ConfigError, DeadlineError, InputError, ServerBusyError, StageError
from offramp.runtime.batching import Batcher
from offramp.runtime.passage import Batch
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest, tail_name

LAST = 3


class Held:
    """The tiny bundle's stages: each run is noted as (stage, samples), and waits for `let` where it is held."""

    def __init__(self, stages, held=()):
        self._stages, self.runs, self.held = stages, [], set(held)
        self.inside, self.let = threading.Semaphore(0), threading.Semaphore(0)
        self.fails, self.lasts_s = lambda tensors: False, 0.0

    def __getattr__(self, name):
        return getattr(self._stages, name)

    def stage(self, index, tensors):
        self.runs.append((index, len(tensors[0])))
        if index in self.held:
            self.inside.release()
            assert self.let.acquire(timeout=30)
        time.sleep(self.lasts_s)
        if self.fails(tensors):
            raise StageError("out of memory")
        return self._stages.stage(index, tensors)


class Callers:
    """Threads that each ask once; their answers by number."""

    def __init__(self, batcher, tail):
        self.batcher, self.tail, self.threads, self.got = batcher, tail, [], {}

    def ask(self, cut, x, *, final=False, wanted=lambda: True, enters=True):
        """Asks in a thread of its own, and returns once the request waits or computes."""
        number, before = len(self.threads), self.batcher.under_way
        request = TailRequest(tail_name("tiny", cut, "float"), {self.spec(cut): np.atleast_2d(x)}, final=final)

        def run():
            try:
                self.got[number] = self.batcher.infer(self.tail, request, wanted)
            except Exception as error:
                self.got[number] = error

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        until(lambda: not enters or self.batcher.under_way > before)
        return number

    @staticmethod
    def spec(cut):
        return "input" if cut < 0 else f"cut_{cut}"

    def waiting(self, count):
        """Waits until as many are in line."""
        until(lambda: sum(map(len, self.batcher._waiting.values())) == count)

    def join(self):
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()
        return [self.got[i] for i in range(len(self.threads))]


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def alone(tiny):
    """The slow way: one by one."""
    tail = Tail(Stages(tiny))

    def infer(cut, x, final=False):
        return tail.infer(
            TailRequest(tail_name("tiny", cut, "float"), {Callers.spec(cut): np.atleast_2d(x)}, final=final)
        )

    return infer


@pytest.fixture
def start(tiny):
    """start(workers=…, held=…) gives stages, callers; everything ends with the test."""
    started = []

    def make(*, held=(), sizes=None, **settings):
        stages = Held(Stages(tiny), held)
        tail, batcher = Tail(stages, sizes=sizes), Batcher(**settings)
        started.append((stages, batcher))
        return stages, Callers(batcher, tail)

    yield make
    for stages, batcher in started:
        stages.held.clear()
        stages.let.release(100)
        batcher.close()


def unsure(number):
    """An input that no exit is sure of, and whose logits are its own."""
    return np.full(8, 1 + number, np.float32) * np.array([1, 1.25] * 4, np.float32) / 8


# --- who runs with whom ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", list(itertools.combinations_with_replacement(range(-1, LAST), 3)), ids=str)
def test_requests_join_at_the_next_stage_they_share_at_every_mix(start, alone, cuts):
    stages, callers = start(held={0})
    callers.ask(-1, unsure(9))
    stages.inside.acquire(timeout=30)  # the first is in stage 0: whoever enters there waits for the next batch
    for n, cut in enumerate(cuts):
        callers.ask(cut, unsure(n))
    callers.waiting(len(cuts))
    stages.held.clear()
    stages.let.release()
    replies = callers.join()
    late = sum(cut == -1 for cut in cuts)
    first = [(0, 1), *((i, 1 + sum(0 <= cut < i for cut in cuts)) for i in range(1, LAST + 1))]
    assert stages.runs == first + ([(i, late) for i in range(LAST + 1)] if late else [])
    for n, cut in enumerate(cuts):
        expected = alone(cut, unsure(n))
        np.testing.assert_allclose(replies[1 + n].logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert replies[1 + n].exits.tolist() == expected.exits.tolist() == [LAST]
        assert replies[1 + n].batch == max(late if cut == -1 else first[i][1] for i in range(cut + 1, LAST + 1))


def test_one_request_alone_is_answered_by_its_caller_bit_for_bit(digits_bundle, digit_images):
    tail = Tail(Stages(Bundle.load(digits_bundle)))
    batcher = Batcher()
    name, inputs = tail.bundle.manifest.name, preprocess(digit_images[0][:20], tail.bundle.manifest.preprocessing)
    for x in inputs:
        request = TailRequest(name, {"input": x[None]})
        reply, expected = batcher.infer(tail, request), tail.infer(request)
        assert reply.logits.tobytes() == expected.logits.tobytes()
        assert reply.exits.tolist() == expected.exits.tolist()
        assert (reply.queue_ms, reply.batch) == (0.0, 1)
    batcher.close()


def test_a_batch_holds_no_more_than_its_limit_and_the_rest_follows(start):
    stages, callers = start(held={0}, max_batch=3)
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    for n in range(5):
        callers.ask(1, unsure(n))
    callers.waiting(5)
    stages.held.clear()
    stages.let.release()
    callers.join()
    assert stages.runs == [(0, 1), (1, 1), (2, 3), (3, 3), (2, 3), (3, 3)]


def test_a_stages_own_sizes_go_before(start):
    stages, callers = start(held={0}, sizes=[(1, 1), (1, 1), (2, 2), (4, 4)])
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    for n, cut in enumerate((0, 1, 1, 2, 2)):
        callers.ask(cut, unsure(n))
        callers.waiting(n + 1)  # in this order
    stages.held.clear()
    stages.let.release()
    callers.join()
    assert stages.runs == [(0, 1), (1, 1), (2, 2), (3, 4), (1, 1), (2, 2), (3, 2)]


@pytest.mark.parametrize(("line", "first"), [(2, 2), (7, 2), (11, 3), (15, 4), (40, 6)])
def test_batches_grow_with_the_line_where_they_are_hardly_cheaper(start, line, first):
    """Two workers: each takes half of its share of those that wait, a quarter of all, at least 2 and at most 6."""
    stages, callers = start(held={0}, workers=2, sizes=[(2, 6)] * 4)
    callers.ask(-1, unsure(0))
    callers.ask(-1, unsure(0))
    for _ in range(2):
        stages.inside.acquire(timeout=30)
    for n in range(line):
        callers.ask(0, unsure(n))
    callers.waiting(line)
    stages.let.release()
    until(lambda: (1, first) in stages.runs)
    assert next(n for stage, n in stages.runs if stage == 1) == first
    stages.held.clear()
    stages.let.release(2)
    callers.join()
    assert max(n for stage, n in stages.runs) <= 6


def test_without_batching_everybody_runs_alone(start):
    stages, callers = start(held={0}, max_batch=1)
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    for n in range(4):
        callers.ask(1, unsure(n))
    callers.waiting(4)
    stages.held.clear()
    stages.let.release()
    assert [reply.batch for reply in callers.join()] == [1] * 5
    assert set(stages.runs) == {(i, 1) for i in range(4)}


def test_a_request_larger_than_a_batch_runs_whole_and_alone(start, alone):
    stages, callers = start(held={0}, max_batch=4)
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    many = np.stack([unsure(n) for n in range(10)])
    callers.ask(1, many)
    callers.ask(1, unsure(1))
    callers.waiting(2)
    stages.held.clear()
    stages.let.release()
    replies = callers.join()
    assert np.array_equal(replies[1].logits, alone(1, many).logits)
    assert (2, 10) in stages.runs
    assert replies[1].batch == 10


@pytest.mark.parametrize(("waited_s", "begins_at"), [(0.001, 0), (0.02, 2)])
def test_others_go_first_so_that_they_can_join_but_not_for_long(start, clock, waited_s, begins_at):
    stages, callers = start(held={3}, max_wait_ms=10, clock=clock)
    callers.ask(2, unsure(0))
    stages.inside.acquire(timeout=30)
    callers.ask(1, unsure(1))  # the longest in line
    callers.waiting(1)
    clock.now += waited_s
    callers.ask(-1, unsure(2))
    callers.waiting(2)
    stages.held.clear()
    stages.let.release()
    replies = callers.join()
    both = [(0, 1), (1, 1), (2, 2), (3, 2)]
    apart = [(2, 1), (3, 1), (0, 1), (1, 1), (2, 1), (3, 1)]
    assert stages.runs == [(3, 1), *(both if begins_at == 0 else apart)]
    assert replies[1].queue_ms == pytest.approx(1e3 * waited_s)


# --- exits on the way -----------------------------------------------------------------------------------


def test_who_is_sure_leaves_the_batch_and_is_answered_at_once(start, says):
    stages, callers = start(held={0, 3})
    early = callers.ask(-1, says({0: 0.9}))
    stages.inside.acquire(timeout=30)
    late = callers.ask(0, unsure(1))
    second = callers.ask(0, says({2: 0.9}))
    callers.waiting(2)
    stages.let.release()
    callers.threads[early].join(30)
    stages.inside.acquire(timeout=30)  # stage 3 is held
    callers.threads[second].join(30)  # answered already
    assert late not in callers.got
    stages.let.release()
    replies = callers.join()
    assert [reply.exits.tolist() for reply in replies] == [[0], [LAST], [2]]
    assert stages.runs == [(0, 1), (1, 2), (2, 2), (3, 1)]


def test_a_caller_is_not_kept_by_those_who_joined(start, says):
    stages, callers = start(held={1, 3})
    first = callers.ask(0, says({2: 0.9}))
    stages.inside.acquire(timeout=30)
    callers.ask(1, unsure(1))
    callers.waiting(1)
    stages.let.release()
    stages.inside.acquire(timeout=30)
    callers.threads[first].join(30)  # although the batch goes on
    assert callers.got[first].exits.tolist() == [2]
    stages.let.release()
    assert [reply.exits.tolist() for reply in callers.join()] == [[2], [LAST]]


def test_a_place_that_becomes_free_is_taken(start, says):
    stages, callers = start(held={0}, max_batch=2)
    callers.ask(-1, says({0: 0.9}))
    stages.inside.acquire(timeout=30)
    callers.ask(0, says({2: 0.9}))
    callers.ask(0, unsure(1))
    callers.ask(2, unsure(2))
    callers.waiting(3)
    stages.held.clear()
    stages.let.release()
    callers.join()
    assert stages.runs == [(0, 1), (1, 2), (2, 2), (3, 2)]


def test_final_and_gated_requests_share_a_batch(start, alone, says):
    stages, callers = start(held={0})
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    sure = says({2: 0.9, 3: 0.6})
    callers.ask(0, sure, final=True)
    callers.ask(0, sure)
    mixed = np.stack([sure, says({3: 0.8}), sure])
    callers.ask(0, mixed)
    callers.waiting(3)
    stages.held.clear()
    stages.let.release()
    replies = callers.join()
    assert [reply.exits.tolist() for reply in replies[1:]] == [[LAST], [2], [2, LAST, 2]]
    assert np.array_equal(replies[1].logits, alone(0, sure, final=True).logits)
    assert np.array_equal(replies[3].logits, alone(0, mixed).logits)
    assert stages.runs[-1] == (3, 3)


# --- what goes wrong ------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_takes_again(start):
    stages, callers = start(held={0}, queue=2)
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    callers.ask(-1, unsure(1))
    callers.ask(0, unsure(2))
    with pytest.raises(ServerBusyError, match="queue is full"):
        callers.batcher.infer(callers.tail, TailRequest("tiny", {"input": unsure(3)[None]}))
    stages.held.clear()
    stages.let.release()
    callers.join()
    until(lambda: callers.batcher.under_way == 0)
    assert callers.batcher.infer(callers.tail, TailRequest("tiny", {"input": unsure(3)[None]})).batch == 1


def test_whoever_no_longer_waits_is_not_computed(start):
    stages, callers = start(held={0})
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    gone = [callers.ask(cut, unsure(1), wanted=lambda: False) for cut in (-1, 1)]
    there = callers.ask(1, unsure(2))
    callers.waiting(3)
    stages.held.clear()
    stages.let.release()
    replies = callers.join()
    assert all(isinstance(replies[number], DeadlineError) for number in gone)
    assert replies[there].batch == 2
    assert stages.runs == [(0, 1), (1, 1), (2, 2), (3, 2)]
    assert callers.batcher._waiting == {}


def test_a_wrong_request_is_refused_before_it_waits(start):
    stages, callers = start()
    with pytest.raises(InputError):
        callers.batcher.infer(callers.tail, TailRequest("tiny", {"input": np.zeros((1, 5), np.float32)}))
    assert callers.batcher.under_way == 0
    assert stages.runs == []


def test_what_fails_together_is_tried_alone(start, alone):
    stages, callers = start(held={0})
    stages.fails = lambda tensors: len(tensors[0]) > 1
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    for n, cut in enumerate((0, 1, 1)):
        callers.ask(cut, unsure(n))
    callers.waiting(3)
    stages.held.clear()
    stages.let.release()
    for reply, (n, cut) in zip(callers.join(), ((0, -1), (0, 0), (1, 1), (2, 1)), strict=True):
        assert np.array_equal(reply.logits, alone(cut, unsure(n)).logits)


def test_nobody_pays_for_another_s_input(start, alone):
    stages, callers = start(held={0})
    poison = unsure(7)
    stages.fails = lambda tensors: bool((tensors[0] == poison).all(axis=1).any())
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    callers.ask(0, poison)
    callers.ask(0, unsure(1))
    callers.waiting(2)
    stages.held.clear()
    stages.let.release()
    replies = callers.join()
    assert isinstance(replies[1], StageError)
    for reply, (n, cut) in ((replies[0], (0, -1)), (replies[2], (1, 0))):
        assert np.array_equal(reply.logits, alone(cut, unsure(n)).logits)


def test_memory_that_does_not_suffice_to_join_loses_nobody(start, alone, monkeypatch):
    def refuse(self, jobs):
        raise MemoryError

    monkeypatch.setattr(Batch, "join", refuse)
    stages, callers = start(held={0})
    callers.ask(-1, unsure(0))
    stages.inside.acquire(timeout=30)
    callers.ask(0, unsure(1))
    callers.waiting(1)
    stages.held.clear()
    stages.let.release()
    first, second = callers.join()
    assert np.array_equal(first.logits, alone(-1, unsure(0)).logits)
    assert np.array_equal(second.logits, alone(0, unsure(1)).logits)


def test_a_failure_gives_its_worker_back(start):
    stages, callers = start()
    stages.fails = lambda tensors: True
    for _ in range(3):
        with pytest.raises(StageError):
            callers.batcher.infer(callers.tail, TailRequest("tiny", {"input": unsure(0)[None]}))
    stages.fails = lambda tensors: False
    assert callers.batcher.infer(callers.tail, TailRequest("tiny", {"input": unsure(0)[None]})).batch == 1


class Broken:
    """An observer that fails at everything."""

    def waited(self, job, since, until):
        raise RuntimeError("no room for the times")

    def ran(self, step):
        raise RuntimeError("no room for the stages")


def test_an_observer_that_fails_costs_nobody_an_answer_or_a_worker(start, alone, caplog):
    stages, callers = start(held=[0], observers=[Broken()])
    callers.ask(-1, unsure(0))
    assert stages.inside.acquire(timeout=30)
    callers.ask(0, unsure(1))  # joins the first, and is answered by its thread
    callers.waiting(1)
    stages.held.clear()
    stages.let.release()
    for number, (cut, reply) in enumerate(zip((-1, 0), callers.join(), strict=True)):
        assert np.allclose(reply.logits, alone(cut, unsure(number)).logits, atol=1e-5)
    assert callers.batcher.infer(callers.tail, TailRequest("tiny", {"input": unsure(0)[None]})).batch == 1
    assert {str(record.exc_info[1]) for record in caplog.records} == {
        "no room for the times",
        "no room for the stages",
    }


@pytest.mark.parametrize(
    "bad", [{"workers": 0}, {"queue": -1}, {"max_batch": 0}, {"max_wait_ms": -1}, {"max_wait_ms": float("nan")}]
)
def test_bad_settings(bad):
    with pytest.raises(ConfigError):
        Batcher(**bad)


def test_closing_ends_the_workers():
    batcher = Batcher(workers=3)
    batcher.close()
    assert not any(thread.is_alive() for thread in batcher._threads)


# --- everything at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "max_batch"), [(1, 4), (2, 16), (2, 1), (4, 7)])
def test_64_threads_get_each_their_own_answer(tiny, alone, workers, max_batch):
    held = [Held(Stages(tiny)) for _ in range(2)]  # two bundles at once
    tails = [Tail(stages) for stages in held]
    for stages in held:
        stages.lasts_s = 2e-4
    batcher = Batcher(workers=workers, queue=64, max_batch=max_batch, max_wait_ms=1)
    wrong, seen = [], Counter()

    def ask(number):
        rng = np.random.default_rng(number)
        for _ in range(25):
            cut, n, final = int(rng.integers(-1, LAST)), int(rng.choice([1, 1, 1, 2, 5])), bool(rng.integers(2))
            x = rng.normal(0, 1.5, (n, 8)).astype(np.float32)
            request = TailRequest(tail_name("tiny", cut, "float"), {Callers.spec(cut): x}, final=final)
            reply, expected = batcher.infer(tails[int(rng.integers(2))], request), alone(cut, x, final)
            seen[reply.batch > n] += 1
            if not (
                np.array_equal(reply.exits, expected.exits) and np.allclose(reply.logits, expected.logits, 1e-5)
            ):
                wrong.append((number, cut))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    batcher.close()
    assert wrong == []
    assert sum(seen.values()) == 64 * 25
    assert (seen[True] > 0) == (max_batch > 1)
    assert (batcher.under_way, batcher._free, batcher._waiting) == (0, workers, {})


def test_more_workers_than_there_is_room_for(monkeypatch):
    """Those that did start end again."""
    started = []

    def start(thread):
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        begin(thread)

    begin = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ConfigError, match="no room for 5 workers"):
        Batcher(workers=5)
    assert [thread.is_alive() for thread in started] == [False] * 3
