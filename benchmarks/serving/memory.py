"""Resident memory of a server and an edge over many requests: it has to stay within 5 %.

Both are processes over loopback. Several edges of one process ask at every cut, in several modes, one by one and
with four inputs under way, some with policies that learn, whose state is written; for every 200 inputs ten
requests more are REST. The first tenth of the requests warms up; the most that either process takes after it is
compared with what it takes then. Exits with 1 if that is more than 5 %.
"""

from __future__ import annotations

import http.client
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import parser, write_json
from offramp.bundle.bundle import Bundle
from offramp.connect import Edge
from offramp.policy.memory import save_state
from offramp.policy.registry import make_policy, parse_policy
from offramp.runtime.stages import Stages
from offramp.tables import table_text

REQUESTS, PARTS, BAR = 100_000, 10, 1.05
#: Policy, the mode in which it sends, and inputs under way.
EDGES = (
    ("server-only", "float", 1),
    ("server-only", "uint8", 4),
    ("split-0-all", "uint4", 1),
    ("split-0-all", "float", 4),
    ("split-1-all", "uint8c", 4),
    ("i-splitee,alpha=0.9", "uint8", 4),
    ("i-splitee,alpha=0.9,audit=0.1,window=500", "float", 1),
    ("dynamic-split,alpha=0.9", "float", 4),
    ("cascade,alpha=0.9", "uint2", 4),
)
#: Inputs that an edge runs before it is the next one's turn, and REST requests between them.
TURN, REST = 200, 10
SHAPE = (1, 28, 28)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; gives 1 if the bar is missed."""
    made = parser(__doc__, "serving-memory")
    made.add_argument("--requests", type=int, default=REQUESTS, help="that reach the server")
    arguments = made.parse_args(argv)
    part = (3_000 if arguments.quick else arguments.requests) // PARTS
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = _bundle(Path(folder) / "digits.bundle")
        server, grpc_address, http_port = stack.enter_context(_server(path))
        edge, ours = stack.enter_context(_edges(path, grpc_address, http_port, part))
        rows = []
        for k in range(1, PARTS + 1):
            ours.send(k)
            inputs, seconds = ours.recv()
            assert edge.pid is not None
            rows.append(
                {
                    "requests": k * part,
                    "inputs": inputs,
                    "per_second": part / seconds,
                    "server_mib": _resident_mib(server),
                    "edge_mib": _resident_mib(edge.pid),
                }
            )
            print(f"{k * part:,} requests", file=sys.stderr)
    growth = {who: max(r[f"{who}_mib"] for r in rows) / rows[0][f"{who}_mib"] for who in ("server", "edge")}
    heads = ["requests", "inputs", "requests/s", "server MiB", "edge MiB"]
    text = [
        [
            f"{row['requests']:,}",
            f"{row['inputs']:,}",
            f"{row['per_second']:.0f}",
            f"{row['server_mib']:.1f}",
            f"{row['edge_mib']:.1f}",
        ]
        for row in rows
    ]
    print(table_text("Resident memory of a server and an edge", heads, text))
    met = all(value <= BAR for value in growth.values())
    for who, value in growth.items():
        print(f"{who}: at most {value - 1:+.1%} after the first {part:,} requests")
    print(f"bar: {BAR - 1:.0%}, {'met' if met else 'missed'}")
    print(f"written: {write_json(arguments, {'rows': rows, 'growth': growth, 'met': met})}")
    return 0 if met else 1


def _bundle(path: Path) -> Path:
    """A small network with two exits, and every mode."""
    import torch
    from torch import nn

    from offramp.bundle.export import export
    from offramp.exits.heads import PooledHead
    from offramp.exits.network import MultiExit

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 10),
    )
    example = torch.zeros(1, *SHAPE)
    net = MultiExit(model, {"1": PooledHead(10), "3": PooledHead(10)}, example_input=example)
    export(net, example, path)
    return path


@contextmanager
def _server(path: Path) -> Iterator[tuple[int, str, int]]:
    """`offramp serve` with both ports: its process, gRPC address and HTTP port."""
    command = [sys.executable, "-m", "offramp", "serve", str(path), "--grpc-port", "0", "--http-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline() + process.stdout.readline()
            port, address = re.search(r"http://\S+?:(\d+)/", said), re.search(r"listening on (\S+?),", said)
            assert port is not None, said
            assert address is not None, said
            yield process.pid, address[1], int(port[1])
        finally:
            process.terminate()


@contextmanager
def _edges(
    path: Path, address: str, http_port: int, part: int
) -> Iterator[tuple[multiprocessing.context.SpawnProcess, Connection[Any, Any]]]:
    """The edges' process, which runs a part whenever it is told to."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_ask, args=(path, address, http_port, part, theirs))
    process.start()
    try:
        yield process, ours
    finally:
        ours.send(None)
        process.join(10)
        process.kill()
        process.join()


def _ask(path: Path, address: str, http_port: int, part: int, told: Connection[Any, Any]) -> None:
    images = list(np.random.default_rng(0).standard_normal((TURN, *SHAPE)).astype(np.float32))
    rest = http.client.HTTPConnection("127.0.0.1", http_port, timeout=30)
    with ExitStack() as stack:
        edges = []
        for name, mode, under_way in EDGES:
            bundle = Bundle.load(path)
            bundle.tuning = bundle.tuning.model_copy(update={"mode": mode})
            kind, options = parse_policy(name)
            edge = Edge(bundle, address, make_policy(kind, **options), deadline_ms=10_000, stages=Stages(bundle))
            edges.append((stack.enter_context(edge), under_way))
        turns, sent, inputs = itertools.cycle(edges), 0, 0
        while (k := told.recv()) is not None:
            start = time.perf_counter()
            while sent < k * part:
                edge, under_way = next(turns)
                for result in edge.run(images, under_way=under_way):
                    assert result.status == "ok", result.error
                    inputs += 1
                    sent += result.payload_bytes > 0
                save_state(edge.policy, path.parent / "state.json", edge.bundle.digest)
                for image in images[:REST]:
                    _rest(rest, edge.bundle.manifest.name, image)
                sent += REST
            told.send((inputs, time.perf_counter() - start))
    rest.close()


def _rest(connection: http.client.HTTPConnection, model: str, image: Any) -> None:
    asked = {"name": "input", "datatype": "FP32", "shape": [1, *SHAPE], "data": image.ravel().tolist()}
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [asked]}))
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200, content


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
