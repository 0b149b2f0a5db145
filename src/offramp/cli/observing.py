"""Options about metrics, traces and logs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.extras import needs_extra
from offramp.cli.messages import Voice
from offramp.observe.logs import Level, Style, log_to

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from offramp.observe.edge_tracer import EdgeTracer
    from offramp.observe.server_tracer import ServerTracer
    from offramp.runtime.edge import Edge
    from offramp.runtime.result import Result

__all__ = [
    "LogFormatOption",
    "LogLevelOption",
    "MetricsHostOption",
    "MetricsPortOption",
    "TracesOption",
    "counting",
    "edge_tracer",
    "observed",
    "server_tracer",
]

_log = logging.getLogger("offramp.cli")

TracesOption = Annotated[
    bool,
    typer.Option(
        "--traces", help="Send OpenTelemetry spans over OTLP/gRPC, as the OTEL_* variables of the environment say."
    ),
]


def _speak(context: typer.Context, style: Style) -> Style:
    """What ends the command, or warns, looks like the log from here on."""
    if isinstance(context.obj, Voice):
        context.obj.style = style
    return style


LogFormatOption = Annotated[
    Style, typer.Option(callback=_speak, is_eager=True, help="How log lines on the error output look.")
]
LogLevelOption = Annotated[
    Level,
    typer.Option(
        help="Which lines: `warning` is trouble, `info` also what the process does and what was refused or "
        "degraded, `debug` every request."
    ),
]
MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="The port of Prometheus metrics while it runs; 0 takes a free one, none if left out.",
    ),
]
MetricsHostOption = Annotated[
    str, typer.Option(help="The address that shows the metrics; whoever reaches it can read them.")
]


@contextmanager
def observed(command: str, traces: bool, style: Style, level: Level) -> Iterator[TracerProvider | None]:
    """Logs as told until the block ends; gives where spans go, if anywhere.

    Args:
        command: "serve" or "run".
        traces: Whether there are spans.
        style: Of the log's lines.
        level: From which on.

    Raises:
        MissingExtraError: Traces without OpenTelemetry.
        ConfigError: Its variables say what cannot be.
    """
    if not traces:
        with log_to(sys.stderr, style, level):
            yield None
        return
    with needs_extra(f"{command} --traces", "observe"):
        from offramp.observe.export import current_trace_id, exporting
    service = "offramp-server" if command == "serve" else "offramp-edge"
    with log_to(sys.stderr, style, level, current_trace_id), exporting(service) as provider:
        yield provider


def edge_tracer(provider: TracerProvider | None) -> EdgeTracer | None:
    """What follows inputs, if there are traces."""
    if provider is None:
        return None
    from offramp.observe.edge_tracer import EdgeTracer

    return EdgeTracer(provider)


def server_tracer(provider: TracerProvider | None) -> ServerTracer | None:
    """What follows requests, if there are traces."""
    if provider is None:
        return None
    from offramp.observe.server_tracer import ServerTracer

    return ServerTracer(provider)


@contextmanager
def counting(edge: Edge, host: str, port: int | None) -> Iterator[Callable[[Result], None]]:
    """Shows an edge's metrics until the block ends; gives what is to be told of each result.

    Raises:
        MissingExtraError: There is no prometheus-client.
        PortError: The port cannot be listened on.
    """
    if port is None:
        yield lambda result: None
        return
    with needs_extra("run --metrics-port", "observe"):
        from offramp.observe.edge_metrics import EdgeMetrics
    with EdgeMetrics(edge, port=port, host=host) as metrics:
        address = f"[{host}]" if ":" in host else host
        _log.info("metrics", extra={"url": f"http://{address}:{metrics.port}/metrics"})
        yield metrics.count
