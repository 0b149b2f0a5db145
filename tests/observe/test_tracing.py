"""Traces that begin on the edge and go on at the server; nothing leaves this machine."""

import contextlib
import io
import json
import random
import threading
import time
import urllib.request
from concurrent import futures
from http.client import HTTPConnection

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from otlp_collector import collecting

from offramp.errors import ConfigError, ServerUnavailableError, StageError
from offramp.observe.edge_tracer import EdgeTracer
from offramp.observe.export import current_trace_id, exporting
from offramp.observe.logs import log_to
from offramp.observe.server_tracer import ServerTracer
from offramp.runtime.edge import Edge
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailReply, TailRequest
from offramp.serving.channel import GrpcChannel
from offramp.serving.http import HttpServer
from offramp.serving.server import GrpcServer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Recorded:
    """A provider, and the spans that ended; by name where there is one of each."""

    def __init__(self, **options):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self):
        return self._exporter.get_finished_spans()

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def one(self, name):
        (span,) = self.named(name)
        return span


@pytest.fixture
def far():
    return Recorded()


@pytest.fixture
def near():
    return Recorded()


def is_child(span, parent):
    return span.parent.span_id == parent.context.span_id and span.context.trace_id == parent.context.trace_id


def within(span, outer, slack_ns=50_000_000):  # two clocks are read one after the other
    return span.start_time >= outer.start_time - slack_ns and span.end_time <= outer.end_time + slack_ns


# --- joined ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("under_way", [1, 3])
def test_one_trace_from_the_input_to_the_last_stage(joined, script, says, near, far, under_way):
    with joined(
        script((0, (), "uint8")),
        server={"tracer": ServerTracer(far.provider)},
        edge={"tracer": EdgeTracer(near.provider)},
    ) as (edge, _):
        results = list(edge.run([says({3: 0.9})] * 3, under_way=under_way))
    roots = sorted(near.named("input"), key=lambda s: s.attributes["offramp.index"])
    for result, root in zip(results, roots, strict=True):
        mine = [s for s in near.spans if s.context.trace_id == root.context.trace_id]
        assert sorted(s.name for s in mine) == ["encode", "head", "input", "offload"]
        assert root.parent is None
        (offload,) = (s for s in mine if s.name == "offload")
        assert offload.kind == SpanKind.CLIENT
        for child in mine:
            if child is not root:
                assert is_child(child, root)
                assert within(child, root)
        (request,) = (
            s for s in far.spans if s.kind == SpanKind.SERVER and s.context.trace_id == root.context.trace_id
        )
        assert request.name == "infer tiny-tail-0-uint8"
        assert is_child(request, offload)
        assert request.parent.is_remote
        assert within(request, offload)
        stages = [s for s in far.spans if s.parent.span_id == request.context.span_id and s.name != "queue"]
        assert [s.name for s in stages] == ["stage 1", "stage 2", "stage 3"]
        assert all(within(s, request) for s in stages)
        assert dict(root.attributes) == {
            "offramp.index": result.index,
            "offramp.status": "ok",
            "offramp.where": "server",
            "offramp.exit": 3,
            "offramp.confidence": result.confidence,
            "offramp.split": 0,
            "offramp.mode": "uint8",
            "offramp.payload_bytes": 8,
            "offramp.reply_bytes": 16,
            "offramp.cost": result.cost,
            "offramp.edge_ms": result.latency_ms.edge,
            "offramp.server_ms": result.latency_ms.server,
            "offramp.queue_ms": result.latency_ms.queue,
        }
        assert request.attributes["offramp.code"] == "OK"
        assert request.attributes["offramp.exits"] == (3,)
        assert len(request.attributes["offramp.digest"]) == 64
        length = (root.end_time - root.start_time) / 1e6
        assert length == pytest.approx(result.latency_ms.total, abs=0.01)


def test_an_input_that_leaves_on_the_edge_is_a_trace_too(joined, script, says, near, far):
    with joined(
        script((0, (0,))),
        server={"tracer": ServerTracer(far.provider)},
        edge={"tracer": EdgeTracer(near.provider)},
    ) as (edge, _):
        result = edge.infer(says({0: 0.9}))
    assert result.where == "edge"
    assert sorted(span.name for span in near.spans) == ["head", "input"]
    assert near.one("input").attributes["offramp.where"] == "edge"
    assert far.spans == ()


def test_a_traceparent_over_http(joined, script, far):
    with (
        joined(script((0,)), server={"tracer": ServerTracer(far.provider)}) as (_, server),
        HttpServer(server.service, port=0) as http,
    ):
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 8], "data": [0.0] * 8}
        ask = urllib.request.Request(
            f"http://127.0.0.1:{http.port}/v2/models/tiny/infer",
            json.dumps({"inputs": [tensor]}).encode(),
            {"TraceParent": PARENT, "tracestate": "vendor=1"},
        )
        with urllib.request.urlopen(ask, timeout=10) as answer:
            assert answer.status == 200
    span = far.one("infer tiny")
    assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" in PARENT
    assert span.context.trace_state.to_header() == "vendor=1"
    assert [s.name for s in far.spans if s.name.startswith("stage")] == [f"stage {i}" for i in range(4)]


@pytest.mark.parametrize("header", [b"\xff" * 55, PARENT.encode() + b"\xe9", b"00-" + b"0" * 60, b"-" * 8000])
def test_over_http_a_malformed_traceparent_changes_no_answer(joined, script, far, header):
    body = json.dumps({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 8], "data": [0.0] * 8}]})
    with (
        joined(script((0,)), server={"tracer": ServerTracer(far.provider)}) as (_, server),
        HttpServer(server.service, port=0) as http,
        contextlib.closing(HTTPConnection("127.0.0.1", http.port, timeout=10)) as connection,
    ):
        connection.putrequest("POST", "/v2/models/tiny/infer")
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("traceparent", header)
        connection.putheader("tracestate", header)
        connection.endheaders(body.encode())
        assert connection.getresponse().status == 200
    assert far.one("infer tiny").parent is None


def test_an_input_s_trace_goes_on_from_the_caller_s(tiny, says, near):
    tracer = near.provider.get_tracer("the caller's")
    edge = Edge(tiny, tracer=EdgeTracer(near.provider))
    with tracer.start_as_current_span("request") as span:
        edge.infer(says({}))
    assert is_child(near.one("input"), span)


def test_requests_that_share_a_stage_are_linked(tiny, says, far):
    """Two wait at one stage while the only worker is busy with a third."""
    stages, go, inside = Stages(tiny), threading.Event(), threading.Event()

    class Held:
        def __getattr__(self, name):
            return getattr(stages, name)

        def stage(self, index, tensors):
            inside.set()
            assert go.wait(60)
            return stages.stage(index, tensors)

    with (
        GrpcServer(Tail(Held()), port=0, tracer=ServerTracer(far.provider)) as server,
        contextlib.closing(GrpcChannel(f"127.0.0.1:{server.port}")) as channel,
        futures.ThreadPoolExecutor(3) as pool,
    ):
        asked = [pool.submit(channel.infer, TailRequest("tiny", {"input": says({})[None]}, final=True), 60)]
        assert inside.wait(60)
        cut = TailRequest("tiny-tail-1", {"cut_1": says({})[None]})
        asked += [pool.submit(channel.infer, cut, 60) for _ in range(2)]
        while server._batcher._in_line < 2:
            time.sleep(0.005)
        go.set()
        replies = [one.result(60) for one in asked]
    requests = [s for s in far.spans if s.kind == SpanKind.SERVER]
    shared = [s for s in far.spans if s.name == "stage 2" and s.attributes["offramp.batch.requests"] > 1]
    assert len(shared) == max(r.attributes["offramp.batch"] for r in requests) > 1
    parents = {s.parent.span_id for s in shared}
    for span in shared:
        assert span.attributes["offramp.batch.samples"] == len(shared)
        assert {link.context.span_id for link in span.links} == parents - {span.parent.span_id}
    queued = far.named("queue")
    assert len(queued) == 2
    said = [reply.queue_ms for reply in replies]
    assert said[0] is None  # it did not wait
    assert sorted((s.end_time - s.start_time) / 1e6 for s in queued) == pytest.approx(sorted(said[1:]), abs=0.02)


# --- what goes wrong ------------------------------------------------------------------------------------


def test_a_refusal_ends_both_spans_with_an_error(joined, script, says, near, far):
    with joined(
        script((0, (), "float", (0,))),
        server={"tracer": ServerTracer(far.provider)},
        edge={"tracer": EdgeTracer(near.provider)},
    ) as (edge, server):
        server.service.draining = True
        result = edge.infer(says({0: 0.6}))
    assert result.status == "degraded"
    request = far.named("infer tiny-tail-0")[0]  # UNAVAILABLE is asked once more
    assert (request.status.status_code, request.attributes["offramp.code"]) == (StatusCode.ERROR, "UNAVAILABLE")
    offload = near.one("offload")
    assert offload.status.status_code == StatusCode.ERROR
    assert offload.status.description == result.error
    assert near.one("input").status.status_code == StatusCode.UNSET  # it has an answer
    assert within(near.one("fall back"), near.one("input"))
    assert near.one("input").attributes["offramp.status"] == "degraded"


def test_inputs_that_fail_have_their_trace_and_their_log_line(tiny, script, says, near):
    class Away:
        def infer(self, request, timeout_s=None):
            raise ServerUnavailableError("nobody there")

        def close(self):
            pass

    class Broken(Stages):
        def stage(self, index, tensors):
            if self.broken:
                raise StageError("out of memory")
            return super().stage(index, tensors)

        broken = False

    stages, stream = Broken(tiny), io.StringIO()
    edge = Edge(tiny, Away(), script((-1,)), stages=stages, tracer=EdgeTracer(near.provider))
    stages.broken = True
    with log_to(stream, "json", "info"):
        results = list(edge.run([np.zeros(3, np.float32), says({})]))
    assert [r.status for r in results] == ["failed", "failed"]
    first, second = near.named("input")
    for root, result in zip((first, second), results, strict=True):
        assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, result.error)
    assert {s.name for s in near.spans if s.context.trace_id == second.context.trace_id} >= {
        "offload",
        "fall back",
    }
    logged = [json.loads(line) for line in stream.getvalue().splitlines()]
    ids = [line["trace_id"] for line in logged if line["message"] == "failed"]
    assert ids == [f"{s.context.trace_id:032x}" for s in (first, second)]


class Raising:
    """A channel that breaks in a way of its own, or answers."""

    def __init__(self, error):
        self._error = error

    def infer(self, request, timeout_s=None):
        if self._error is not None:
            raise self._error
        return TailReply(np.array([[0.0, 1.0]], np.float32), None, None)

    def close(self):
        pass


@pytest.mark.parametrize(
    "way",
    [
        lambda edge, x: edge.infer(x),
        lambda edge, x: list(edge.run([x])),
        lambda edge, x: list(edge.run([x], under_way=2)),
    ],
)
@pytest.mark.parametrize("broken", ["channel", "policy"])
def test_what_raises_after_sending_ends_its_trace_with_the_error(tiny, script, says, near, way, broken):
    error = ZeroDivisionError("a mistake")
    policy = script((0,))
    if broken == "policy":
        policy.update = lambda *_: 1 // 0
    server = Raising(error if broken == "channel" else None)
    edge = Edge(tiny, server, policy, tracer=EdgeTracer(near.provider))
    with pytest.raises(ZeroDivisionError) as raised:
        way(edge, says({}))
    root, offload = near.one("input"), near.one("offload")
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, str(raised.value))
    assert root.attributes["offramp.status"] == "failed"
    assert offload.status.status_code == (StatusCode.ERROR if broken == "channel" else StatusCode.UNSET)
    assert is_child(offload, root)
    assert near.named("fall back") == []  # nobody did


MALFORMED = [
    "",
    "00",
    PARENT.upper(),
    PARENT[:-1],
    PARENT + "-",
    PARENT.replace("-", "_"),
    "00-" + "0" * 32 + "-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
    "ff" + PARENT[2:],
    PARENT + "a" * 4000,
    "é" * 20,
    "٣" * 55,
    "%s%n{}",
]


@pytest.mark.parametrize("header", MALFORMED, ids=range(len(MALFORMED)))
def test_a_traceparent_that_is_none_begins_a_trace_of_its_own(far, header):
    tracer = ServerTracer(far.provider)
    with tracer.request("tiny", {"traceparent": header, "tracestate": header}):
        tracer.ended("OK")
    span = far.one("infer tiny")
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" not in PARENT


def test_hostile_headers_crash_nothing(far):
    """What is left of them can be sent on."""
    draw, tracer = random.Random(0), ServerTracer(far.provider)
    for _ in range(500):
        mutated = list(PARENT)
        for _ in range(draw.randint(0, 4)):
            mutated[draw.randrange(len(mutated))] = chr(draw.choice([draw.randrange(256), 0x2028, 0xDC80]))
        state = "".join(
            chr(draw.choice([44, 61, 97, 120, draw.randrange(0x3000)])) for _ in range(draw.randint(0, 900))
        )
        with tracer.request("tiny", {"traceparent": "".join(mutated), "tracestate": state}):
            tracer.ended("OK")
    assert len(far.spans) == 500
    for span in far.spans:
        assert len(span.context.trace_state.to_header().encode()) <= 512


def test_over_the_wire_a_malformed_traceparent_changes_no_answer(joined, script, says, far):
    with joined(script((0,)), server={"tracer": ServerTracer(far.provider)}) as (_, server):
        channel = GrpcChannel(f"127.0.0.1:{server.port}")
        for header in ("00", PARENT.upper(), "x" * 3000):
            asked = TailRequest("tiny", {"input": says({})[None]}, headers=(("traceparent", header),))
            assert channel.infer(asked, 30).logits.shape == (1, 2)
        channel.close()
    roots = far.named("infer tiny")
    assert [span.parent for span in roots] == [None] * 3


# --- sampling, and nothing at all -----------------------------------------------------------------------


class Failing(SpanProcessor):
    """Somebody's own processor, which fails at every span, begun or ended."""

    def __init__(self, at):
        self._at = at

    def on_start(self, span, parent_context=None):
        assert self._at != "start"

    def on_end(self, span):
        assert self._at != "end"


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("under_way", [1, 2])
def test_a_processor_that_fails_changes_no_answer(joined, script, says, near, far, at, under_way, caplog):
    near.provider.add_span_processor(Failing(at))
    far.provider.add_span_processor(Failing(at))
    with joined(
        script((0,), (3,)),
        server={"tracer": ServerTracer(far.provider)},
        edge={"tracer": EdgeTracer(near.provider)},
    ) as (edge, server):
        results = list(edge.run([says({3: 0.9})] * 4, under_way=under_way))
        assert server.service.under_way == 0
    assert [(r.status, r.where, r.error) for r in results] == [("ok", "server", None), ("ok", "edge", None)] * 2
    assert {record.name for record in caplog.records} == {"offramp.observe"}


def test_what_the_edge_does_not_sample_the_server_does_not_either(joined, script, says, far):
    near = Recorded(sampler=ParentBased(ALWAYS_OFF))
    with joined(
        script((0,)),
        server={"tracer": ServerTracer(far.provider)},
        edge={"tracer": EdgeTracer(near.provider)},
    ) as (edge, _):
        assert edge.infer(says({})).where == "server"
    assert near.spans == far.spans == ()


def test_no_span_says_what_an_input_was(joined, script, says, near, far):
    with joined(
        script((0,), (3,)),
        server={"tracer": ServerTracer(far.provider)},
        edge={"tracer": EdgeTracer(near.provider)},
    ) as (edge, _):
        list(edge.run([says({3: 0.9}, label=1)] * 2))
    for span in (*near.spans, *far.spans):
        assert not {name for name in span.attributes if "label" in name or "prob" in name or "class" in name}
        assert all(isinstance(v, (str, int, float)) or len(v) <= 4 for v in span.attributes.values())


def test_without_a_tracer_nothing_travels(joined, script, says):
    sent = []

    class Spy(GrpcChannel):
        def _call(self, *arguments, **options):
            sent.append(options.get("headers"))
            return super()._call(*arguments, **options)

    with joined(script((0,))) as (edge, server):
        edge._server = Spy(f"127.0.0.1:{server.port}")
        edge.infer(says({}))
        edge._server.close()
    assert sent == [()]


# --- sent to a collector --------------------------------------------------------------------------------


@pytest.fixture
def collector(monkeypatch):
    with collecting(monkeypatch) as found:
        yield found


def test_spans_reach_a_collector_as_the_variables_say(collector, tiny, says, monkeypatch):
    with exporting("offramp-edge") as provider:
        Edge(tiny, tracer=EdgeTracer(provider)).infer(says({}))
    assert [(service, span.name) for service, span in collector.spans] == [
        ("offramp-edge", "head"),
        ("offramp-edge", "input"),
    ]
    collector.spans.clear()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "door-camera")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    with exporting("offramp-edge") as provider:
        edge = Edge(tiny, tracer=EdgeTracer(provider))
        for _ in range(100):
            edge.infer(says({}))
    roots = [service for service, span in collector.spans if span.name == "input"]
    assert set(roots) == {"door-camera"}
    assert 15 < len(roots) < 85


def test_a_collector_that_is_away_costs_spans_only(tiny, says, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("offramp.observe.export._LAST_S", 0.2)
    stream = io.StringIO()
    with log_to(stream, "json", "info"):
        with exporting("offramp-edge") as provider:
            edge = Edge(tiny, tracer=EdgeTracer(provider))
            assert all(edge.infer(says({})).status == "ok" for _ in range(600))  # more than one batch
            ending = time.monotonic()
        assert time.monotonic() - ending < 8  # the SDK alone takes 30
    assert any(json.loads(line)["logger"].startswith("opentelemetry") for line in stream.getvalue().splitlines())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-4"),
    ],
)
def test_variables_that_cannot_be_are_our_error(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"OTEL|traces cannot be sent"), exporting("offramp-edge"):
        pass


def test_a_variable_that_is_empty_is_none(monkeypatch, collector):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    with exporting("offramp-edge") as provider:
        provider.get_tracer("t").start_span("s").end()
    assert [span.name for _, span in collector.spans] == ["s"]


def test_the_id_of_the_trace_under_way(near):
    assert current_trace_id() is None
    with near.provider.get_tracer("t").start_as_current_span("s") as span:
        assert current_trace_id() == trace.format_trace_id(span.get_span_context().trace_id)
