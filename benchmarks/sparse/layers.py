"""Predefined-sparse layers against dense ones, in torch and in ONNX Runtime, on one core.

The masked rival is a dense layer that holds the same weights, zeros included: a mask that was multiplied in
once. The limit is the longer of two times: reading the weights at the speed at which this core reads an array
of that size, and the multiply-accumulates at the speed of a large matrix product.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.sessions import layer_session
from benchmarks.timing import compare, ms_text, one_core, parser, ratio_text, write_json
from offramp.sparse.block import Layout
from offramp.sparse.convolution import SparseConv2d
from offramp.sparse.layers import SparseLinear
from offramp.tables import table_text

LAYOUTS: tuple[Layout, ...] = ("contiguous", "strided")
DENSE, MASKED = "dense", "dense, masked"


class Limits:
    """What this core can do at most.

    Args:
        side: Rows and columns of the matrix product that gives the peak.
    """

    def __init__(self, side: int) -> None:
        a, b = torch.randn(side, side), torch.randn(side, side)
        #: Multiply-accumulates per second.
        self.peak = side**3 / _fastest_s(lambda: a @ b)
        self._read_s: dict[int, float] = {}

    def read_s(self, size: int) -> float:
        """Seconds to read `size` bytes, over and over, from wherever an array of that size then lies."""
        if size not in self._read_s:
            x = np.ones(size // 4, np.float32)
            self._read_s[size] = min(_fastest_s(lambda: np.dot(x, x)), _fastest_s(x.sum))
        return self._read_s[size]

    def limit_ms(self, weight_bytes: int, macs: int) -> float:
        """The least milliseconds of a layer."""
        return 1e3 * max(self.read_s(weight_bytes), macs / self.peak)


@dataclass(frozen=True)
class Candidate:
    """One layer: how it is called, the size of its weights, its multiply-accumulates per sample."""

    layer: nn.Module
    density: str
    layout: str
    weights: int
    macs: int


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "sparse-layers").parse_args(argv)
    quick: bool = arguments.quick
    core = one_core()
    torch.manual_seed(0)
    limits = Limits(128 if quick else 1536)
    rounds = 3 if quick else 25
    cases: list[dict[str, Any]] = []
    with torch.inference_mode():
        width = 64 if quick else 4096
        layouts = LAYOUTS[:1] if quick else LAYOUTS  # exporting is what takes the time
        linear = _linear(width, layouts)
        for runtime in ("torch", "onnxruntime"):
            batches = (1, 16) if quick else (1, 16, 256)
            cases += _cases(f"Linear {width}x{width}", linear, (width,), runtime, batches, limits, rounds)
        del linear
        channels, side = (32, 7) if quick else (256, 28)
        name, shape = f"Conv2d 3x3 {channels}, {side}x{side}", (channels, side, side)
        conv = _conv(channels, side, layouts)
        cases += _cases(name, conv, shape, "onnxruntime", (1,), limits, rounds)
        cases += _cases(name, conv, shape, "torch", (2 if quick else 8,), limits, rounds)
    print(_table(cases, limits))
    largest = max(case["weight_bytes"] for case in cases)
    figures = {
        "core": core,
        "read_gb_s": largest / limits.read_s(largest) / 1e9,
        "peak_gmac_s": limits.peak / 1e9,
        "cases": cases,
    }
    print(f"written: {write_json(arguments, figures)}")


def _linear(width: int, layouts: Sequence[Layout]) -> dict[str, Candidate]:
    def candidate(layer: nn.Module, density: str, layout: str, weights: int) -> Candidate:
        return Candidate(layer, density, layout, weights, weights)

    found = {DENSE: candidate(nn.Linear(width, width), "1", "-", width * width)}
    for density in (4, 16):
        for layout in layouts:
            layer = SparseLinear(width, width, 1 / density, layout=layout)
            found[f"sparse 1/{density} {layout}"] = candidate(layer, f"1/{density}", layout, layer.weight.numel())
    masked = nn.Linear(width, width)
    masked.weight.copy_(layer.dense_weight())
    assert layer.bias is not None
    masked.bias.copy_(layer.bias)
    x = torch.randn(2, width)
    torch.testing.assert_close(masked(x), layer(x), rtol=1e-4, atol=1e-4)
    found[MASKED] = candidate(masked, "1/16", "-", width * width)
    return found


def _conv(channels: int, side: int, layouts: Sequence[Layout]) -> dict[str, Candidate]:
    def candidate(layer: nn.Conv2d | SparseConv2d, density: str, layout: str) -> Candidate:
        weights = layer.weight.numel()
        return Candidate(layer, density, layout, weights, weights * side * side)

    found = {DENSE: candidate(nn.Conv2d(channels, channels, 3, padding=1), "1", "-")}
    for density in (4, 8):
        for layout in layouts:
            layer = SparseConv2d(channels, channels, 3, 1 / density, padding=1, layout=layout)
            found[f"sparse 1/{density} {layout}"] = candidate(layer, f"1/{density}", layout)
    return found


def _cases(
    what: str,
    candidates: dict[str, Candidate],
    shape: tuple[int, ...],
    runtime: str,
    batches: Iterable[int],
    limits: Limits,
    rounds: int,
) -> list[dict[str, Any]]:
    """Times all candidates against each other, once per batch size."""
    runners: dict[str, Callable[[Tensor], object]] = {}
    for name, candidate in candidates.items():
        if runtime == "torch":
            runners[name] = candidate.layer.eval()
        else:
            run = layer_session(candidate.layer, torch.zeros(1, *shape)).run
            runners[name] = partial(_run_onnx, run)
    cases = []
    for batch in batches:
        x = torch.randn(batch, *shape)
        timings = compare({name: partial(run, x) for name, run in runners.items()}, rounds=rounds, budget_s=6)
        for name, timing in timings.items():
            candidate = candidates[name]
            weight_bytes = candidate.weights * 4
            limit_ms = limits.limit_ms(weight_bytes, candidate.macs * batch)
            cases.append(
                {
                    "layer": what,
                    "runtime": runtime,
                    "batch": batch,
                    "candidate": name,
                    "density": candidate.density,
                    "layout": candidate.layout,
                    "weight_bytes": weight_bytes,
                    "macs": candidate.macs * batch,
                    "limit_ms": limit_ms,
                    "of_limit": limit_ms / timing.median_ms,
                    "speedup": timing.speedup,
                    **timing.to_dict(),
                }
            )
    return cases


def _run_onnx(run: Callable[..., object], x: Tensor) -> object:
    return run(None, {"x": x.numpy()})


def _table(cases: Sequence[dict[str, Any]], limits: Limits) -> str:
    rows = [
        [
            case["layer"],
            case["runtime"],
            str(case["batch"]),
            case["candidate"],
            ms_text(case["median_ms"], case["p10_ms"], case["p90_ms"]),
            ratio_text(case["speedup"]),
            f"{case['limit_ms']:.3g}",
            f"{100 * case['of_limit']:.0f} %",
        ]
        for case in cases
    ]
    heads = ["layer", "runtime", "batch", "weights", "ms (10th-90th)", "faster than dense", "limit ms", "of limit"]
    largest = max(case["weight_bytes"] for case in cases)
    caption = (
        f"one core; peak {limits.peak / 1e9:.1f} GMAC/s, reading {largest / 1e6:.0f} MB at "
        f"{largest / limits.read_s(largest) / 1e9:.1f} GB/s; smaller arrays from the caches, each at its own speed"
    )
    return table_text("Predefined-sparse layers against dense ones", heads, rows, caption=caption)


def _fastest_s(call: Callable[[], object], *, tries: int = 7, least_s: float = 0.005) -> float:
    """The fastest of some samples, in seconds per call: what the core can do when nothing disturbs it."""
    call()
    start = time.perf_counter()
    call()
    repetitions = max(1, math.ceil(least_s / max(time.perf_counter() - start, 1e-9)))
    found = math.inf
    for _ in range(tries):
        start = time.perf_counter()
        for _ in range(repetitions):
            call()
        found = min(found, (time.perf_counter() - start) / repetitions)
    return found


if __name__ == "__main__":
    main()
