import json
import urllib.error
import urllib.request

import numpy as np
import pytest

from offramp.bundle.bundle import Bundle
from offramp.errors import InputError, PortError, ServerRefusedError
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest
from offramp.serving.channel import GrpcChannel
from offramp.serving.http import HttpServer, Metrics
from offramp.serving.server import GrpcServer


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


@pytest.fixture
def http():
    metrics = Metrics()
    with HttpServer(metrics, port=0) as server:
        yield metrics, server.port


def test_health(http):
    assert json.loads(get(http[1], "/v2/health/live")) == {"live": True}
    assert json.loads(get(http[1], "/v2/health/ready")) == {"ready": True}


def test_another_path_is_404_and_names_what_there_is(http):
    with pytest.raises(urllib.error.HTTPError) as found:
        get(http[1], "/secrets")
    with found.value as answer:
        assert answer.code == 404
        assert "/metrics" in answer.read().decode()


def test_metrics_count_requests_answers_and_refusals(http, digits_bundle):
    metrics, port = http
    tail = Tail(Stages(Bundle.load(digits_bundle)))
    name = tail.bundle.manifest.name
    with GrpcServer(tail, port=0, observer=metrics) as server:
        channel = GrpcChannel(f"127.0.0.1:{server.port}")
        x = np.zeros((3, 1, 28, 28), np.float32)
        channel.infer(TailRequest(name, {"input": x}, final=True), 10)
        for invented in ("made-up-1", "made-up-2"):
            with pytest.raises(ServerRefusedError):
                channel.infer(TailRequest(invented, {"input": x}), 10)
        with pytest.raises((InputError, ServerRefusedError)):
            channel.infer(TailRequest(name, {"input": x[:, :, :5]}), 10)
        channel.close()
    text = get(port, "/metrics")
    assert f'offramp_requests_total{{code="OK",model="{name}"}} 1.0' in text
    assert f'offramp_requests_total{{code="INVALID_ARGUMENT",model="{name}"}} 1.0' in text
    assert 'offramp_requests_total{code="NOT_FOUND",model="unknown"} 2.0' in text
    assert f'offramp_answers_total{{exit="2",model="{name}"}} 3.0' in text
    for histogram in ("compute_seconds", "queue_seconds", "batch_samples"):
        assert f'offramp_{histogram}_count{{model="{name}"}} 1.0' in text
    assert f'offramp_batch_samples_bucket{{le="2.0",model="{name}"}} 0.0' in text
    assert f'offramp_batch_samples_bucket{{le="4.0",model="{name}"}} 1.0' in text  # three samples


def test_a_port_in_use(http):
    with pytest.raises(PortError, match=str(http[1])):
        HttpServer(Metrics(), port=http[1])
    with pytest.raises(PortError, match="70000"):
        HttpServer(Metrics(), port=70000)
