"""A server that gets no more memory: who asks for too much is refused, and everybody else is answered."""

import hashlib
import resource
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2_grpc as rpc
from world import Served

from offramp.bundle.bundle import Bundle, write_bundle
from offramp.bundle.manifest import Exit, Manifest, Stage, Tuning
from offramp.bundle.partition import describe
from offramp.policy.fixed import ServerOnly
from offramp.runtime.edge import Edge
from offramp.serving.channel import GrpcChannel
from offramp.serving.wire import request_message

MIB = 2**20
#: What a sample becomes on its way, and what the server may take beyond what it has when it listens.
SAMPLE_MIB, BUDGET_MIB = 32, 700


def graph(nodes, source, target, width, constants):
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in ((source, 8), (target, width))
    ]
    held = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "wide", ends[:1], ends[1:], held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A bundle whose second stage makes 32 MiB of every sample, and the first two values in the end."""
    nodes = [
        helper.make_node("Unsqueeze", ["cut_0", "axis"], ["column"]),
        helper.make_node("Expand", ["column", "shape"], ["wide"]),
        helper.make_node("ReduceMax", ["wide", "axis"], ["narrow"], keepdims=0),
        helper.make_node("Gather", ["narrow", "first"], ["exit_1"], axis=1),
    ]
    constants = {"axis": [2], "shape": [1, 1, SAMPLE_MIB * MIB // 4 // 8], "first": [0, 1]}
    models = {
        "stages/stage_0.onnx": graph(
            [helper.make_node("Identity", ["input"], ["cut_0"])], "input", "cut_0", 8, {}
        ),
        "stages/stage_1.onnx": graph(nodes, "cut_0", "exit_1", 2, constants),
    }
    files = {name: model.SerializeToString() for name, model in models.items()}
    graphs = [
        describe(model, name, files[name], hashlib.sha256(files[name]).hexdigest())
        for name, model in models.items()
    ]
    manifest = Manifest(
        name="wide",
        inputs=graphs[0].inputs,
        stages=tuple(Stage(graph=found, depth=1, density=1.0) for found in graphs),
        exits=(None, Exit(logits=graphs[1].outputs[0], graph=None)),
    )
    path = tmp_path_factory.mktemp("wide") / "wide.bundle"
    write_bundle(path, manifest, Tuning(temperatures=(None, 1.0), thresholds=(None, None)), files)
    return Bundle.load(path)


def resident_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.parametrize("workers", [1, 2])
def test_whoever_asks_for_too_much_is_refused_and_others_are_answered(wide, workers):
    x = np.linspace(-1, 1, 8, dtype=np.float32)
    with (
        Served(wide.path, "--workers", workers, "--max-batch", "1") as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as neighbour,
        Edge(wide, GrpcChannel(f"127.0.0.1:{server.port}"), ServerOnly(), deadline_ms=20_000) as edge,
    ):
        assert edge.infer(x).status == "ok"
        size = int(Path(f"/proc/{server.pid}/statm").read_text(encoding="utf-8").split()[0])
        budget = size * resource.getpagesize() + BUDGET_MIB * MIB
        resource.prlimit(server.pid, resource.RLIMIT_AS, (budget, budget))
        stub, refusals = rpc.GRPCInferenceServiceStub(neighbour), []

        def ask_too_much():
            greedy = request_message("wide", {"input": np.tile(x, (64, 1))}, None, True)
            for _ in range(5):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ModelInfer(greedy, timeout=60)
                refusals.append((caught.value.code().name, caught.value.details()))

        thread = threading.Thread(target=ask_too_much)
        thread.start()
        results = list(edge.run([x] * 30, under_way=2))
        thread.join(60)
        assert [r.index for r in results] == list(range(30))
        assert {(r.status, r.where) for r in results} == {("ok", "server")}
        assert {code for code, _ in refusals} <= {"INTERNAL", "RESOURCE_EXHAUSTED"}
        assert len(refusals) == 5
        assert all("/" not in text and "alloc" not in text for _, text in refusals)
        assert resident_mib(server.pid) < 100 + BUDGET_MIB
        assert edge.infer(x).where == "server"
        assert server.process.poll() is None
