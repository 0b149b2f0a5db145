"""What a server does, for Prometheus. Needs prometheus-client, which `serve` and `observe` bring."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from offramp.runtime.batching import Step
from offramp.runtime.passage import Job
from offramp.serving.service import Served, Service

__all__ = ["ServerMetrics"]

_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counts what a server does; give it to `GrpcServer` as its `observer`, and its registry to `HttpServer`.

    Labels take values that the server knows only: what clients invent counts as `unknown`.

    Attributes:
        registry: The metrics, for `prometheus_client`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        r = self.registry
        self._requests = Counter(
            "offramp_requests", "Inference requests by gRPC code.", ["model", "code"], registry=r
        )
        self._answers = Counter("offramp_answers", "Answered samples by exit.", ["model", "exit"], registry=r)
        self._received = Counter(
            "offramp_received_bytes", "Bytes of tensors that came in requests answered.", ["model"], registry=r
        )
        self._sent = Counter("offramp_sent_bytes", "Bytes of tensors in answers.", ["model"], registry=r)
        self._compute = Histogram(
            "offramp_compute_seconds", "Computing time of a request.", ["model"], registry=r, buckets=_SECONDS
        )
        self._queue = Histogram(
            "offramp_queue_seconds",
            "Time that a request waited for a worker.",
            ["model"],
            registry=r,
            buckets=_SECONDS,
        )
        self._batch = Histogram(
            "offramp_batch_samples",
            "The most samples beside which a request ran in a stage, its own included.",
            ["model"],
            registry=r,
            buckets=_SAMPLES,
        )
        self._stage = Histogram(
            "offramp_stage_seconds",
            "Time of a stage and its exit, for a batch.",
            ["bundle", "stage"],
            registry=r,
            buckets=_SECONDS,
        )
        self._stage_batch = Histogram(
            "offramp_stage_samples",
            "Samples in a stage's batch.",
            ["bundle", "stage"],
            registry=r,
            buckets=_SAMPLES,
        )
        self._under_way = Gauge(
            "offramp_requests_under_way", "Inference requests that wait or compute.", registry=r
        )

    def watch(self, service: Service) -> None:
        """Shows how many requests of a service are under way."""
        self._under_way.set_function(lambda: service.under_way)

    def served(self, request: Served) -> None:
        """Counts one request."""
        model, reply = request.model, request.reply
        self._requests.labels(model, request.code).inc()
        if reply is None or reply.exits is None:
            return
        for exit_index in reply.exits.tolist():
            self._answers.labels(model, str(exit_index)).inc()
        self._received.labels(model).inc(request.received_bytes)
        self._sent.labels(model).inc(request.sent_bytes)
        self._compute.labels(model).observe((reply.server_ms or 0.0) / 1e3)
        self._queue.labels(model).observe((reply.queue_ms or 0.0) / 1e3)
        self._batch.labels(model).observe(reply.batch or 1)

    def waited(self, job: Job, since: float, until: float) -> None:
        """Nothing: a request's time in the queue is counted with its answer."""

    def ran(self, step: Step) -> None:
        """Counts one stage of a batch."""
        labels = step.tail.bundle.manifest.name, str(step.stage)
        self._stage.labels(*labels).observe(step.until - step.since)
        self._stage_batch.labels(*labels).observe(step.samples)
