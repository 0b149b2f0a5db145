"""Several inputs under way: the next ones' heads run while answers are awaited, and results stay in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeAlias

from offramp.runtime.result import Result
from offramp.runtime.trip import Trip

__all__ = ["Pipeline"]

#: How long a source that blocks is waited for once nobody wants its inputs any more.
_SOURCE_S = 0.5


@dataclass(frozen=True)
class _Input:
    """The source's next input."""

    x: Any


@dataclass(frozen=True)
class _End:
    """The source has no more, or has failed."""

    error: BaseException | None = None


#: What the loop waits for; a trip is back, answered or not.
_Event: TypeAlias = _Input | _End | Trip


class Pipeline:
    """One result per input, in order, with at most `under_way` inputs taken and not yet handed out.

    Whoever iterates over `run` runs `begin` and `finish`, one at a time; only the inputs and `send` run in other
    threads. What is back is finished when it comes, so not always in the inputs' order.

    Args:
        under_way: The most inputs at once.
        begin: Takes an input and its index; a trip that it gives is sent if it has a request.
        send: Sends and waits; touches nothing but the trip.
        finish: The result of a trip.
    """

    def __init__(
        self,
        under_way: int,
        *,
        begin: Callable[[Any, int], Trip | Result],
        send: Callable[[Trip], None],
        finish: Callable[[Trip], Result],
    ) -> None:
        self._most, self._begin, self._send, self._finish = under_way, begin, send, finish
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._results: dict[int, Result] = {}
        #: Inputs begun, and results handed out.
        self._begun = self._given = 0
        self._failure: BaseException | None = None

    def run(self, inputs: Iterable[Any]) -> Iterator[Result]:
        """The results; to be called once.

        An error of the inputs, of `begin` or of `finish`, and a Ctrl-C, end the intake: what is under way before
        it is still waited for and handed out, then it is raised. A second Ctrl-C drops the rest.

        Args:
            inputs: Read in a thread of their own, one ahead.
        """
        reader = _Reader(inputs, self._events)
        senders = ThreadPoolExecutor(self._most, thread_name_prefix="offramp-send")
        try:
            while self._wants(reader) or self._given < self._begun:
                self._step(reader, senders)
                while self._given < self._begun and self._given in self._results:
                    yield self._results.pop(self._given)
                    self._given += 1
            if self._failure is not None:
                raise self._failure
        finally:
            reader.stop()
            senders.shutdown(cancel_futures=True)  # calls under way end with their deadlines

    def _wants(self, reader: _Reader) -> bool:
        """Whether there may be another input; it is asked for if there is room."""
        if self._failure is not None or reader.ended:
            return False
        if not reader.wanted and self._begun - self._given < self._most:
            reader.want()
        return True

    def _step(self, reader: _Reader, senders: Executor) -> None:
        """Waits for what comes first, an input or what was sent, and takes it on."""
        broken = self._begun  # the first input that gets no result should this fail
        try:
            event = self._events.get()
            if isinstance(event, Trip):
                broken = event.index
                self._results[broken] = self._finish(event)
            elif isinstance(event, _End):
                reader.ended = True
                if event.error is not None:
                    raise event.error
            elif self._failure is None:
                reader.wanted = False
                self._begun += 1
                self._wants(reader)  # it reads while this head runs
                self._take(event.x, broken, senders)
        except BaseException as error:
            if self._failure is not None and not isinstance(error, Exception):
                raise
            self._failure = self._failure or error
            self._begun = min(self._begun, broken)

    def _take(self, x: Any, index: int, senders: Executor) -> None:
        trip = self._begin(x, index)
        if isinstance(trip, Result):
            self._results[index] = trip
        elif trip.request is None:
            self._results[index] = self._finish(trip)
        else:
            senders.submit(self._send_and_tell, trip)

    def _send_and_tell(self, trip: Trip) -> None:
        try:
            self._send(trip)
        finally:
            self._events.put(trip)


class _Reader:
    """Reads a source in a thread, each input when it is wanted."""

    def __init__(self, inputs: Iterable[Any], events: SimpleQueue[_Event]) -> None:
        #: Whether an input is on its way to the loop, and whether there will be none any more.
        self.wanted = self.ended = False
        self._turns, self._stopped = threading.Semaphore(0), False
        # A daemon: nothing can wake a source that waits for ever.
        self._thread = threading.Thread(target=self._read, args=(inputs, events), name="offramp-read", daemon=True)
        self._thread.start()

    def want(self) -> None:
        """Lets the next input be read."""
        self.wanted = True
        self._turns.release()

    def stop(self) -> None:
        """Ends the thread, as soon as the source gives way."""
        self._stopped = True
        self._turns.release()
        self._thread.join(_SOURCE_S)

    def _read(self, inputs: Iterable[Any], events: SimpleQueue[_Event]) -> None:
        try:
            for x in self._at_turns(inputs):
                events.put(_Input(x))
            events.put(_End())
        except BaseException as error:
            events.put(_End(error))

    def _at_turns(self, inputs: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(inputs)
        while self._turns.acquire() and not self._stopped:
            try:
                x = next(iterator)
            except StopIteration:
                return
            yield x
