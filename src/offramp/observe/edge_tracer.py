"""A trace for every input of an edge, which the server's spans join. Needs the extra `observe`."""

from __future__ import annotations

import time
from typing import NamedTuple

from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    format_trace_id,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from offramp import __version__
from offramp.runtime.result import Result
from offramp.runtime.trip import Trip

__all__ = ["EdgeTracer"]


class _Begun(NamedTuple):
    """The spans of an input that waits for the server, and when it came, in ns since the epoch."""

    root: Span
    offload: Span
    start_ns: int


class EdgeTracer:
    """Makes a span `input` for every input, with children `head`, `encode`, `offload` and `fall back`.

    Spans say where time and bytes went, what was chosen and who answered, never what the input or its label was.
    An input's span is a child of whatever span is current where its result is asked for. `offload` travels with
    the request as a W3C `traceparent` (https://www.w3.org/TR/trace-context/).

    Args:
        provider: Where spans go; OpenTelemetry's global one if left out.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer("offramp", __version__, provider)
        self._propagator = TraceContextTextMapPropagator()

    def sends(self, trip: Trip) -> tuple[tuple[str, str], ...]:
        """Begins the spans that the server joins; gives their headers."""
        packed_ns = time.time_ns()
        start_ns = packed_ns - _ns(trip.packed_at - trip.start)
        root = self._tracer.start_span("input", start_time=start_ns)
        offload = self._tracer.start_span(
            "offload", set_span_in_context(root), kind=SpanKind.CLIENT, start_time=packed_ns
        )
        trip.trace = _Begun(root, offload, start_ns)
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(offload))
        return tuple(headers.items())

    def answered(self, trip: Trip | None, result: Result) -> str | None:
        """Ends an input's spans; gives the trace's id if it is recorded."""
        total_ns = _ns(result.latency_ms.total / 1e3)
        begun = None if trip is None else trip.trace
        if isinstance(begun, _Begun):
            root, start_ns = begun.root, begun.start_ns
            total_ns = total_ns or time.time_ns() - start_ns
        else:
            start_ns = time.time_ns() - total_ns
            root = self._tracer.start_span("input", start_time=start_ns)
        recorded = root.is_recording()  # no longer once it has ended
        if recorded:
            root.set_attributes(_said(result))
            if result.status == "failed":
                root.set_status(Status(StatusCode.ERROR, result.error))
            if trip is not None:
                self._children(trip, root, start_ns, start_ns + total_ns)
        root.end(start_ns + total_ns)
        return format_trace_id(root.get_span_context().trace_id) if recorded else None

    def _children(self, trip: Trip, root: Span, start_ns: int, end_ns: int) -> None:
        begun = trip.trace
        if not isinstance(begun, _Begun):
            self._child("head", root, start_ns, end_ns)
            return
        packed_ns = start_ns + _ns(trip.packed_at - trip.start)
        encoding_ns = packed_ns - _ns(trip.encode_ms / 1e3)
        self._child("head", root, start_ns, encoding_ns)
        if trip.encode_ms:
            self._child("encode", root, encoding_ns, packed_ns)
        back_ns = start_ns + _ns(trip.back_at - trip.start)
        offload = begun.offload
        offload.set_attribute("offramp.payload_bytes", trip.payload_bytes)
        if trip.request is not None:
            offload.set_attribute("offramp.model", trip.request.model)
        error = trip.error or trip.refusal
        if error is not None:
            offload.set_status(Status(StatusCode.ERROR, str(error)))
        offload.end(back_ns)
        if trip.error is not None:
            self._child("fall back", root, back_ns, end_ns)

    def _child(self, name: str, root: Span, start_ns: int, end_ns: int) -> None:
        self._tracer.start_span(name, set_span_in_context(root), start_time=start_ns).end(end_ns)


def _said(result: Result) -> dict[str, AttributeValue]:
    """What a result says of how it came about, without its label."""
    action, latency = result.action, result.latency_ms
    said: dict[str, AttributeValue | None] = {
        "index": result.index,
        "status": result.status,
        "where": result.where,
        "exit": result.exit,
        "confidence": result.confidence,
        "split": None if action is None else action.split,
        "mode": None if action is None else action.mode,
        "payload_bytes": result.payload_bytes,
        "reply_bytes": result.reply_bytes,
        "cost": result.cost,
        "edge_ms": latency.edge,
        "server_ms": latency.server,
        "queue_ms": latency.queue,
    }
    return {f"offramp.{name}": value for name, value in said.items() if value is not None}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
