"""The same policies once cost is measured: milliseconds over links and on edges of several speeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from offramp.policy.cost import MeasuredCost
from offramp.replay.comparisons import asked, comparisons
from offramp.replay.conditions import forecast_of
from offramp.replay.play import Maker
from offramp.replay.replay import replay
from offramp.replay.trace import Trace
from offramp.tables import table_text

__all__ = ["LINKS", "SLOWDOWNS", "Measured", "measured", "measured_sentences", "measured_table"]

#: Mbit/s and milliseconds of a round trip.
LINKS = ((1.0, 50.0), (10.0, 20.0), (100.0, 5.0))
#: How many times slower than the machine that traced an edge is.
SLOWDOWNS = (3.0, 10.0, 30.0)
#: How cuts travel: eight bits lose nothing here, the studies of exits say.
_MODE = "uint8"
#: Latency decides, as gates are the same for all.
_LEARNER = "i-splitee,send_input=true,mu=5.0,c=0.25"
_DYNAMIC, _INPUT, _FIRST, _EDGE = "dynamic-split", "server-only", "split-0-all", "edge-only"
#: Dearer by at most this is as good.
_AS_GOOD = 0.01


@dataclass(frozen=True)
class Measured:
    """Mean milliseconds of an input over one link, on one edge.

    Attributes:
        slowdown: The edge's.
        rate_mbps: The link's rate.
        round_trip_ms: Its round trip.
        ms: By policy.
        best_arm: The fixed arm with the lowest mean, by its policy's name.
    """

    slowdown: float
    rate_mbps: float
    round_trip_ms: float
    ms: dict[str, float]
    best_arm: str

    @property
    def where(self) -> str:
        """Edge and link in words."""
        return f"{self.slowdown:g}x, {self.rate_mbps:g} Mbit/s"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def measured(
    trace: Trace, seeds: int, slowdowns: Sequence[float] = SLOWDOWNS, links: Sequence[tuple[float, float]] = LINKS
) -> list[Measured]:
    """Plays fixed ways and those that adapt where milliseconds are all that costs.

    Args:
        trace: With gates of its own, and times and bytes as they were measured.
        seeds: Runs.
        slowdowns: Of the edge.
        links: Mbit/s and milliseconds of a round trip.

    Raises:
        TraceError: Nobody has measured this trace's times or bytes.
    """
    makers: dict[str, Maker] = {
        **comparisons(trace),
        _LEARNER: asked(_LEARNER)[_LEARNER],
        **asked(f"{_DYNAMIC},alpha=none"),
    }
    found = []
    for slowdown in slowdowns:
        for rate, round_trip in links:
            forecast = forecast_of(
                trace.meta, rate_bps=1e6 * rate, round_trip_ms=round_trip, slowdown=slowdown, mode=_MODE
            )
            dearest = max(forecast.split_ms(k) for k in range(-1, len(forecast.stage_ms)))
            played = replay([trace], makers, cost=MeasuredCost(), forecast=forecast, seeds=seeds).played
            ms = {p.name.removesuffix(",alpha=none"): dearest * float(p.cost.mean()) for p in played}
            arms = [n for n in ms if n == _EDGE or (n.startswith("split-") and not n.endswith("-all"))]
            found.append(Measured(slowdown, rate, round_trip, ms, min(arms, key=ms.__getitem__)))
    return found


def measured_table(title: str, found: Sequence[Measured], gates: str) -> str:
    """A row per edge and link."""
    heads = ["edge", "link", "best fixed arm", "ms", "send the input", "split-0-all", "edge-only", "I-SplitEE"]
    rows = [
        [
            f"{m.slowdown:g}x slower",
            f"{m.rate_mbps:g} Mbit/s, {m.round_trip_ms:g} ms",
            m.best_arm,
            *(f"{m.ms[name]:.1f}" for name in (m.best_arm, _INPUT, _FIRST, _EDGE, _LEARNER, _DYNAMIC)),
        ]
        for m in found
    ]
    caption = (
        f"Mean ms per input by the trace's measured times and bytes, cuts as {_MODE}, gates {gates}; the server "
        f"is as fast as the machine that traced. I-SplitEE: {_LEARNER}"
    )
    return table_text(title, [*heads, "dynamic split"], rows, caption=caption)


def measured_sentences(title: str, found: Sequence[Measured]) -> list[str]:
    """Where sending everything is as good as anything fixed, and where it is not."""
    lines = []
    for name, words in ((_INPUT, "send the input"), (_FIRST, "arm 0, offload all")):
        as_good: list[tuple[float, str]] = []
        dearer: list[tuple[float, str]] = []
        for m in found:
            best = min(value for key, value in m.ms.items() if key not in (_LEARNER, _DYNAMIC, "random"))
            times = m.ms[name] / best
            (as_good if times <= 1 + _AS_GOOD else dearer).append((times, m.where))
        worst = max(dearer, default=(1.0, ""))
        lines.append(
            f"{title}, cost measured in ms: {words!r} is as good as any fixed way at {_listed(as_good)}; not at "
            f"{_listed(dearer)}" + (f", up to {worst[0]:.1f} times dearer" if dearer else "")
        )
    for name, words in ((_LEARNER, "I-SplitEE with sending the input as an arm"), (_DYNAMIC, "dynamic split")):
        furthest = max(m.ms[name] / min(m.ms[m.best_arm], m.ms[_INPUT]) for m in found)
        lines.append(
            f"{title}, cost measured in ms: {words} takes at most {furthest:.3f} times what the best fixed arm or "
            "sending the input takes, its exploration included"
        )
    return lines


def _listed(places: Sequence[tuple[float, str]]) -> str:
    return "; ".join(where for _, where in places) or "none"
