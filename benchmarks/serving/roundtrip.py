"""The round trip of our gRPC server and channel against a bare one, on loopback, by payload.

Ours checks names, shapes, digests and finiteness and runs a tail (here the cheapest: ten values of the cut);
the bare one is the same protocol's stubs around nothing. Two bare calls stand beside ours: one that answers as
much as ours does, and one that sends the payload back. So do the same payload there and back over TCP without any
protocol, and MLServer with the same tail, asked by our channel; where it is not installed its row is left out.

With `--ray-python` the same tail is also asked behind Ray Serve, from the environment of that Python. Ray listens
on more than loopback; give it a network of its own:

    unshare --map-root-user --net sh -c 'ip link set lo up && exec "$@"' sh \\
        python -m benchmarks.serving.roundtrip --ray-python .venv-ray/bin/python
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from benchmarks.serving.mlserver import PYTHON, mlserver
from benchmarks.serving.servers import MESSAGE_MB, on_ray, read_whole, running
from benchmarks.timing import compare, ms_text, parser, ratio_text, write_json
from offramp.bundle.bundle import Bundle, write_bundle
from offramp.bundle.codec import IR_VERSION, OPSET
from offramp.bundle.manifest import Exit, Graph, Manifest, Stage, Tuning
from offramp.bundle.partition import describe
from offramp.runtime.tail import TailRequest, tail_name
from offramp.serving.channel import GrpcChannel
from offramp.serving.wire import grpc_options
from offramp.tables import bytes_text, table_text

__all__ = ["bundle_of", "main"]

#: Values in the cut: 4 KB and 803 KB (MobileNetV2's largest cut at 224²).
SIZES = (1024, 200704)
CLASSES = 10
#: The most that ours may cost, as a multiple of the bare call that sends the payload back.
BAR = 1.3
OURS, ANSWER, ECHO = "ours", "bare, same answer", "bare, payload back"
TCP, MLSERVER, RAY = "TCP, payload back", "MLServer", "ours behind Ray Serve"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    known = parser(__doc__, "serving-roundtrip")
    known.add_argument("--ray-python", type=Path, help="also behind Ray Serve, with this environment's Python")
    arguments = known.parse_args(argv)
    rounds = 20 if arguments.quick else 150
    if not PYTHON.exists():
        print(f"MLServer is not at {PYTHON}; `make .venv-mlserver/.installed` installs it")
    cases = [case for size in SIZES for case in _cases(size, rounds, arguments.ray_python)]
    print(_table(cases))
    print(f"written: {write_json(arguments, {'bar': BAR, 'cases': cases})}")


def _cases(size: int, rounds: int, ray_python: Path | None) -> list[dict[str, Any]]:
    """Times the calls against each other at one payload."""
    cut = np.random.default_rng(0).standard_normal((1, size)).astype(np.float32)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = bundle_of(folder / "trip.bundle", size)
        request = TailRequest(tail_name(bundle.manifest.name, 0, "float"), {"cut_0": cut}, bundle.digest, True)

        bare = stack.enter_context(running("bare"))
        stub = rpc.GRPCInferenceServiceStub(
            stack.enter_context(grpc.insecure_channel(bare, options=grpc_options(MESSAGE_MB)))
        )
        tcp = stack.enter_context(_connected(stack.enter_context(running("tcp"))))
        server_ms: list[float] = []
        calls: dict[str, Callable[[], object]] = {
            ECHO: partial(_bare, stub.ModelInfer, "echo", cut),
            ANSWER: partial(_bare, stub.ModelInfer, "answer", cut),
            OURS: partial(
                _ours, _channel(stack, stack.enter_context(running("ours", str(bundle.path)))), request, server_ms
            ),
            TCP: partial(_tcp, tcp, cut),
        }
        if PYTHON.exists():
            home = folder / "mlserver"
            home.mkdir()
            calls[MLSERVER] = partial(
                _channel(stack, stack.enter_context(mlserver(bundle, home))).infer, request, 5.0
            )
        if ray_python is not None:
            behind = stack.enter_context(on_ray(ray_python, bundle.path))
            calls[RAY] = partial(_ours, _channel(stack, behind), request, [])
        timings = compare(calls, rounds=rounds, sample_ms=25, budget_s=30)
    ours_timing = timings[OURS]
    cases = []
    for name, timing in timings.items():
        cases.append(
            {
                "payload_bytes": cut.nbytes,
                "candidate": name,
                "p99_ms": timing.percentile_ms(99),
                "ours_over_this": ours_timing.median_ms / timing.median_ms,
                "ours_over_this_p99": ours_timing.percentile_ms(99) / timing.percentile_ms(99),
                "server_ms": float(np.median(server_ms)) if name == OURS else None,
                **timing.to_dict(),
            }
        )
    return cases


def _channel(stack: ExitStack, address: str) -> GrpcChannel:
    channel = GrpcChannel(address, max_message_mb=MESSAGE_MB)
    stack.callback(channel.close)
    return channel


def _ours(channel: GrpcChannel, request: TailRequest, server_ms: list[float]) -> None:
    reply = channel.infer(request, 5.0)
    assert reply.server_ms is not None  # our server always says
    server_ms.append(reply.server_ms)


def _bare(call: Callable[[Any], Any], model: str, cut: NDArray[np.float32]) -> None:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="cut_0", datatype="FP32", shape=cut.shape)
    message.raw_input_contents.append(cut.tobytes())
    answer = call(message)
    np.frombuffer(answer.raw_output_contents[0], np.float32)


def _connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _tcp(connection: socket.socket, cut: NDArray[np.float32]) -> None:
    connection.sendall(cut.nbytes.to_bytes(4, "big") + cut.tobytes())
    answer = bytearray(4 + cut.nbytes)
    assert read_whole(connection, memoryview(answer))
    np.frombuffer(answer, np.float32, offset=4)


def bundle_of(path: Path, size: int) -> Bundle:
    """Two stages that compute next to nothing: the input is the cut, its first values are the logits."""
    files: dict[str, bytes] = {}

    def stage(name: str, model: ModelProto) -> Graph:
        content = model.SerializeToString(deterministic=True)
        files[name] = content
        return describe(model, name, content, hashlib.sha256(content).hexdigest())

    bounds = [
        numpy_helper.from_array(np.array([v], np.int64), n) for n, v in (("a", 0), ("b", CLASSES), ("ax", 1))
    ]
    first = stage("stages/stage_0.onnx", _model("Identity", ("input", size), ("cut_0", size), []))
    second = stage("stages/stage_1.onnx", _model("Slice", ("cut_0", size), ("exit_1", CLASSES), bounds))
    manifest = Manifest(
        name="trip",
        inputs=first.inputs,
        stages=(Stage(graph=first, depth=0, density=1), Stage(graph=second, depth=0, density=1)),
        exits=(None, Exit(logits=second.outputs[0], graph=None)),
    )
    write_bundle(path, manifest, Tuning(temperatures=(None, 1.0), thresholds=(None, None)), files)
    return Bundle.load(path)


def _model(operator: str, source: tuple[str, int], target: tuple[str, int], constants: list[Any]) -> ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (source, target)]
    node = helper.make_node(operator, [source[0], *(c.name for c in constants)], [target[0]])
    graph = helper.make_graph([node], operator, ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _table(cases: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            bytes_text(case["payload_bytes"]),
            case["candidate"],
            ms_text(case["median_ms"], case["p10_ms"], case["p90_ms"]),
            f"{case['p99_ms']:.3g}",
            "-" if case["candidate"] == OURS else ratio_text(case["ours_over_this"]),
            "-" if case["candidate"] == OURS else ratio_text(case["ours_over_this_p99"]),
            str(BAR) if case["candidate"] == ECHO else "-",
        ]
        for case in cases
    ]
    heads = ["payload", "call", "ms (10th-90th)", "99th", "ours / this", "99th", "bar"]
    spent = ", ".join(
        f"{case['server_ms']:.3g} ms of {bytes_text(case['payload_bytes'])}"
        for case in cases
        if case["server_ms"] is not None
    )
    caption = f"of ours, inside the tail (checks and ONNX Runtime): {spent}"
    return table_text("gRPC round trip on loopback", heads, rows, caption=caption)


if __name__ == "__main__":
    main()
