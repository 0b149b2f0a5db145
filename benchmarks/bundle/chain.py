"""A chain of stages against the whole graph, in ONNX Runtime, one thread, one sample.

The rival is the network that was never cut: its graph up to the last output alone, without exits, so that
ONNX Runtime may fuse across what are cuts here. The whole multi-exit graph stands beside it; asked for its
last output only, it computes the exits nevertheless. The chain is what an edge runs through when nobody asks
for an exit; with its exits, what it runs when every gate says to go on. Processor time, so that what else runs
counts less. A second table says where the chain's time goes.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from benchmarks.bundle.networks import mobilenetv2, resnet56
from benchmarks.sessions import session, session_options
from benchmarks.timing import compare, ms_text, one_core, parser, write_json
from offramp.bundle.export import export, export_graph
from offramp.bundle.partition import graph_cost, partition
from offramp.exits.network import MultiExit
from offramp.recipes import build
from offramp.runtime.stages import Stages
from offramp.tables import bytes_text, count_text, table_text

PLAIN, WHOLE, CHAIN, EXITS = "never cut", "whole, exits too", "chain of stages", "chain, exits too"
BAR = 1.05
#: What changes the layout, and what is called so in `offramp.bundle.blocked`. The whole graph has some too.
REORDERING, ANCHOR = ("ReorderInput", "ReorderOutput"), "_blocked"
#: MobileNetV2 was trained at 224; 96 to 160 is what two cores can train on. The fewer, the more a cut weighs.
SIDES = (96, 160, 224)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "bundle-chain")
    made.add_argument("--side", type=int, nargs="+", default=SIDES, help="MobileNetV2's pixels a side")
    arguments = made.parse_args(argv)
    quick: bool = arguments.quick
    core = one_core()
    digits = torch.zeros(1, 1, 28, 28)
    nets = {"digits, sparse": (build("sparse", digits, 10)[0], digits), "ResNet-56": resnet56()}
    sides = (32,) if quick else arguments.side
    nets |= {f"MobileNetV2, {side}x{side}": mobilenetv2(side) for side in sides}
    cases = [_case(name, net, x, rounds=5 if quick else 300) for name, (net, x) in nets.items()]
    call_us = _empty_call_us()
    print(_timings_table(cases))
    for case in cases:
        print(_stages_table(case, call_us))
    print(f"written: {write_json(arguments, {'core': core, 'empty_call_us': call_us, 'cases': cases})}")


def _case(name: str, net: MultiExit, example: Tensor, rounds: int) -> dict[str, Any]:
    """Times one network whole and in stages."""
    last = len(net.exit_names)
    final = f"exit_{last}"
    model = export_graph(net, example)
    plain = partition(model, [], [], final=final).stages[0]
    x: NDArray[np.float32] = np.random.default_rng(0).standard_normal(tuple(example.shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        stages = Stages(export(net, example, Path(folder) / "chain.bundle"))
        whole = session(model.SerializeToString())
        uncut = session(plain.SerializeToString())
        calls: dict[str, Callable[[], NDArray[np.float32]]] = {
            PLAIN: partial(_whole, uncut, final, x),
            WHOLE: partial(_whole, whole, final, x),
            CHAIN: partial(_chain, stages, x),
            EXITS: partial(_chain, stages, x, exits=True),
        }
        difference = float(np.abs(calls[CHAIN]() - calls[PLAIN]()).max())
        # A sample of many calls, since an edge runs one chain again and again: of a single call, half is spent on
        # fetching what the other candidates' weights have evicted.
        timings = compare(calls, rounds=rounds, sample_ms=60, budget_s=30, clock=time.process_time)
        parts = _parts(stages, x, runs=rounds)
    return {
        "network": name,
        "cuts": last,
        "macs": graph_cost(plain).macs,
        "max_difference": difference,
        "timings": {what: timing.to_dict() for what, timing in timings.items()},
        "stages": parts,
    }


def _whole(runner: ort.InferenceSession, output: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = runner.run([output], {"input": x})[0]
    return found


def _chain(stages: Stages, x: NDArray[np.float32], exits: bool = False) -> NDArray[np.float32]:
    tensors: list[NDArray[np.generic]] = [x]
    last = stages.bundle.manifest.last
    for i in range(last + 1):
        tensors, _ = stages.stage(i, tensors)
        if exits and i < last:
            stages.exit(i, tensors)
    return tensors[0].astype(np.float32, copy=False)


def _parts(stages: Stages, x: NDArray[np.float32], runs: int) -> list[dict[str, Any]]:
    """Per stage what crosses after it, its time as `Stages` tells it in a chain, and the time of reordering."""
    taken: list[list[float]] = [[] for _ in stages.bundle.manifest.stages]
    around: list[float] = []
    cuts: list[list[NDArray[np.generic]]] = []
    for _ in range(runs):
        start = time.perf_counter()
        tensors: list[NDArray[np.generic]] = [x]
        cuts = [tensors]
        for i, samples in enumerate(taken):
            tensors, spent = stages.stage(i, tensors)
            samples.append(spent)
            cuts.append(tensors)
        around.append((time.perf_counter() - start) * 1e3 - sum(samples[-1] for samples in taken))
    return [
        {
            "macs": stage.graph.macs,
            "bytes": sum(spec.bytes for spec in stage.graph.outputs),
            "ms": float(np.median(samples)),
            "python_us": float(np.median(around)) * 1e3 / len(taken),
            "reordering_us": _reordering_us(stages.bundle.read(stage.graph), given, runs),
        }
        for stage, samples, given in zip(stages.bundle.manifest.stages, taken, cuts, strict=False)
    ]


def _reordering_us(content: bytes, tensors: list[NDArray[np.generic]], runs: int) -> float:
    """The profiler's time for what changes the layout; it counts whole microseconds, half of one is added."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        runner = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        feed = dict(zip([value.name for value in runner.get_inputs()], tensors, strict=True))
        for _ in range(runs):
            runner.run(None, feed)
        events = json.loads(Path(runner.end_profiling()).read_text(encoding="utf-8"))
    by_node: dict[str, list[float]] = {}
    for event in events:
        counts = event.get("args", {}).get("op_name") in REORDERING or ANCHOR in event["name"]
        if counts and event["name"].endswith("_kernel_time"):
            by_node.setdefault(event["name"], []).append(event["dur"] + 0.5)
    return float(sum(np.median(times) for times in by_node.values()))


def _empty_call_us() -> float:
    """What it costs to call a session that does nothing."""
    value = helper.make_tensor_value_info
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph(
        [node], "empty", [value("x", TensorProto.FLOAT, ["N", 4])], [value("y", TensorProto.FLOAT, ["N", 4])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    runner, x = session(model.SerializeToString()), np.zeros((1, 4), np.float32)
    timing = compare({"empty": lambda: runner.run(["y"], {"x": x})}, rounds=100, budget_s=2)["empty"]
    return timing.median_ms * 1e3


def _timings_table(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            case["network"],
            str(case["cuts"]),
            count_text(case["macs"]),
            what,
            ms_text(timing["median_ms"], timing["p10_ms"], timing["p90_ms"]),
            f"{timing['ratio']:.3f} ({timing['ratio_p10']:.3f}-{timing['ratio_p90']:.3f})",
            _verdict(case["network"], timing["ratio"]) if what == CHAIN else "-",
            ("0, to the bit" if case["max_difference"] == 0 else f"{case['max_difference']:.1g}")
            if what == CHAIN
            else "-",
        ]
        for case in cases
        for what, timing in case["timings"].items()
    ]
    heads = ["network", "cuts", "MACs", "how", "ms (10th-90th)", "time / never cut", "bar", "largest difference"]
    return table_text("A chain of stages against the whole graph", heads, rows)


def _verdict(network: str, ratio: float) -> str:
    if not network.startswith("MobileNetV2"):
        return "-"
    return f"≤ {BAR} {'met' if ratio <= BAR else 'missed'}"


def _stages_table(case: Mapping[str, Any], call_us: float) -> str:
    """Where the time of a chain goes."""
    parts: Sequence[Mapping[str, Any]] = case["stages"]
    rows = [
        [
            str(i),
            count_text(part["macs"]),
            f"{part['ms']:.3f}",
            f"{part['reordering_us']:.0f}",
            "-" if part is parts[-1] else bytes_text(part["bytes"]),
        ]
        for i, part in enumerate(parts)
    ]
    cuts, python_us = case["cuts"], parts[0]["python_us"]
    reordering_us = sum(part["reordering_us"] for part in parts)
    whole_us = case["timings"][PLAIN]["median_ms"] * 1e3
    said = (
        f"{cuts} more calls of a session, {call_us:.1f} µs each even if it does nothing: "
        f"{cuts * call_us / whole_us:.1%} of the network never cut; Python around a call, {python_us:.1f} µs: "
        f"{(cuts + 1) * python_us / whole_us:.1%}; reordering, {reordering_us:.0f} µs: "
        f"{reordering_us / whole_us:.1%}"
    )
    heads = ["stage", "MACs", "ms", "of it reordering µs", "sends"]
    return table_text(f"{case['network']}: where the chain's time goes", heads, rows, caption=said)


if __name__ == "__main__":
    main()
