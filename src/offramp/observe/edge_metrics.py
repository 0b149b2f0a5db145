"""What an edge does, for Prometheus: counted from its results. Needs the extra `observe`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from typing_extensions import Self

from offramp.errors import PortError
from offramp.runtime.edge import Edge
from offramp.runtime.result import Result

__all__ = ["EdgeMetrics"]

_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_COSTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_MAX_PORT = 65535
_Labels = list[str]


class EdgeMetrics:
    """Counts an edge's results, and shows them with the edge's state on a port.

    Example:
        with off.Edge("digits.bundle", "host:8001") as edge, off.EdgeMetrics(edge, port=9100) as metrics:
            for result in edge.run(images):
                metrics.count(result)

    Args:
        edge: The edge.
        port: Where `/metrics` is shown from `with` on; 0 takes a free one, see `port`; None shows it nowhere, and
            `registry` is yours to show.
        host: The address to listen on; whoever reaches it can read the metrics.

    Attributes:
        registry: The metrics, for `prometheus_client`.
        port: Where it listens, while it does.
    """

    def __init__(self, edge: Edge, *, port: int | None = None, host: str = "127.0.0.1") -> None:
        self.registry, self.port = CollectorRegistry(), port
        self._host, self._model = host, edge.bundle.manifest.name
        ProcessCollector(registry=self.registry)
        self._results = self._counter(
            "results", "Inputs by status, where they were answered, and exit.", ["status", "where", "exit"]
        )
        self._actions = self._counter(
            "actions", "What the policy chose, and whether it led to an offload.", ["split", "mode", "offloaded"]
        )
        self._sent = self._counter("sent_bytes", "Bytes of tensors sent, before any compression.")
        self._received = self._counter("received_bytes", "Bytes of tensors that came back.")
        self._latency = self._histogram("latency_seconds", "From input to answer.", ["where"])
        self._head = self._histogram("head_seconds", "Stages, exits and codecs on the edge.")
        self._round_trip = self._histogram("round_trip_seconds", "From sending to the answer, or to giving up.")
        self._server = self._histogram("server_seconds", "Computing on the server, as it says.")
        self._queue = self._histogram("queue_seconds", "Waiting for a worker on the server, as it says.")
        self._cost = self._histogram("cost", "What an input did cost, in the cost model's units.", buckets=_COSTS)
        self._show_state(edge)

    def __enter__(self) -> Self:
        """Shows the metrics on the port, if there is one.

        Raises:
            PortError: The port cannot be listened on.
        """
        if self.port is None:
            return self
        if not 0 <= self.port <= _MAX_PORT:
            raise PortError(f"a port is 0 to {_MAX_PORT}, not {self.port}")
        try:
            self._listener, self._thread = start_http_server(self.port, self._host, self.registry)
        except (OSError, ValueError) as error:  # a name that can be no host's is a ValueError
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise PortError(
                f"cannot show metrics on {self._host}:{self.port}: {reason}; choose another port"
            ) from error
        self.port = self._listener.server_port
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.port is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._thread.join()

    def count(self, result: Result) -> None:
        """Counts one result of the edge."""
        where, action, latency = result.where or "none", result.action, result.latency_ms
        exit_index = "none" if result.exit is None else str(result.exit)
        self._results.labels(self._model, result.status, where, exit_index).inc()
        if action is None:  # an input that could not be run
            return
        offloaded = result.payload_bytes > 0
        self._actions.labels(self._model, str(action.split), action.mode, "yes" if offloaded else "no").inc()
        self._latency.labels(self._model, where).observe(latency.total / 1e3)
        self._head.labels(self._model).observe(latency.edge / 1e3)
        self._cost.labels(self._model).observe(result.cost)
        if offloaded:
            self._sent.labels(self._model).inc(result.payload_bytes)
            self._received.labels(self._model).inc(result.reply_bytes)
            self._round_trip.labels(self._model).observe((latency.link + latency.server) / 1e3)
        if where == "server":
            self._server.labels(self._model).observe(latency.server / 1e3)
            self._queue.labels(self._model).observe(latency.queue / 1e3)

    def _show_state(self, edge: Edge) -> None:
        """What is asked of the edge whenever somebody looks."""
        breaker, link = edge.breaker, edge.link
        means = self._gauge("stage_mean_seconds", "What a stage takes on the edge, a running mean.", ["stage"])
        for stage in range(len(edge.stage_ms)):
            means.labels(self._model, str(stage)).set_function(partial(_seconds, edge.stage_ms, stage))
        if link is None:
            return
        is_open = self._gauge("breaker_open", "1 while the server counts as down, else 0.")
        is_open.labels(self._model).set_function(lambda: float(breaker.open))
        round_trip = self._gauge("link_round_trip_seconds", "What the link adds to any transfer, as estimated.")
        round_trip.labels(self._model).set_function(lambda: link.round_trip_ms / 1e3)
        rate = self._gauge("link_bytes_per_second", "The link's rate, as estimated; NaN until it was used.")
        rate.labels(self._model).set_function(lambda: _rate(link.ms_per_byte))

    def _counter(self, name: str, text: str, labels: _Labels | None = None) -> Counter:
        return Counter(f"offramp_edge_{name}", text, ["bundle", *(labels or [])], registry=self.registry)

    def _gauge(self, name: str, text: str, labels: _Labels | None = None) -> Gauge:
        return Gauge(f"offramp_edge_{name}", text, ["bundle", *(labels or [])], registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: _Labels | None = None, buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        names = ["bundle", *(labels or [])]
        return Histogram(f"offramp_edge_{name}", text, names, registry=self.registry, buckets=buckets)


def _rate(ms_per_byte: float) -> float:
    return 1e3 / ms_per_byte if ms_per_byte else math.nan


def _seconds(ms: Sequence[float], i: int) -> float:
    return ms[i] / 1e3
