"""What OpenTelemetry's collector is to its clients, on a port of this machine."""

from concurrent import futures
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_rpc


class Collector(otlp_rpc.TraceServiceServicer):
    """Keeps (service, span) of all that came."""

    def __init__(self):
        self.spans = []

    def Export(self, request, context):  # noqa: N802
        for resource in request.resource_spans:
            named = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.spans += [(named["service.name"], s) for scope in resource.scope_spans for s in scope.spans]
        return otlp.ExportTraceServiceResponse()


@contextmanager
def collecting(monkeypatch):
    """A collector on a free port, which OTEL_EXPORTER_OTLP_ENDPOINT names."""
    servicer, server = Collector(), grpc.server(futures.ThreadPoolExecutor(2))
    otlp_rpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield servicer
    server.stop(None).wait()
