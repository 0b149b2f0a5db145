"""A trace's measured times, a link's rate and delay: what stages and sending would take."""

from __future__ import annotations

import math

from offramp.errors import ConfigError, TraceError
from offramp.policy.forecast import Forecast
from offramp.replay.trace import TraceMeta

__all__ = ["forecast_of"]


def forecast_of(
    meta: TraceMeta, *, rate_bps: float, round_trip_ms: float = 0.0, slowdown: float = 1.0, mode: str = "float"
) -> Forecast:
    """What an edge would expect of a link, whose server computes as fast as the machine that traced.

    Args:
        meta: A trace's, with measured times.
        rate_bps: Bits per second; 0 is unlimited.
        round_trip_ms: Of a byte less payload.
        slowdown: How many times slower than that machine the edge is.
        mode: How cuts travel; as floats where they do not have it.

    Raises:
        TraceError: Nobody has measured this trace's times or bytes.
        ConfigError: A rate or time below 0, a slowdown below 1, or a mode that no cut has.
    """
    if not (rate_bps >= 0 and 0 <= round_trip_ms < math.inf and 1 <= slowdown < math.inf):
        raise ConfigError(
            "a link's rate and round trip are at least 0 and a slowdown at least 1, the latter two finite, not "
            f"{rate_bps}, {round_trip_ms} and {slowdown}"
        )
    if not meta.stage_ms or not meta.exit_ms or "float" not in meta.cut_bytes:
        raise TraceError(
            f"the trace of {meta.bundle} says nothing of milliseconds and bytes, and so nothing of measured cost; "
            "record one with `offramp trace`"
        )
    if mode not in meta.cut_bytes:
        raise ConfigError(f"no cut travels as {mode!r}; there are {', '.join(meta.cut_bytes)}")
    sizes = zip(meta.cut_bytes[mode], meta.cut_bytes["float"], strict=True)
    ahead = [sum(meta.stage_ms[i:]) for i in range(len(meta.stage_ms))]
    column = {e: i for i, e in enumerate(meta.exits)}
    stages = range(len(meta.stage_ms))
    nothing = (0,) * len(meta.stage_ms)
    return Forecast(
        stage_ms=tuple(slowdown * ms for ms in meta.stage_ms),
        exit_ms=tuple(slowdown * meta.exit_ms[column[k]] if k in column else 0.0 for k in stages),
        tail_ms=tuple(ahead),
        sent_bytes=tuple(as_floats or 0 if size is None else size for size, as_floats in sizes),
        round_trip_ms=round_trip_ms,
        ms_per_byte=8e3 / rate_bps if rate_bps else 0.0,
        stage_work=tuple(zip(meta.stage_macs or nothing, meta.stage_weights or nothing, strict=True)),
        exit_work=tuple(
            (_of(meta.exit_macs, column.get(k)), _of(meta.exit_weights, column.get(k))) for k in stages
        ),
    )


def _of(values: tuple[int, ...], column: int | None) -> int:
    return values[column] if values and column is not None else 0
