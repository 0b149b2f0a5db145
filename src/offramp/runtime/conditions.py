"""What an edge has measured of itself, the link and the server, and what it expects of the next input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from offramp.bundle.feed import example
from offramp.bundle.manifest import Graph
from offramp.policy.base import Context
from offramp.policy.cost import CostModel, MeasuredCost
from offramp.policy.forecast import Forecast
from offramp.runtime.link_estimate import LATE_MS, LinkEstimate
from offramp.runtime.stages import Stages
from offramp.runtime.trip import Trip

__all__ = ["Conditions"]

#: The part of a running mean that the latest time makes up.
_LATEST = 0.1
#: What takes longer than so many times its mean, and `LATE_MS`, was kept from running; it counts as that.
_HICCUP = 5.0
#: A forecast is renewed when the latency of any split has changed by more than this part.
_CHANGED = 0.05


class Conditions:
    """Running means of what stages, exits and the server take, the link's estimate, and forecasts made of them.

    Stages that an edge copy does not hold are expected to take what those that it holds take per
    multiply-accumulate.

    Args:
        stages: The sessions; each is run twice, so that the first input is no slower, and the shorter time counts.
        exits: The early exits that the edge can evaluate.
        cost: What things cost, or what is weighed where cost is measured.
        link_mbps: The link's rate, if somebody says.

    Raises:
        ConfigError: A weight on what no split takes any of.
        StageError: ONNX Runtime failed.
    """

    def __init__(
        self, stages: Stages, exits: Sequence[int], cost: CostModel | MeasuredCost, link_mbps: float | None = None
    ) -> None:
        manifest, usual = stages.bundle.manifest, stages.bundle.tuning.mode
        #: Milliseconds per stage and per exit's head, running means.
        self.stage_ms, self.exit_ms = _times(stages, exits)
        self.link = LinkEstimate(link_mbps)
        #: How long the server takes for what the edge takes a millisecond for; 0 until it was seen.
        self.server_share = 0.0
        self._sent_bytes = tuple(manifest.sent_bytes(k, usual) for k in range(-1, manifest.last))
        self._stage_work = tuple((stage.graph.macs, stage.graph.parameters) for stage in manifest.stages)
        self._exit_work = tuple(_work(None if found is None else found.graph) for found in manifest.exits)
        self.forecast = self._expected()
        self._prices = None
        if isinstance(cost, MeasuredCost):
            self._prices = cost.prices(self.forecast)
            cost = self._prices.model(self.forecast)
        self._cost = cost

    @property
    def cost(self) -> CostModel:
        """What things are expected to cost now."""
        return self._cost

    def renewed(self, context: Context) -> Context:
        """The context as it is now: the same one unless some split's latency has changed by more than 5 %."""
        now, before = self._expected(), self.forecast
        splits = range(-1, len(now.stage_ms))
        # Answered behind the cut, answered by the split's exit, and as soon as may well be.
        if (
            all(_alike(now.split_ms(k), before.split_ms(k)) for k in splits)
            and all(_alike(now.split_ms(k, 1.0), before.split_ms(k, 1.0)) for k in splits)
            and all(_alike(now.soonest_ms(k), before.soonest_ms(k)) for k in splits[:-1])
        ):
            return context
        self.forecast = now
        if self._prices is not None:
            self._cost = self._prices.model(now)
        return replace(context, forecast=now, cost=self._cost)

    def ran_stage(self, stage: int, ms: float) -> None:
        """A stage took so long on the edge."""
        self.stage_ms[stage] = _renewed(self.stage_ms[stage], ms)

    def ran_exit(self, exit_index: int, ms: float) -> None:
        """An exit's head took so long on the edge."""
        self.exit_ms[exit_index] = _renewed(self.exit_ms[exit_index], ms)

    def gave_up(self, stage: int) -> None:
        """An input had no answer since the stage was expected to take too long; it may be run again some time."""
        self.stage_ms[stage] = _renewed(self.stage_ms[stage], 0.0)

    def was_answered(self, trip: Trip, exit_index: int) -> None:
        """The server answered a cut, with that exit; the time that it does not claim is the link's."""
        self.link.took(trip.payload_bytes, trip.link_ms)
        here = sum(self._all_stages_ms()[trip.stage + 1 : exit_index + 1])
        if here > 0:
            share = trip.server_ms / here
            self.server_share += (2 * _LATEST if self.server_share else 1.0) * (share - self.server_share)

    def got_nothing(self, payload_bytes: int, link_ms: float) -> None:
        """A cut was sent, and so long later there was no answer: it takes at least that."""
        expected = self.link.round_trip_ms + self.link.ms_per_byte * payload_bytes
        if link_ms > expected:
            self.link.took(payload_bytes, link_ms)

    def paid(self, trip: Trip, latency_ms: float) -> float:
        """What one input did cost."""
        if self._prices is None:
            sent = 0.0 if trip.sent_cut is None else self._cost.sends[trip.sent_cut + 1]
            return self._cost.paid(trip.stage, False, trip.evaluated) + sent  # it may have gone on after sending
        return self._prices.paid(self.forecast, trip.stage, trip.evaluated, latency_ms, trip.payload_bytes)

    def _all_stages_ms(self) -> list[float]:
        """Of every stage, those that are not held judged by their multiply-accumulates."""
        held = len(self.stage_ms)
        macs = [work[0] for work in self._stage_work]
        per_mac = sum(self.stage_ms) / max(1, sum(macs[:held]))
        return self.stage_ms + [per_mac * m for m in macs[held:]]

    def _expected(self) -> Forecast:
        stage_ms = self._all_stages_ms()
        left, tail_ms = sum(stage_ms), []
        for ms in stage_ms:
            tail_ms.append(max(0.0, self.server_share * left))
            left -= ms
        return Forecast(
            stage_ms=tuple(stage_ms),
            exit_ms=(*self.exit_ms, *(0.0,) * (len(stage_ms) - len(self.exit_ms))),
            tail_ms=tuple(tail_ms),
            sent_bytes=self._sent_bytes,
            round_trip_ms=self.link.round_trip_ms,
            ms_per_byte=self.link.ms_per_byte,
            doubt_ms=tuple(self.link.doubt_ms(size) for size in self._sent_bytes),
            stage_work=self._stage_work,
            exit_work=self._exit_work,
        )


def _alike(now: float, before: float) -> bool:
    return abs(now - before) <= _CHANGED * before


def _renewed(mean_ms: float, ms: float) -> float:
    latest = min(max(0.0, ms), _HICCUP * mean_ms + LATE_MS)  # some clocks jump back
    return mean_ms + _LATEST * (latest - mean_ms)


def _times(stages: Stages, exits: Sequence[int]) -> tuple[list[float], list[float]]:
    tensors = example(stages.bundle.manifest.inputs)
    held = stages.bundle.held
    stage_ms, exit_ms = [], [0.0] * held
    for i in range(held):
        runs = [stages.stage(i, tensors) for _ in range(2)]
        stage_ms.append(max(0.0, min(ms for _, ms in runs)))
        tensors = runs[0][0]
        if i in exits:
            exit_ms[i] = max(0.0, min(stages.exit(i, tensors)[1] for _ in range(2)))
    return stage_ms, exit_ms


def _work(graph: Graph | None) -> tuple[int, int]:
    return (0, 0) if graph is None else (graph.macs, graph.parameters)
