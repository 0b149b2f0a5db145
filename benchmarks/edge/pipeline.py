"""Inputs per second of `Edge.run` with several under way, beside one by one, over an emulated link.

Server and link are processes of their own, as in use. Every input is offloaded. The limit is what edge and link
allow: the smaller of 1 / head and under way / (head + waiting), head and waiting as one by one measures them.
Server and link compute too, on the same cores; beside them stands a channel that only waits as long, which
leaves the loop's own cost.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.timing import Timing, compare, ms_text, parser, ratio_text, write_json
from offramp.bundle.bundle import Bundle, write_bundle
from offramp.bundle.codec import IR_VERSION, OPSET
from offramp.bundle.manifest import Exit, Graph, Manifest, Stage, Tuning
from offramp.bundle.partition import describe
from offramp.connect import Edge
from offramp.policy.fixed import FixedSplit
from offramp.runtime.result import Result
from offramp.runtime.tail import Channel, TailReply, TailRequest
from offramp.serving.link import LinkSettings
from offramp.serving.process import served
from offramp.tables import table_text

UNDER_WAY = (1, 2, 4, 8, 16)
#: Values in input and cut: 4 KB travel.
WIDTH, CLASSES = 1024, 10
#: Matrix products in the head.
LAYERS = 40
#: An emulated link of unlimited rate; this is one way.
DELAY_S = 0.010


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "edge-pipeline").parse_args(argv)
    rounds, count = (3, 20) if arguments.quick else (11, 150)
    inputs = list(np.random.default_rng(0).standard_normal((count, WIDTH)).astype(np.float32))
    link = LinkSettings(delay_s=DELAY_S)
    with tempfile.TemporaryDirectory() as folder:
        bundle = _bundle(Path(folder) / "deep.bundle")
        waiting = _measured(bundle, _Waiting(), inputs, rounds)
        with served(bundle.path, link) as address:
            linked = _measured(bundle, address, inputs, rounds)
    print(_table(linked, f"Inputs under way over a link of {link.words}"))
    print(_table(waiting, f"A channel that waits {2e3 * DELAY_S:g} ms"))
    figures = {"link": link.words, "inputs": count, "linked": linked, "waiting": waiting}
    print(f"written: {write_json(arguments, figures)}")


class _Waiting:
    """A channel that answers after the link's round trip, and does nothing meanwhile."""

    def infer(self, request: TailRequest, timeout_s: float | None = None) -> TailReply:
        time.sleep(2 * DELAY_S)
        return TailReply(np.zeros((1, CLASSES), np.float32))

    def close(self) -> None:
        pass


def _measured(
    bundle: Bundle, server: str | Channel, inputs: Sequence[NDArray[np.float32]], rounds: int
) -> list[dict[str, Any]]:
    with Edge(bundle, server, FixedSplit(0, gated=False), deadline_ms=10_000.0) as edge:
        seen: dict[int, list[Result]] = {n: [] for n in UNDER_WAY}
        runs: dict[str, Callable[[], object]] = {
            str(n): partial(_run, edge, inputs, n, seen[n]) for n in UNDER_WAY
        }
        return _cases(compare(runs, rounds=rounds, budget_s=60.0), seen, len(inputs))


def _run(edge: Edge, inputs: Sequence[NDArray[np.float32]], under_way: int, seen: list[Result]) -> None:
    results = list(edge.run(inputs, under_way=under_way))
    assert [r.index for r in results] == list(range(len(inputs)))
    assert {r.status for r in results} == {"ok"}
    seen.extend(results)


def _cases(timings: dict[str, Timing], seen: dict[int, list[Result]], count: int) -> list[dict[str, Any]]:
    alone = [r.latency_ms for r in seen[1]]
    head_ms = float(np.median([t.edge for t in alone]))
    waits_ms = float(np.median([t.link + t.server for t in alone]))
    cases = []
    for n in UNDER_WAY:
        timing = timings[str(n)]
        limit = 1e3 * min(1 / head_ms, n / (head_ms + waits_ms))
        rate = 1e3 * count / timing.median_ms
        latency = [r.latency_ms for r in seen[n]]
        cases.append(
            {
                "under_way": n,
                "per_second": rate,
                "per_second_p10": 1e3 * count / timing.percentile_ms(90),
                "per_second_p90": 1e3 * count / timing.percentile_ms(10),
                "over_one_by_one": timing.speedup,
                "limit_per_second": limit,
                "of_limit": rate / limit,
                "head_ms": float(np.median([t.edge for t in latency])),
                "latency_ms": float(np.median([t.total for t in latency])),
                "latency_p95_ms": float(np.percentile([t.total for t in latency], 95)),
                **timing.to_dict(),
            }
        )
    return cases


def _bundle(path: Path) -> Bundle:
    """A head of some milliseconds and a tail of next to nothing."""
    files: dict[str, bytes] = {}

    def stage(name: str, model: ModelProto) -> Graph:
        content = model.SerializeToString(deterministic=True)
        files[name] = content
        return describe(model, name, content, hashlib.sha256(content).hexdigest())

    weight = (np.random.default_rng(1).standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
    names = ["input", *(f"hidden_{i}" for i in range(LAYERS - 1)), "cut_0"]
    layers = [helper.make_node("MatMul", [a, "weight"], [b]) for a, b in pairwise(names)]
    first = stage("stages/stage_0.onnx", _model(layers, "input", "cut_0", WIDTH, {"weight": weight}))
    bounds = {
        "from": np.array([0], np.int64),
        "to": np.array([CLASSES], np.int64),
        "axis": np.array([1], np.int64),
    }
    slice_ = helper.make_node("Slice", ["cut_0", *bounds], ["exit_1"])
    second = stage("stages/stage_1.onnx", _model([slice_], "cut_0", "exit_1", CLASSES, bounds))
    manifest = Manifest(
        name="deep",
        inputs=first.inputs,
        stages=(Stage(graph=first, depth=LAYERS, density=1), Stage(graph=second, depth=LAYERS, density=1)),
        exits=(None, Exit(logits=second.outputs[0], graph=None)),
    )
    write_bundle(path, manifest, Tuning(temperatures=(None, 1.0), thresholds=(None, None)), files)
    return Bundle.load(path)


def _model(
    nodes: list[Any], source: str, target: str, width: int, constants: dict[str, NDArray[Any]]
) -> ModelProto:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in ((source, WIDTH), (target, width))
    ]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, target, ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _table(cases: Sequence[dict[str, Any]], title: str) -> str:
    rows = [
        [
            str(case["under_way"]),
            ms_text(case["per_second"], case["per_second_p10"], case["per_second_p90"]),
            ratio_text(case["over_one_by_one"]),
            f"{case['limit_per_second']:.3g}",
            f"{case['of_limit']:.0%}",
            f"{case['head_ms']:.2f}",
            f"{case['latency_ms']:.1f}",
            f"{case['latency_p95_ms']:.1f}",
        ]
        for case in cases
    ]
    heads = ["under way", "inputs/s (10th-90th)", "over 1", "limit", "of it", "head ms", "latency ms", "95th"]
    return table_text(title, heads, rows)


if __name__ == "__main__":
    main()
