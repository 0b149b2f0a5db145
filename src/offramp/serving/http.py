"""Beside gRPC, over HTTP: health, and metrics in Prometheus's format. Needs the extra `serve`."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app
from typing_extensions import Self

from offramp.errors import PortError
from offramp.runtime.tail import TailReply
from offramp.serving.wire import MAX_PORT

__all__ = ["HttpServer", "Metrics"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """Counts what a server does; give it to `GrpcServer` as its `observer`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "offramp_requests",
            "Inference requests by model and gRPC code.",
            ["model", "code"],
            registry=self.registry,
        )
        self._answers = Counter(
            "offramp_answers", "Answered samples by model and exit.", ["model", "exit"], registry=self.registry
        )
        self._seconds = Histogram(
            "offramp_compute_seconds",
            "Computing time of a request.",
            ["model"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._queue_seconds = Histogram(
            "offramp_queue_seconds",
            "Time that a request waited for a worker.",
            ["model"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._batch = Histogram(
            "offramp_batch_samples",
            "The most samples beside which a request ran in a stage, its own included.",
            ["model"],
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )

    def __call__(self, model: str, code: str, reply: TailReply | None) -> None:
        """Counts one request."""
        self._requests.labels(model, code).inc()
        if reply is not None and reply.exits is not None:
            for exit_index in reply.exits.tolist():
                self._answers.labels(model, str(exit_index)).inc()
            self._seconds.labels(model).observe((reply.server_ms or 0.0) / 1e3)
            self._queue_seconds.labels(model).observe((reply.queue_ms or 0.0) / 1e3)
            self._batch.labels(model).observe(reply.batch or 1)


class _ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: health is asked for every few seconds."""


class HttpServer:
    """Serves `/metrics`, `/v2/health/live` and `/v2/health/ready` on a port until closed.

    Args:
        metrics: What `/metrics` shows.
        host: The address to listen on.
        port: The port; 0 takes a free one, see `port`.
        ready: Whether requests are taken.

    Raises:
        PortError: The port cannot be listened on.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        if not 0 <= port <= MAX_PORT:
            raise PortError(f"a port is 0 to {MAX_PORT}, not {port}")
        app = _app(make_wsgi_app(metrics.registry), ready)
        try:
            self._server = make_server(host, port, app, server_class=_ThreadingServer, handler_class=_Quiet)
        except OSError as error:
            raise PortError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; choose another one"
            ) from error
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _app(metrics: Callable[..., Iterable[bytes]], ready: Callable[[], bool]) -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        answers = {"/v2/health/live": ("live", True), "/v2/health/ready": ("ready", ready())}
        if path in answers:
            name, good = answers[path]
            status, body = "200 OK" if good else "503 Service Unavailable", json.dumps({name: good})
        else:
            known = f"no such path; there are /metrics, {', '.join(answers)}"
            status, body = "404 Not Found", json.dumps({"error": known})
        start_response(status, [("Content-Type", "application/json")])
        return [body.encode()]

    return app
