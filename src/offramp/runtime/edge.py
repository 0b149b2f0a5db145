"""The edge loop: for each input one action, one result, and what was seen goes back to the policy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from offramp.bundle.bundle import Bundle
from offramp.errors import ActionError, ConfigError, DeadlineError, InputError, ServerError, StageError
from offramp.policy.base import Action, Context, Policy
from offramp.policy.cost import CostModel, MeasuredCost
from offramp.policy.fixed import EdgeOnly
from offramp.runtime.breaker import CircuitBreaker
from offramp.runtime.conditions import Conditions
from offramp.runtime.gate import Gate
from offramp.runtime.head import Head
from offramp.runtime.pipeline import Pipeline
from offramp.runtime.reply import read_reply
from offramp.runtime.result import Latency, Result, Status, Where
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Channel, TailRequest, tail_name
from offramp.runtime.telling import Teller
from offramp.runtime.trip import Trip, TripTracer

__all__ = ["Edge"]

_log = logging.getLogger("offramp.edge")


class Edge:
    """Runs inputs through the stages it holds, and through a server where the policy says so.

    Args:
        bundle: A bundle, or the path of one; an edge copy will do.
        server: The way to a server that holds the whole bundle; without one, everything stays on the edge.
        policy: Chooses for each input; `EdgeOnly()` if left out.
        deadline_ms: The time that one input may take. An offload gets what is left of it, less what the edge
            would need to reach its next exit if it had to, should there be time for that.
        cost: What things cost, or what is weighed where cost is measured; the papers' units at the bundle's
            depths if left out.
        link_mbps: The rate of the link to the server in Mbit/s, where estimates of it begin; policies compress
            cuts where that pays. None leaves them as they are.
        threads: Threads per session.
        slowdown: Emulates a device this many times slower; for experiments.
        stages: The bundle's sessions, to share them with another edge in this process; made with `threads` and
            `slowdown` if left out.
        breaker: The circuit breaker before the server.
        tracer: Follows every input, such as an `off.EdgeTracer()`.
        clock: Gives seconds.
        sleep: Sleeps for seconds.

    Raises:
        BundleError: The bundle cannot be trusted or read.
        ConfigError: A deadline or a rate that is not positive, no policy, or one that plays in replays only, or a
            cost that weighs nothing but what is sent, without a server.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        server: Channel | None = None,
        policy: Policy | None = None,
        *,
        deadline_ms: float = 1000.0,
        cost: CostModel | MeasuredCost | None = None,
        link_mbps: float | None = None,
        threads: int = 1,
        slowdown: float = 1.0,
        stages: Stages | None = None,
        breaker: CircuitBreaker | None = None,
        tracer: TripTracer | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not deadline_ms > 0:
            raise ConfigError(f"deadline_ms must be above 0, not {deadline_ms}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.policy = policy or EdgeOnly()
        if not isinstance(self.policy, Policy):
            raise ConfigError(f"expected a policy, such as FixedSplit(0) or make_policy(NAME), got {policy!r}")
        if self.policy.replay_only:
            raise ConfigError(
                f"{self.policy.name} learns from what only a replay knows (published); make it without, with audit"
            )
        self.deadline_ms = deadline_ms
        self.breaker = breaker or CircuitBreaker(clock=clock)
        self._server, self._clock, self._tracer, self._tell = server, clock, tracer, Teller(clock)
        self._manifest = self.bundle.manifest
        stages = stages or Stages(self.bundle, threads=threads, slowdown=slowdown, clock=clock, sleep=sleep)
        if stages.bundle.digest != self.bundle.digest:
            raise ConfigError("these stages are another bundle's")
        self._gate = Gate(self.bundle.tuning)
        held, last, tuning = self.bundle.held, self._manifest.last, self.bundle.tuning
        exits = tuple(i for i in range(min(held, last)) if self._manifest.exits[i] is not None)
        if server is None and isinstance(cost, MeasuredCost) and not (cost.latency or cost.energy):
            raise ConfigError("payload alone cannot be weighed without a server: nothing is sent")
        units = cost or CostModel.in_layers([stage.depth for stage in self._manifest.stages])
        self._conditions = Conditions(stages, exits, units, link_mbps)
        self._head = Head(stages, self._gate, self._conditions, exits)
        #: Milliseconds per stage, a running mean; what an offload must leave for the way back.
        self.stage_ms = self._conditions.stage_ms
        #: What the link is estimated to take; None without a server.
        self.link = None if server is None else self._conditions.link
        self._watches_conditions = self.policy.wants_forecast or isinstance(cost, MeasuredCost)
        self.context = Context(
            splits=tuple(range(-1, held)) if server is not None else (held - 1,),
            exits=exits,
            last=last,
            thresholds=tuning.thresholds,
            modes={cut: self._manifest.modes(cut) for cut in range(-1, min(held, last))},
            mode=tuning.mode,
            cost=self._conditions.cost,
            gzip_below_mbps=tuning.gzip_below_mbps,
            link_mbps=link_mbps,
            forecast=self._conditions.forecast,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the way to the server."""
        if self._server is not None:
            self._server.close()

    def run(self, inputs: Iterable[Any], *, under_way: int = 1) -> Iterator[Result]:
        """Exactly one result per input, in order; an input that cannot be run gives a "failed" one.

        With several inputs under way the next ones' heads run while answers are awaited. The policy still chooses
        once per input, in the inputs' order, and is told once of each, but when its answer comes: after it has
        chosen for up to `under_way` − 1 later ones, and not always in their order. An input's latency and deadline
        count from when its head begins. All computing, falling back included, is done by whoever asks for the
        results; the server is asked, and `inputs` are read, in other threads, which end with the iterator.

        Args:
            inputs: Each as `infer` takes it.
            under_way: The most inputs that are taken and have no result yet.

        Raises:
            ConfigError: Fewer than one under way.
            ActionError: The policy chose what this edge cannot do. As with whatever else the policy or the inputs
                raise, and a Ctrl-C, the results of what is under way come first.
        """
        if not isinstance(under_way, int) or under_way < 1:
            raise ConfigError(f"under_way is a whole number of inputs, at least 1, not {under_way!r}")
        if under_way > 1:
            steps = Pipeline(under_way, begin=self._try_to_begin, send=self._sent, finish=self._finished)
            return steps.run(inputs)
        return self._one_by_one(inputs)

    def _one_by_one(self, inputs: Iterable[Any]) -> Iterator[Result]:
        for index, x in enumerate(inputs):
            trip = self._try_to_begin(x, index)
            yield trip if isinstance(trip, Result) else self._ended(trip)

    def _try_to_begin(self, x: Any, index: int) -> Trip | Result:
        try:
            return self._begun(x, index)
        except (InputError, StageError) as error:
            return self._told(None, Result(index, "failed", error=str(error)))

    def infer(self, x: Any, *, index: int = 0) -> Result:
        """The result of one input.

        Args:
            x: The network's input for one sample, in the manifest's dtype and shape (a batch axis of 1 may
                lead); of several inputs a dict by name, or a tuple by place. Where the manifest has
                preprocessing, an image as uint8 pixels (H, W) or (H, W, 3).
            index: Goes into the result.

        Raises:
            InputError: An input of wrong name, shape or dtype, or not finite.
            ActionError: The policy chose what this edge cannot do.
            StageError: ONNX Runtime failed on the way to the split.
        """
        return self._ended(self._begun(x, index))

    def _begun(self, x: Any, index: int) -> Trip:
        """One input with its action and its head run: it has an answer, or a request to send, or neither."""
        start = self._clock()
        tensors = self._head.prepared(x)
        if self._watches_conditions:
            self.context = self._conditions.renewed(self.context)
        action = self.policy.choose(self.context)
        self._check_action(action)
        trip = Trip(start, tensors, index, action)
        trip.answer = self._head.along(trip, action, self.policy.alpha)
        if trip.answer is None:
            self._prepare_offload(trip)
        return trip

    def _ended(self, trip: Trip) -> Result:
        if trip.request is not None:
            self._sent(trip)
        return self._finished(trip)

    def _sent(self, trip: Trip) -> None:
        """Sends a trip's request and waits; touches nothing but the trip, so that any thread may do it."""
        assert self._server is not None
        assert trip.request is not None
        sent = self._clock()
        try:
            trip.reply = self._server.infer(trip.request, trip.give_up_at - sent)
        except Exception as error:  # whoever finishes the trip tells ours from a channel's own mistake
            trip.refusal = error
        trip.back_at = self._clock()
        trip.waited_ms = (trip.back_at - sent) * 1e3

    def _finished(self, trip: Trip) -> Result:
        """A trip's result; its trace ends, also where a policy or a channel breaks."""
        try:
            result = self._result(trip)
        except Exception as error:
            self._told(trip, Result(trip.index, "failed", error=str(error) or type(error).__name__))
            raise
        return self._told(trip, result)

    def _result(self, trip: Trip) -> Result:
        """What came back, or how far the edge gets without it; the policy learns."""
        answer, action = trip.answer, trip.action
        where: Where = "edge"
        status: Status = "ok"
        if answer is None and trip.request is not None:
            answer, where = self._server_answer(trip), "server"
        if answer is None:
            answer, where = self._head.fall_back(trip, lambda: self.deadline_ms - self._spent_ms(trip)), "edge"
            status = "failed" if answer is None else "degraded"
        total_ms = (trip.back_at - trip.start) * 1e3 if where == "server" else self._spent_ms(trip)
        cost = self._conditions.paid(trip, total_ms)
        self.policy.update(action, trip.observation(answer, self.context.last, total_ms, cost))
        latency = Latency(total_ms, trip.edge_ms, trip.link_ms, trip.server_ms, trip.queue_ms)
        belief = None if answer is None else trip.beliefs[answer]
        names = self._manifest.classes
        return Result(
            index=trip.index,
            status=status,
            label=None if belief is None else belief.label,
            class_name=None if belief is None or not names else names[belief.label],
            confidence=None if belief is None else belief.confidence,
            probabilities=None if belief is None else tuple(belief.probabilities.tolist()),
            exit=answer,
            where=None if belief is None else where,
            latency_ms=latency,
            payload_bytes=trip.payload_bytes,
            reply_bytes=trip.reply_bytes,
            action=action,
            cost=cost,
            error=trip.error,
        )

    def _told(self, trip: Trip | None, result: Result) -> Result:
        """A result, once its trace has ended and the log has what went wrong."""
        trace_id = None if self._tracer is None else self._tell(self._tracer.answered, trip, result)
        if result.status != "ok":
            about = {"index": result.index, "reason": result.error, "trace_id": trace_id}
            _log.info("%s", result.status, extra=about)
        return result

    def _check_action(self, action: Action) -> None:
        if action.split not in self.context.splits:
            raise ActionError(
                f"{self.policy.name} chose split {action.split}; this edge can do "
                f"{', '.join(map(str, self.context.splits))}"
                + ("" if self._server is not None else " (it has no server)")
            )
        here = (*self.context.exits, self.context.last)
        unknown = [e for e in action.watch if e not in self.context.exits or e > action.split]
        unknown += [e for e in action.exits if e > self.context.last or (e <= action.split and e not in here)]
        if unknown:
            raise ActionError(
                f"{self.policy.name} chose exits {unknown} at split {action.split}; this edge can evaluate "
                f"{', '.join(map(str, self.context.exits)) or 'none'}"
            )

    def _prepare_offload(self, trip: Trip) -> None:
        """Packs the cut into the trip's request, or sets its error where nothing can be sent."""
        action = trip.action
        if self._server is None:
            trip.error = "no server"
            return
        if not self.breaker.allows():
            trip.error = "the server is down; it is probed again soon"
            return
        try:
            tensors = self._head.packed(trip, action.mode)
        except StageError as error:
            trip.error = str(error)
            return
        reserve_ms = self._head.reserve_ms(trip)
        left_ms = self.deadline_ms - self._spent_ms(trip)
        if reserve_ms >= left_ms:  # the edge would be late in any case: all that is left is the server's
            trip.reserved, reserve_ms = -1, 0.0
        if left_ms <= 0:
            trip.error = f"no time left of {self.deadline_ms:g} ms to ask the server"
            return
        trip.packed_at = self._clock()
        trip.give_up_at = trip.start + (self.deadline_ms - reserve_ms) / 1e3
        trip.request = TailRequest(
            model=tail_name(self._manifest.name, trip.stage, action.mode),
            tensors=tensors,
            digest=self.bundle.digest,
            final=not any(e > action.split for e in action.exits),
            gzip=action.gzip,
        )
        self.breaker.begun()
        trip.sent_cut, trip.payload_bytes = trip.stage, sum(t.nbytes for t in tensors.values())
        if self._tracer is not None:
            trip.request = trip.request._replace(headers=self._tell(self._tracer.sends, trip) or ())

    def _server_answer(self, trip: Trip) -> int | None:
        """The exit that answered on the server, or None with the trip's error set."""
        waited = trip.waited_ms
        try:
            if trip.refusal is not None:
                raise trip.refusal
            if trip.back_at > trip.give_up_at:
                late = (trip.back_at - trip.give_up_at) * 1e3
                raise DeadlineError(f"the answer came after {waited:.0f} ms, {waited - late:.0f} ms were left")
            assert trip.reply is not None
            found = read_reply(trip.reply, self._manifest, trip.stage, waited)
        except (ServerError, InputError, StageError) as error:
            self.breaker.failed()
            trip.error = str(error)
            trip.link_ms = waited
            self._conditions.got_nothing(trip.payload_bytes, waited)
            return None
        self.breaker.succeeded()
        trip.server_ms, trip.queue_ms, trip.reply_bytes = found.server_ms, found.queue_ms, found.nbytes
        trip.link_ms = waited - trip.server_ms
        trip.beliefs[found.exit] = self._gate.belief(found.exit, found.logits)
        self._conditions.was_answered(trip, found.exit)
        return found.exit

    def _spent_ms(self, trip: Trip) -> float:
        return (self._clock() - trip.start) * 1e3
