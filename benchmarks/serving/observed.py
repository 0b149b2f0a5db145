"""What watching costs: the edge loop and a round trip with metrics, with traces, and with neither.

The network is the cheapest there is (ten values of 4 KB), so the figures are the loop's and the wire's own. Spans
go through OpenTelemetry's batches to an exporter that drops them, on both sides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from benchmarks.serving.roundtrip import bundle_of
from benchmarks.serving.servers import running
from benchmarks.timing import compare, ms_text, parser, ratio_text, write_json
from offramp.bundle.bundle import Bundle
from offramp.observe.edge_metrics import EdgeMetrics
from offramp.observe.edge_tracer import EdgeTracer
from offramp.policy.fixed import EdgeOnly, FixedSplit
from offramp.runtime.edge import Edge
from offramp.runtime.result import Result
from offramp.serving.channel import GrpcChannel
from offramp.tables import table_text

__all__ = ["dropping", "main"]

VALUES = 1024
#: What each candidate has: metrics, and the share of inputs that are traced.
CANDIDATES = {
    "nothing": (False, None),
    "metrics": (True, None),
    "traces, 1 in 100": (False, 0.01),
    "traces, all": (False, 1.0),
    "metrics, all traces": (True, 1.0),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "serving-observed").parse_args(argv)
    rounds = 10 if arguments.quick else 150
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_of(Path(folder) / "trip.bundle", VALUES)
        cases = [*_cases("answered on the edge", bundle, rounds), *_cases("round trip", bundle, rounds)]
    print(_table(cases))
    print(f"written: {write_json(arguments, {'cases': cases})}")


def _cases(way: str, bundle: Bundle, rounds: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        calls = {
            name: stack.enter_context(_call(way, bundle, metrics, share))
            for name, (metrics, share) in CANDIDATES.items()
        }
        timings = compare(calls, rounds=rounds, sample_ms=20, budget_s=40)
    return [
        {"way": way, "candidate": name, "over_nothing": timing.ratio, **timing.to_dict()}
        for name, timing in timings.items()
    ]


@contextmanager
def _call(way: str, bundle: Bundle, metrics: bool, share: float | None) -> Iterator[Callable[[], object]]:
    """One input through an edge, and through a server in a process of its own, both watched alike."""
    with ExitStack() as stack:
        x = np.zeros((1, VALUES), np.float32)
        tracer = None
        if share is not None:
            provider = dropping(share)
            stack.callback(provider.shutdown)
            tracer = EdgeTracer(provider)
        if way == "answered on the edge":
            edge = Edge(bundle, policy=EdgeOnly(), tracer=tracer)
        else:
            kind = f"watched-{'metrics' if metrics else ''}-{'traces' if share is not None else ''}"
            channel = GrpcChannel(stack.enter_context(running(kind, str(bundle.path))))
            policy = FixedSplit(0, gated=False)
            edge = stack.enter_context(Edge(bundle, channel, policy, deadline_ms=60_000, tracer=tracer))
        if not metrics:
            yield partial(edge.infer, x)
            return
        counted = EdgeMetrics(edge)

        def infer() -> Result:
            result = edge.infer(x)
            counted.count(result)
            return result

        yield infer


class _Dropped(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to let go of."""


def dropping(share: float) -> TracerProvider:
    """A provider of tracers whose spans go through everything but the network."""
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(share), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Dropped()))
    return provider


def _table(cases: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            case["way"],
            case["candidate"],
            ms_text(case["median_ms"], case["p10_ms"], case["p90_ms"]),
            ratio_text(case["over_nothing"]),
        ]
        for case in cases
    ]
    return table_text("What watching costs", ["input", "with", "ms (10th-90th)", "over nothing"], rows)


if __name__ == "__main__":
    main()
