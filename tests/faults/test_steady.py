"""Requests leave no memory behind, on edge and server; `python -m benchmarks.serving.memory` runs 100,000."""

import gc
import http.client
import itertools
import json
import random
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_bundle import WIDTH

from offramp.bundle.bundle import Bundle
from offramp.observe.server_metrics import ServerMetrics
from offramp.policy.registry import make_policy, parse_policy
from offramp.runtime.edge import Edge
from offramp.serving.channel import GrpcChannel
from offramp.serving.http import HttpServer
from offramp.serving.server import GrpcServer

#: Bytes that a request may leave; one number that is kept takes more.
A_REQUEST = 16
EDGES = (
    ("server-only", "float", 1),
    ("split-0-all", "uint8", 4),
    ("split-1-all", "float", 4),
    ("i-splitee,audit=0.2", "uint8", 4),
    ("splitee-s,send_input=true", "float", 1),
    ("dynamic-split", "float", 4),
)
TURN = 50


@pytest.fixture
def grown(world):
    """Runs requests against a server; gives the bytes that are held after the last, and were not before."""

    def run(requests, observer):
        draw = random.Random(1)
        images = [np.array([draw.uniform(-3, 3) for _ in range(WIDTH)], np.float32) for _ in range(TURN)]
        with (
            GrpcServer(world.tail, port=0, observer=observer) as server,
            HttpServer(server.service, port=0) as rest,
        ):
            edges = []
            for name, mode, under_way in EDGES:
                bundle = Bundle.load(world.bundle.path)
                bundle.tuning = bundle.tuning.model_copy(update={"mode": mode})
                kind, options = parse_policy(name)
                channel = GrpcChannel(f"127.0.0.1:{server.port}")
                edges.append((Edge(bundle, channel, make_policy(kind, **options), deadline_ms=20_000), under_way))
            connection = http.client.HTTPConnection("127.0.0.1", rest.port, timeout=20)
            entry = {"name": "input", "datatype": "FP32", "shape": [1, WIDTH], "data": images[0].tolist()}
            try:
                turns, held = itertools.cycle(edges), []
                tracemalloc.start()
                for count in (600, requests):
                    for edge, under_way in itertools.islice(turns, count // TURN):
                        assert all(r.error is None for r in edge.run(images, under_way=under_way))
                        connection.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [entry]}))
                        assert connection.getresponse().read()
                    gc.collect()
                    held.append(tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
                connection.close()
                for edge, _ in edges:
                    edge.close()
        return held[1] - held[0]

    return run


def test_requests_leave_no_memory(grown):
    assert grown(3000, ServerMetrics()) < 3000 * A_REQUEST


def test_what_a_request_leaves_is_found(grown):
    kept = []
    keeping = SimpleNamespace(
        served=lambda request: kept.append(list(request)),
        waited=lambda job, since, until: None,
        ran=lambda step: None,
    )
    assert grown(600, keeping) > 600 * A_REQUEST
