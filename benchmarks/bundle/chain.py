"""A chain of stages against the whole graph, in ONNX Runtime, one thread, one sample.

The rival is the network that was never cut: its graph up to the last output alone, without exits, so that
ONNX Runtime may fuse across what are cuts here. The whole multi-exit graph stands beside it; asked for its
last output only, it computes the exits nevertheless.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.sessions import session
from benchmarks.timing import compare, ms_text, one_core, parser, write_json
from offramp.bundle.export import export, export_graph
from offramp.bundle.partition import graph_cost, partition
from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit
from offramp.recipes import build
from offramp.runtime.stages import Stages
from offramp.tables import count_text, table_text

PLAIN, WHOLE, CHAIN = "never cut", "whole, exits too", "chain of stages"
#: MobileNetV2 (arXiv 1801.04381, table 2): expansion, channels, repetitions, first stride.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _Residual(nn.Module):
    """An inverted residual block: wide inside, depthwise in the middle."""

    def __init__(self, given: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = given * expansion
        widened = [] if expansion == 1 else [*_normed(nn.Conv2d(given, wide, 1, bias=False)), nn.ReLU6()]
        depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        narrowed = nn.Conv2d(wide, channels, 1, bias=False)
        self.body = nn.Sequential(*widened, *_normed(depthwise), nn.ReLU6(), *_normed(narrowed))
        self.adds = stride == 1 and given == channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, given, H, W) to (N, channels, H/stride, W/stride)."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "bundle-chain").parse_args(argv)
    quick: bool = arguments.quick
    core = one_core()
    digits, side = torch.zeros(1, 1, 28, 28), 32 if quick else 96
    nets = {"digits, sparse": (build("sparse", digits, 10)[0], digits)}
    nets[f"MobileNetV2, {side}x{side}"] = _mobile(side, stages=2 if quick else 6)
    cases = [_case(name, net, x, rounds=5 if quick else 200) for name, (net, x) in nets.items()]
    print(_table(cases))
    print(f"written: {write_json(arguments, {'core': core, 'cases': cases})}")


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
            CHAIN: partial(_chain, stages, last, x),
        }
        difference = float(np.abs(calls[CHAIN]() - calls[PLAIN]()).max())
        timings = compare(calls, rounds=rounds, budget_s=15)
    return {
        "network": name,
        "cuts": last,
        "macs": graph_cost(plain).macs,
        "cut_bytes": [stage.graph.outputs[0].bytes for stage in stages.bundle.manifest.stages[:-1]],
        "max_difference": difference,
        "timings": {what: timing.to_dict() for what, timing in timings.items()},
    }


def _whole(runner: ort.InferenceSession, output: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = runner.run([output], {"input": x})[0]
    return found


def _chain(stages: Stages, last: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
    tensors: list[NDArray[np.generic]] = [x]
    for i in range(last + 1):
        tensors, _ = stages.stage(i, tensors)
    return tensors[0].astype(np.float32, copy=False)


def _mobile(side: int, stages: int) -> tuple[MultiExit, Tensor]:
    """MobileNetV2 with random weights, cut between its groups of blocks."""
    torch.manual_seed(0)
    groups: list[nn.Module] = [nn.Sequential(*_normed(nn.Conv2d(3, 32, 3, 2, 1, bias=False)), nn.ReLU6())]
    given = 32
    for expansion, channels, repetitions, stride in BLOCKS:
        blocks = []
        for i in range(repetitions):
            blocks.append(_Residual(given, channels, expansion, stride if i == 0 else 1))
            given = channels
        groups.append(nn.Sequential(*blocks))
    head = nn.Sequential(*_normed(nn.Conv2d(given, 1280, 1, bias=False)), nn.ReLU6(), nn.AdaptiveAvgPool2d(1))
    groups.append(nn.Sequential(head, nn.Flatten(), nn.Linear(1280, 10)))
    example = torch.zeros(1, 3, side, side)
    cuts = {str(i): PooledHead(10) for i in range(2, stages + 1)}
    return MultiExit(nn.Sequential(*groups), cuts, example_input=example), example


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, nn.Module]:
    return convolution, nn.BatchNorm2d(convolution.out_channels)


def _table(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            case["network"],
            str(case["cuts"]),
            count_text(case["macs"]),
            what,
            ms_text(timing["median_ms"], timing["p10_ms"], timing["p90_ms"]),
            f"{timing['ratio']:.3f} ({timing['ratio_p10']:.3f}-{timing['ratio_p90']:.3f})",
            f"{case['max_difference']:.1g}" if what == CHAIN else "-",
        ]
        for case in cases
        for what, timing in case["timings"].items()
    ]
    heads = ["network", "cuts", "MACs", "how", "ms (10th-90th)", "time / never cut", "largest difference"]
    return table_text("A chain of stages against the whole graph", heads, rows)


if __name__ == "__main__":
    main()
