"""Many clients of an Open Inference Protocol server, in a process of its own, with as little Python as can be.

`python -m benchmarks.serving.load` reads its orders from standard input as JSON, and prints what came of them as
JSON. Requests are made before the clock starts, and answers are read and checked after it has stopped, so that
what a client costs while the server computes is little more than gRPC itself.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from offramp.serving.wire import from_outputs, grpc_options, request_message

__all__ = ["Load", "Orders", "load"]

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TOLERANCE = 1e-5
MESSAGE_MB = 64


@dataclass(frozen=True)
class Orders:
    """What clients do.

    Attributes:
        address: HOST:PORT.
        samples: An .npz file: for every model `MODEL/TENSOR` (K, …), what is sent, and `MODEL/logits`
            and `MODEL/early` (K, classes), what shall come back from the last exit, and from whichever is sure.
        models: Which of its models are asked, each as often as the others, at random.
        clients: Connections, each with one request under way at most.
        seconds: How long.
        rate: Requests a second of all clients together, each of which then keeps a pace of its own, as a camera
            does; 0 is as many as are answered.
        final: Whether every request goes to the last exit.
        seed: Of the draws.
    """

    address: str
    samples: str
    models: tuple[str, ...]
    clients: int
    seconds: float
    rate: float = 0.0
    final: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Load:
    """What came of it.

    Attributes:
        rate: Answers a second.
        latencies_ms: Of every answered request, by the client's clock; at a given rate from the time at which it
            was due.
        wrong: Answers that were not the expected ones within `TOLERANCE`.
        failed: Requests without an answer, by gRPC's code.
        worst: The largest difference from what was expected.
        cpu_s: Processor seconds of the clients.
    """

    rate: float
    latencies_ms: tuple[float, ...]
    wrong: int
    failed: dict[str, int]
    worst: float
    cpu_s: float

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies."""
        return float(np.percentile(self.latencies_ms, percent))


def load(orders: Orders) -> Load:
    """Runs the clients in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        input=json.dumps(asdict(orders)),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=orders.seconds + 120,
    )
    return Load(**json.loads(done.stdout))


class _Clients:
    """Threads that share what is to be sent, and keep what came back."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        samples = np.load(orders.samples)
        #: What is sent, and the logits that shall come back.
        self._requests: list[tuple[bytes, NDArray[np.float32]]] = []
        for model in orders.models:
            named = {key.removeprefix(f"{model}/"): samples[key] for key in samples if key.startswith(f"{model}/")}
            final, early = named.pop("logits"), named.pop("early")
            expected = final if orders.final else early
            for k in range(len(expected)):
                tensors = {name: values[k : k + 1] for name, values in named.items()}
                message = request_message(model, tensors, None, orders.final)
                self._requests.append((message.SerializeToString(), expected[k]))
        #: Of every request: which one, the answer's bytes or a code, milliseconds.
        self._answers: list[tuple[int, bytes | str, float]] = []
        self._start = 0.0

    def run(self) -> Load:
        orders = self._orders
        options = [*grpc_options(MESSAGE_MB), ("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.insecure_channel(orders.address, options=options) for _ in range(orders.clients)]
        for channel in channels:
            channel.unary_unary(METHOD)(self._requests[0][0], timeout=60)
        self._start = time.perf_counter() + 0.05
        threads = [threading.Thread(target=self._ask, args=(i, c)) for i, c in enumerate(channels)]
        before = _cpu_s()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took, cpu_s = time.perf_counter() - self._start, _cpu_s() - before
        for channel in channels:
            channel.close()
        return self._checked(took, cpu_s)

    def _due(self, client: int) -> Iterator[float]:
        """Seconds after the start at which a client's requests are due."""
        orders = self._orders
        if not orders.rate:
            while (now := time.perf_counter() - self._start) < orders.seconds:
                yield max(now, 0.0)
        else:
            pace = orders.clients / orders.rate
            due = random.Random(client).random() * pace
            while due < orders.seconds:
                yield due
                due += pace

    def _ask(self, index: int, channel: grpc.Channel) -> None:
        draw = random.Random(1000 * self._orders.seed + index).randrange
        call, n = channel.unary_unary(METHOD), len(self._requests)
        for due in self._due(index):
            began = self._start + due
            if (early := began - time.perf_counter()) > 0:
                time.sleep(early)
            which = draw(n)
            answer: bytes | str
            try:
                answer = call(self._requests[which][0])
            except grpc.RpcError as error:
                answer = error.code().name
            self._answers.append((which, answer, (time.perf_counter() - began) * 1e3))

    def _checked(self, took: float, cpu_s: float) -> Load:
        failed: dict[str, int] = {}
        latencies, wrong, worst = [], 0, 0.0
        for which, answer, ms in self._answers:
            if isinstance(answer, str):
                failed[answer] = failed.get(answer, 0) + 1
                continue
            logits = from_outputs(pb.ModelInferResponse.FromString(answer))["logits"][0]
            expected = self._requests[which][1]
            worst = max(worst, float(np.abs(logits - expected).max()))
            wrong += not np.allclose(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
            latencies.append(ms)
        return Load(len(latencies) / took, tuple(latencies), wrong, failed, worst, cpu_s)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps(asdict(_Clients(Orders(**json.load(sys.stdin))).run())))
