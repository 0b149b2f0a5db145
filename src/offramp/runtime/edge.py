"""The edge loop: for each input one action, one result, and what was seen goes back to the policy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from offramp.bundle.bundle import Bundle
from offramp.bundle.feed import by_name
from offramp.bundle.manifest import TensorSpec
from offramp.bundle.preprocessing import preprocess
from offramp.errors import (
    ActionError,
    ConfigError,
    DeadlineError,
    InputError,
    ProtocolError,
    ServerError,
    StageError,
)
from offramp.policy.base import Action, Context, Policy
from offramp.policy.cost import CostModel, MeasuredCost
from offramp.policy.fixed import EdgeOnly
from offramp.runtime.breaker import CircuitBreaker
from offramp.runtime.conditions import Conditions
from offramp.runtime.gate import Belief, Gate
from offramp.runtime.result import Latency, Result, Status, Where
from offramp.runtime.sources import Broken
from offramp.runtime.stages import Stages, check_tensor
from offramp.runtime.tail import Channel, TailReply, TailRequest, tail_name
from offramp.runtime.trip import Trip

__all__ = ["Edge"]

Array = NDArray[np.generic]


class Edge:
    """Runs inputs through the stages it holds, and through a server where the policy says so.

    Args:
        bundle: A bundle, or the path of one; an edge copy will do.
        server: The way to a server that holds the whole bundle; without one, everything stays on the edge.
        policy: Chooses for each input; `EdgeOnly()` if left out.
        deadline_ms: The time that one input may take. An offload gets what is left of it, less what the edge
            would need to reach its next exit if it had to.
        cost: What things cost, or what is weighed where cost is measured; the papers' units at the bundle's
            depths if left out.
        link_mbps: The rate of the link to the server in Mbit/s, where estimates of it begin; policies compress
            cuts where that pays. None leaves them as they are.
        threads: Threads per session.
        slowdown: Emulates a device this many times slower; for experiments.
        breaker: The circuit breaker before the server.
        clock: Gives seconds.
        sleep: Sleeps for seconds.

    Raises:
        BundleError: The bundle cannot be trusted or read.
        ConfigError: A deadline that is not positive, no policy, or one that plays in replays only, or a cost that
            weighs nothing but what is sent, without a server.
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
        breaker: CircuitBreaker | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not deadline_ms > 0:
            raise ConfigError(f"deadline_ms must be above 0, not {deadline_ms}")
        if link_mbps is not None and not link_mbps > 0:
            raise ConfigError(f"link_mbps must be above 0, not {link_mbps}")
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
        self._server, self._clock = server, clock
        self._manifest = self.bundle.manifest
        self._stages = Stages(self.bundle, threads=threads, slowdown=slowdown, clock=clock, sleep=sleep)
        self._gate = Gate(self.bundle.tuning)
        held, last, tuning = self.bundle.held, self._manifest.last, self.bundle.tuning
        exits = tuple(i for i in range(min(held, last)) if self._manifest.exits[i] is not None)
        if server is None and isinstance(cost, MeasuredCost) and not (cost.latency or cost.energy):
            raise ConfigError("payload alone cannot be weighed without a server: nothing is sent")
        units = cost or CostModel.in_layers([stage.depth for stage in self._manifest.stages])
        self._conditions = Conditions(self._stages, exits, units, link_mbps)
        #: Milliseconds per stage, a running mean; what an offload must leave for the way back.
        self.stage_ms = self._conditions.stage_ms
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

    def run(self, inputs: Iterable[Any]) -> Iterator[Result]:
        """Exactly one result per input, in order; an input that cannot be run gives a "failed" one.

        Args:
            inputs: Each as `infer` takes it.
        """
        for index, x in enumerate(inputs):
            try:
                yield self.infer(x, index=index)
            except (InputError, StageError) as error:
                yield Result(index, "failed", error=str(error))

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
            StageError: ONNX Runtime failed.
        """
        trip = Trip(self._clock(), self._prepared(x))
        if self._watches_conditions:
            self.context = self._conditions.renewed(self.context)
        action = self.policy.choose(self.context)
        self._check_action(action)
        answer = self._along(trip, action)
        where: Where = "edge"
        status: Status = "ok"
        if answer is None:
            answer, where = self._offload(trip, action), "server"
        if answer is None:
            answer, where = self._fall_back(trip), "edge"
            status = "failed" if answer is None else "degraded"
        total_ms = self._spent_ms(trip)
        cost = self._conditions.paid(trip, total_ms)
        self.policy.update(action, trip.observation(answer, self.context.last, total_ms, cost))
        latency = Latency(total_ms, trip.edge_ms, trip.link_ms, trip.server_ms)
        belief = None if answer is None else trip.beliefs[answer]
        names = self._manifest.classes
        return Result(
            index=index,
            status=status,
            label=None if belief is None else belief.label,
            class_name=None if belief is None or not names else names[belief.label],
            confidence=None if belief is None else belief.confidence,
            probabilities=None if belief is None else tuple(belief.probabilities.tolist()),
            exit=answer,
            where=None if belief is None else where,
            latency_ms=latency,
            payload_bytes=trip.payload_bytes,
            action=action,
            cost=cost,
            error=trip.error,
        )

    def _prepared(self, x: Any) -> list[Array]:
        if isinstance(x, Broken):
            raise InputError(x.reason)
        specs, images = self._manifest.inputs, self._manifest.preprocessing
        arrays = by_name(x, specs)
        first = arrays[specs[0].name]
        if images is not None and first.dtype == np.uint8 and specs[0].dtype != "uint8":
            return [preprocess(first[None].view(np.uint8), images)]
        return [_one_sample(arrays[spec.name], spec) for spec in specs]

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

    def _along(self, trip: Trip, action: Action) -> int | None:
        """Stages up to the split; gives the exit that answers, if one does."""
        for i in range(action.split + 1):
            self._step(trip)
            if i == self.context.last:
                return i
            if i in action.exits or i in action.watch:
                belief = self._evaluate(trip, i, trip.tensors)
                if i in action.exits and self._gate.passes(i, belief.confidence, self.policy.alpha):
                    return i
        return None

    def _step(self, trip: Trip) -> None:
        trip.tensors, spent = self._stages.stage(trip.stage + 1, trip.tensors)
        trip.stage += 1
        trip.edge_ms += spent
        self._conditions.ran_stage(trip.stage, spent)
        if trip.stage == self.context.last:
            trip.beliefs[trip.stage] = self._gate.belief(trip.stage, trip.tensors[0][0])
        elif trip.stage in self.context.exits:
            trip.kept = (trip.stage, trip.tensors)

    def _evaluate(self, trip: Trip, index: int, tensors: list[Array]) -> Belief:
        logits, spent = self._stages.exit(index, tensors)
        trip.edge_ms += spent
        self._conditions.ran_exit(index, spent)
        trip.beliefs[index] = self._gate.belief(index, logits[0])
        return trip.beliefs[index]

    def _offload(self, trip: Trip, action: Action) -> int | None:
        """Sends the cut; gives the exit that answered on the server, or None with the trip's error set."""
        if self._server is None:
            trip.error = "no server"
            return None
        if not self.breaker.allows():
            trip.error = "the server is down; it is probed again soon"
            return None
        packed, spent = self._stages.encode(trip.stage, action.mode, trip.tensors)
        trip.edge_ms += spent
        specs = self._stages.wire(trip.stage, action.mode)
        request = TailRequest(
            model=tail_name(self._manifest.name, trip.stage, action.mode),
            tensors={spec.name: tensor for spec, tensor in zip(specs, packed, strict=True)},
            digest=self.bundle.digest,
            final=not any(e > action.split for e in action.exits),
            gzip=action.gzip,
        )
        left_ms = self.deadline_ms - self._spent_ms(trip) - self._reserve_ms(trip)
        if left_ms <= 0:
            trip.reserved = -1
            trip.error = f"no time left of {self.deadline_ms:g} ms to ask the server"
            return None
        trip.sent_cut, trip.payload_bytes = trip.stage, sum(t.nbytes for t in packed)
        sent = self._clock()
        try:
            reply = self._server.infer(request, left_ms / 1e3)
            waited = (self._clock() - sent) * 1e3
            if waited > left_ms:
                raise DeadlineError(f"the answer came after {waited:.0f} ms, {left_ms:.0f} ms were left")
            exit_index = self._read_reply(trip, reply)
        except (ServerError, InputError, StageError) as error:
            self.breaker.failed()
            trip.error = str(error)
            trip.link_ms = (self._clock() - sent) * 1e3
            self._conditions.got_nothing(trip.payload_bytes, trip.link_ms)
            return None
        self.breaker.succeeded()
        said = reply.server_ms or 0.0
        trip.server_ms = min(max(said, 0.0), waited) if math.isfinite(said) else 0.0
        trip.link_ms = waited - trip.server_ms
        self._conditions.was_answered(trip, exit_index)
        return exit_index

    def _read_reply(self, trip: Trip, reply: TailReply) -> int:
        last, logits, exits = self.context.last, reply.logits, reply.exits
        exit_index = last if exits is None or len(exits) == 0 else int(exits[0])
        shape = (1, *self._manifest.final_exit().logits.shape)
        possible = trip.stage < exit_index <= last and self._manifest.exits[exit_index] is not None
        if logits.shape != shape or not np.isfinite(logits).all() or not possible:
            raise ProtocolError(
                f"the server answered with logits of shape {logits.shape} from exit {exit_index}; expected "
                f"finite ones of shape {shape} from an exit after {trip.stage}"
            )
        trip.beliefs[exit_index] = self._gate.belief(exit_index, logits[0])
        return exit_index

    def _spent_ms(self, trip: Trip) -> float:
        return (self._clock() - trip.start) * 1e3

    def _reserve_ms(self, trip: Trip) -> float:
        """The time to keep back for reaching an exit here, should the server bring no answer."""
        if trip.beliefs or trip.kept is not None:
            return 0.0
        ahead = [i for i in (*self.context.exits, self.context.last) if trip.stage < i < self.bundle.held]
        if not ahead:
            return 0.0
        trip.reserved = ahead[0]
        return sum(self.stage_ms[trip.stage + 1 : ahead[0] + 1])

    def _fall_back(self, trip: Trip) -> int | None:
        """Goes on through the stages held while time allows; gives the deepest exit reached."""
        while trip.stage + 1 < self.bundle.held:
            following = trip.stage + 1
            in_time = self._spent_ms(trip) + self.stage_ms[following] <= self.deadline_ms
            if not in_time and following > trip.reserved:  # a timer that was a little late costs no answer
                break
            self._step(trip)
        if self.context.last in trip.beliefs:
            return self.context.last
        if trip.kept is not None and trip.kept[0] not in trip.beliefs:
            self._evaluate(trip, *trip.kept)
        return max(trip.beliefs, default=None)


def _one_sample(array: Array, spec: TensorSpec) -> Array:
    batch = array if array.shape[:1] == (1,) and array.ndim == len(spec.shape) + 1 else array[None]
    check_tensor(batch, spec)
    return batch
