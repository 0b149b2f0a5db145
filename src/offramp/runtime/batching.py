"""Requests that share the stages: who runs with whom, on which worker, and who is refused. No sockets."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from offramp.errors import ConfigError, DeadlineError, ServerBusyError
from offramp.runtime.passage import Batch, Job
from offramp.runtime.tail import Tail, TailReply, TailRequest
from offramp.runtime.telling import Teller

__all__ = ["MAX_BATCH", "MAX_WAIT_MS", "BatchObserver", "Batcher", "Step"]

MAX_BATCH, MAX_WAIT_MS = 16, 2.0


class Step(NamedTuple):
    """A batch has run a stage and its exit: of which network, with how many samples, whose, from when to when."""

    tail: Tail
    stage: int
    samples: int
    jobs: tuple[Job, ...]
    since: float
    until: float


class BatchObserver(Protocol):
    """Told what happens to requests, in seconds on the batcher's clock, in whichever thread it happens."""

    def waited(self, job: Job, since: float, until: float) -> None:
        """A request has waited for a worker."""

    def ran(self, step: Step) -> None:
        """A batch has run a stage."""


class Batcher:
    """Runs tails for many callers at once, stage by stage.

    A worker takes what waits at a stage through the network as one batch; at every further stage those that enter
    there join it. No worker is ever idle while a request waits: a batch is what has gathered while all were busy,
    so a lone request runs at once and alone, in its caller's own thread.

    How many join is the tail's to say (`BatchSizes`). Where a batch is hardly cheaper than its samples one by one,
    all in it wait for all of it, so batches stay small until the line is long: a worker takes half of its share.

    A free worker begins at the earliest stage where somebody waits, so that as many as possible join on the way,
    unless somebody else has waited for `max_wait_ms`: then with whoever has waited longest.

    Args:
        workers: Batches that compute at the same time; one per core is fastest.
        queue: Requests under way beyond one per worker; more are refused.
        max_batch: Samples that run beside each other at most, but for requests that bring more; 1 is no batching.
        max_wait_ms: How long others may go first so that they can join; 0 is strictly by arrival.
        observers: Told of what waits and runs.
        clock: Gives seconds.

    Raises:
        ConfigError: Fewer than one worker, or more than there is room for, a negative queue or wait, or a batch
            of none.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        queue: int = 64,
        max_batch: int = MAX_BATCH,
        max_wait_ms: float = MAX_WAIT_MS,
        observers: Sequence[BatchObserver] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if workers < 1 or queue < 0:
            raise ConfigError(f"a server needs at least one worker, not {workers} (queue {queue})")
        if max_batch < 1 or not max_wait_ms >= 0:
            raise ConfigError(
                f"a batch holds at least one and waits at least 0 ms, not {max_batch}, {max_wait_ms}"
            )
        self._most, self._max_batch, self._clock = workers + queue, max_batch, clock
        self._observers, self._tell = tuple(observers), Teller(clock)
        self._max_wait_s = max_wait_ms / 1e3 if max_batch > 1 else 0.0  # where nobody can join, by arrival
        self._lock = threading.Lock()
        self._workers, self._free, self._under_way, self._in_line = workers, workers, 0, 0
        #: Who waits at which stage of which tail, longest first; no entry is empty. None waits while one is free.
        self._waiting: dict[tuple[Tail, int], deque[_Waiting]] = {}
        #: Batches whose driver has its own answer; each comes with the right to a worker.
        self._orphans: SimpleQueue[tuple[Tail, Batch] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        for i in range(workers):
            thread = threading.Thread(target=self._work, name=f"offramp-worker-{i}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self.close()
                raise ConfigError(f"there is no room for {workers} workers; one per core is fastest") from error
            self._threads.append(thread)

    @property
    def under_way(self) -> int:
        """Requests that wait or compute."""
        return self._under_way

    def infer(
        self,
        tail: Tail,
        request: TailRequest,
        wanted: Callable[[], bool] = lambda: True,
        trace: object | None = None,
    ) -> TailReply:
        """Answers one request, perhaps together with others.

        Args:
            tail: Which network.
            request: The cut.
            wanted: Asked after a wait: does the caller still want an answer?
            trace: The job's, for observers.

        Raises:
            ServerBusyError: Too many are under way.
            DeadlineError: The caller did not want it any more when its turn came.
            ServerRefusedError, DigestMismatchError, InputError, StageError: As `Tail.infer` says.
        """
        with self._lock:
            if self._under_way >= self._most:
                raise ServerBusyError("the server's queue is full; try again later")
            self._under_way += 1
        try:
            start = self._clock()
            job = tail.admit(request)
            job.trace = trace
            waited_s = self._run(tail, job, wanted)
            logits, exits = job.answer
            server_ms = (self._clock() - start - waited_s) * 1e3
            return TailReply(logits, exits, server_ms, waited_s * 1e3, job.largest)
        finally:
            with self._lock:
                self._under_way -= 1

    def close(self) -> None:
        """Ends the workers once nothing is under way; no request may come any more."""
        while self._under_way:  # a batch whose caller was answered still needs a worker
            time.sleep(0.005)
        for _ in self._threads:
            self._orphans.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, tail: Tail, job: Job, wanted: Callable[[], bool]) -> float:
        """Lets a job through; gives the seconds that it waited."""
        with self._lock:
            if self._free:
                self._free -= 1
                waiting = None
            else:
                waiting = _Waiting(job, self._clock(), wanted)
                self._waiting.setdefault((tail, job.stage), deque()).append(waiting)
                self._in_line += 1
        if waiting is None:
            self._drive(tail, tail.batch(job), job)
            return 0.0
        waiting.answered.acquire()
        for observer in self._observers:
            self._tell(observer.waited, job, waiting.since, waiting.until)
        return waiting.until - waiting.since

    def _work(self) -> None:
        while (orphan := self._orphans.get()) is not None:
            self._drive(*orphan, None)

    def _drive(self, tail: Tail, batch: Batch, own: Job | None) -> None:
        """Goes on with a batch, then with those that wait; a caller's thread only until its own job is done."""
        while True:
            self._step(tail, batch)
            if not batch.jobs:
                with self._lock:
                    found = self._next()
                    if found is None:
                        self._free += 1
                        return
                tail, batch = found
            if own is not None and own.done:
                self._orphans.put((tail, batch))
                return

    def _step(self, tail: Tail, batch: Batch) -> None:
        """One stage, with those that enter there; whoever is done learns of it."""
        joining: list[Job] = []
        step: Step | None = None
        room = self._limit(tail, batch) - batch.samples
        if room > 0 and self._waiting:
            with self._lock:
                joining = self._take(tail, batch.stage, room)
        try:
            if joining:
                batch.join(joining)
            if self._observers:
                step = Step(tail, batch.stage, batch.samples, tuple(batch.jobs), self._clock(), 0.0)
            done = batch.step()
        except Exception as error:
            step = None
            # What fails together, for want of memory say, may succeed alone; and nobody pays for another's input.
            parts = [*batch.split(), *(tail.batch(job) for job in joining if job not in batch.jobs)]
            done, batch.jobs = [part.jobs[0] for part in parts], []
            for job, part in zip(done, parts, strict=True):
                try:
                    if len(parts) == 1:
                        raise error
                    part.run()
                except Exception as reason:
                    job.error = reason
        if step is not None:
            step = step._replace(until=self._clock())
            for observer in self._observers:
                self._tell(observer.ran, step)
        for job in done:
            job.on_done()

    def _limit(self, tail: Tail, batch: Batch) -> int:
        if tail.sizes is None:
            return self._max_batch
        eager, most = tail.sizes[batch.stage]
        half_a_share = (self._in_line + len(batch.jobs)) // (2 * self._workers)
        return min(self._max_batch, most, max(eager, half_a_share))

    def _next(self) -> tuple[Tail, Batch] | None:
        """Whoever waits and is to go first, as a batch; the lock is held."""
        while self._waiting:
            (tail, stage), line = min(self._waiting.items(), key=lambda entry: entry[1][0].since)
            if self._clock() - line[0].since < self._max_wait_s:
                stage = min(s for t, s in self._waiting if t is tail)
            first = self._take(tail, stage, None)
            if first:
                return tail, tail.batch(first[0])
        return None

    def _take(self, tail: Tail, stage: int, room: int | None) -> list[Job]:
        """Takes those that wait at a stage out of the line, as many as fit, or one; the lock is held."""
        line = self._waiting.get((tail, stage), deque())
        taken: list[Job] = []
        while line and (not taken if room is None else line[0].job.samples <= room):
            waiting = line.popleft()
            self._in_line -= 1
            waiting.until = self._clock()
            if not waiting.wanted():
                waiting.job.error = DeadlineError("the caller no longer waits for this answer")
                waiting.job.on_done()
                continue
            taken.append(waiting.job)
            room = None if room is None else room - waiting.job.samples
        if not line:
            self._waiting.pop((tail, stage), None)
        return taken


class _Waiting:
    """A job whose turn comes: since when, until when (seconds), and what its caller's thread sleeps on."""

    def __init__(self, job: Job, since: float, wanted: Callable[[], bool]) -> None:
        self.job, self.since, self.until, self.wanted = job, since, since, wanted
        self.answered = threading.Lock()  # the cheapest of all signals
        self.answered.acquire()
        job.on_done = self.answered.release
