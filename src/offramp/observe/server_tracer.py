"""A server's part of the traces that edges and other clients begin. Needs the extra `observe`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from offramp import __version__
from offramp.runtime.batching import Step
from offramp.runtime.passage import Job
from offramp.runtime.tail import TailReply

__all__ = ["ServerTracer"]


class _Followed(NamedTuple):
    """A request that is recorded: its span as a parent and as a link, and how far the epoch is from our clock."""

    parent: Context
    span: SpanContext
    offset_ns: int


class ServerTracer:
    """Makes a span `infer MODEL` for every request, with children `queue` and `stage I`.

    A request's `traceparent` (https://www.w3.org/TR/trace-context/) makes its span a part of that trace; one that
    cannot be is left out of account. A stage that several requests share is a span in the trace of each, linked to
    the others' requests.

    Args:
        provider: Where spans go; OpenTelemetry's global one if left out.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer("offramp", __version__, provider)
        self._propagator = TraceContextTextMapPropagator()
        self.fields = frozenset(self._propagator.fields)

    def request(self, model: str, headers: Mapping[str, str]) -> AbstractContextManager[object]:
        """Around a request, in its thread."""
        return self._tracer.start_as_current_span(
            f"infer {model}",
            self._propagator.extract(headers, Context()),
            kind=SpanKind.SERVER,
            attributes={"offramp.model": model},
        )

    def current(self) -> object | None:
        """What a job of the request in this thread takes along; None if it is not recorded."""
        span = get_current_span()
        if not span.is_recording():
            return None
        offset_ns = time.time_ns() - time.perf_counter_ns()  # the batcher's clock
        return _Followed(set_span_in_context(span), span.get_span_context(), offset_ns)

    def ended(self, code: str, digest: str = "", reply: TailReply | None = None) -> None:
        """The request in this thread has its answer or its refusal."""
        span = get_current_span()
        if not span.is_recording():
            return
        span.set_attribute("offramp.code", code)
        if reply is None:
            span.set_status(Status(StatusCode.ERROR, code))
            return
        exits = [] if reply.exits is None else reply.exits.tolist()
        span.set_attributes(
            {
                "offramp.digest": digest,
                "offramp.samples": len(reply.logits),
                "offramp.exits": sorted(set(exits)),
                "offramp.batch": reply.batch or 1,
                "offramp.server_ms": reply.server_ms or 0.0,
                "offramp.queue_ms": reply.queue_ms or 0.0,
            }
        )

    def waited(self, job: Job, since: float, until: float) -> None:
        """A span for the time in the queue."""
        if isinstance(job.trace, _Followed):
            start_ns, end_ns = _epoch(job.trace, since), _epoch(job.trace, until)
            self._tracer.start_span("queue", job.trace.parent, start_time=start_ns).end(end_ns)

    def ran(self, step: Step) -> None:
        """A span for the stage, in the trace of each request that was in it."""
        followed = [job.trace for job in step.jobs if isinstance(job.trace, _Followed)]
        said = {
            "offramp.stage": step.stage,
            "offramp.batch.samples": step.samples,
            "offramp.batch.requests": len(step.jobs),
        }
        for one in followed:
            self._tracer.start_span(
                f"stage {step.stage}",
                one.parent,
                attributes=said,
                links=[Link(other.span) for other in followed if other is not one],
                start_time=_epoch(one, step.since),
            ).end(_epoch(one, step.until))


def _epoch(followed: _Followed, seconds: float) -> int:
    return followed.offset_ns + int(seconds * 1e9)
