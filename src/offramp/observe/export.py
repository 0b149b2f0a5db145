"""Spans on their way to a collector, set up by OpenTelemetry's own variables. Needs the extra `observe`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import format_trace_id, get_current_span

from offramp import __version__
from offramp.errors import ConfigError

__all__ = ["current_trace_id", "exporting"]

#: Seconds that what is left may take at the end.
_LAST_S = 5.0
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@contextmanager
def exporting(service: str) -> Iterator[TracerProvider]:
    """A provider whose spans go to a collector over OTLP/gRPC, until the block ends; then what is left goes too.

    The endpoint, its certificates and headers, the sampler, the batches and the resource are what OpenTelemetry's
    variables say (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_…`, `OTEL_SERVICE_NAME`, …); a
    collector that is away costs spans, warnings in the log, and at the end some seconds, and nothing else.

    Args:
        service: The service's name where the variables give none.

    Raises:
        ConfigError: The variables ask for another protocol, or for what cannot be.
    """
    for name in _PROTOCOLS:
        if os.environ.get(name, "") not in ("", "grpc"):  # an empty one says nothing, by the specification
            raise ConfigError(
                f"{name} is {os.environ[name]!r}, and traces are sent over grpc: leave it out, and let "
                "OTEL_EXPORTER_OTLP_ENDPOINT name the collector's gRPC port, such as http://127.0.0.1:4317"
            )
    try:
        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        provider, exporter = TracerProvider(resource=resource, shutdown_on_exit=False), OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except Exception as error:
        raise ConfigError(f"traces cannot be sent as OpenTelemetry's variables say: {error}") from error
    try:
        yield provider
    finally:
        # The SDK itself would try for half a minute to reach a collector that is away.
        cut_off = threading.Timer(_LAST_S, exporter.shutdown)
        cut_off.daemon = True
        cut_off.start()
        provider.shutdown()
        cut_off.cancel()


def current_trace_id() -> str | None:
    """The id of the trace that is recorded in this thread, if there is one."""
    span = get_current_span()
    return format_trace_id(span.get_span_context().trace_id) if span.is_recording() else None
