"""The servers of these benchmarks, each in a process of its own: ours, a bare gRPC one, and a bare TCP one.

`python -m benchmarks.serving.servers ours BUNDLE [SETTINGS]`, `… watched-metrics-traces BUNDLE`, `… bare` and
`… tcp`; the port is printed, and the process ends with its standard input. SETTINGS is JSON: `threads`, and what
`GrpcServer` takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from offramp.bundle.bundle import Bundle
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail
from offramp.runtime.warming import measured_sizes
from offramp.serving.server import GrpcServer
from offramp.serving.wire import grpc_options

__all__ = ["MESSAGE_MB", "POOL", "cpu_s", "on_ray", "read_whole", "running", "started"]

MESSAGE_MB = 64
#: `GrpcServer`'s own pool at its usual settings: one worker, a queue of 64, two threads to spare.
POOL = 67


class _Bare(rpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Returns as many bytes as our server's answer has; asked for the model `echo`, the payload as it came."""

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        response = pb.ModelInferResponse(model_name=request.model_name)
        if request.model_name != "echo":
            for name, datatype, value in (
                ("logits", "FP32", np.zeros((1, 10), np.float32)),
                ("exit", "INT64", np.zeros(1, np.int64)),
            ):
                response.outputs.add(name=name, datatype=datatype, shape=value.shape)
                response.raw_output_contents.append(value.tobytes())
        else:
            asked = request.inputs[0]
            response.outputs.add(name="echo", datatype=asked.datatype, shape=asked.shape)
            response.raw_output_contents.append(request.raw_input_contents[0])
        return response


def read_whole(connection: socket.socket, buffer: memoryview) -> bool:
    """Fills a buffer from a connection; False if that has ended."""
    got = 0
    while got < len(buffer):
        count = connection.recv_into(buffer[got:])
        if not count:
            return False
        got += count
    return True


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[str]:
    """Starts one of the servers; gives its address."""
    with started(*arguments) as (address, _):
        yield address


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[str, int]]:
    """Starts one of the servers; gives its address and process id."""
    command = [sys.executable, "-m", __spec__.name, *arguments]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"{' '.join(arguments)}: the server did not start")
        try:
            yield f"127.0.0.1:{port}", process.pid
        finally:
            process.stdin.close()


@contextlib.contextmanager
def on_ray(python: Path, bundle: Path) -> Iterator[str]:
    """Starts `offramp serve --engine ray` with the Python of an environment that has Ray; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python), "-m", "offramp", "serve", str(bundle), "--engine", "ray", "--host", "0.0.0.0"]
    command += ["--grpc-port", str(port)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if not any(f":{port}," in line for line in process.stdout):
                raise RuntimeError(f"{' '.join(command)}: the server did not start")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.stdout.read()


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has taken; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(kind: str, bundle: str = "", settings: str = "{}") -> None:
    if kind == "ours":
        chosen = json.loads(settings)
        stages = Stages(Bundle.load(bundle), threads=chosen.pop("threads", 1))
        sizes = measured_sizes(stages, chosen["max_batch"]) if "max_batch" in chosen else None
        with GrpcServer(Tail(stages, sizes=sizes), port=0, max_message_mb=MESSAGE_MB, **chosen) as ours:
            _until_input_ends(ours.port)
        return
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as listening:
            threading.Thread(target=_echo, args=(listening,), daemon=True).start()
            _until_input_ends(listening.getsockname()[1])
        return
    if kind.startswith("watched"):
        _serve_watched(kind, bundle)
        return
    server = grpc.server(futures.ThreadPoolExecutor(POOL), options=grpc_options(MESSAGE_MB))
    rpc.add_GRPCInferenceServiceServicer_to_server(_Bare(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _until_input_ends(port)
    server.stop(None).wait()


def _echo(listening: socket.socket) -> None:
    """Sends every message back, to one client: four bytes that say how long it is, then as many."""
    connection, _ = listening.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = bytearray(4)
    while read_whole(connection, memoryview(head)):
        message = bytearray(4 + int.from_bytes(head, "big"))
        message[:4] = head
        if not read_whole(connection, memoryview(message)[4:]):
            return
        connection.sendall(message)


def _serve_watched(kind: str, bundle: str) -> None:
    """`watched`, and after it `metrics`, `traces` or both."""
    from benchmarks.serving.observed import dropping
    from offramp.observe.server_metrics import ServerMetrics
    from offramp.observe.server_tracer import ServerTracer

    tail = Tail(Stages(Bundle.load(bundle)))
    metrics = ServerMetrics() if "metrics" in kind else None
    tracer = ServerTracer(dropping(1.0)) if "traces" in kind else None
    with GrpcServer(tail, port=0, observer=metrics, tracer=tracer) as ours:
        _until_input_ends(ours.port)


def _until_input_ends(port: int) -> None:
    print(port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
