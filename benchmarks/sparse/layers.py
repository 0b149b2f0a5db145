"""Predefined-sparse layers against dense ones and every alternative, in torch and in ONNX Runtime, on one core.

The masked rival holds its zeros in the weight, as a mask that was multiplied in once. The limit is the longer of
two times: moving weights, input and output at the speed at which this core reads an array of that size, and the
multiply-accumulates at the speed of a large matrix product or convolution. Rivals that are far slower than dense
get a few rounds of their own beside it. The truly finest pattern, one neuron per block, stops at batch 16: its
gathered input would take 4.3 GB at 256. Times are the process's CPU time: everything runs in one thread, and
what other processes take of the core is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from time import process_time
from typing import Any

import torch
from torch import Tensor

from benchmarks.sessions import layer_model, session
from benchmarks.sparse.bars import Bar, missed_text
from benchmarks.sparse.limits import Limits
from benchmarks.sparse.rivals import DENSE, Candidate, convolutions, linears, multiplied_in
from benchmarks.timing import compare, ms_text, one_core, parser, ratio_text, write_json
from offramp.tables import table_text

#: How much faster than dense, by kind, runtime, batch and 1/ρ.
BARS: Mapping[tuple[str, str, int], Mapping[int, float]] = {
    ("Linear", "onnxruntime", 1): {4: 3.6, 16: 13},
    ("Linear", "torch", 16): {4: 3.3, 16: 11},
    ("Linear", "torch", 256): {4: 3.3, 16: 11},
    ("Conv", "onnxruntime", 1): {4: 3.4, 8: 6},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "sparse-layers").parse_args(argv)
    quick: bool = arguments.quick
    core = one_core()
    torch.manual_seed(0)
    limits = Limits(128 if quick else 1536)
    rounds = 3 if quick else 21
    width, channels, side = (64, 32, 7) if quick else (4096, 256, 28)
    cases: list[dict[str, Any]] = []
    name, shape = f"Linear {width}", [width]
    candidates = [multiplied_in(c) for c in linears(quick)]
    cases += _cases(name, candidates, shape, "torch", (1, 16) if quick else (1, 16, 64, 256), limits, rounds)
    cases += _cases(name, candidates, shape, "onnxruntime", (1, 16) if quick else (1, 16, 256), limits, rounds)
    name, shape = f"Conv 3x3 {channels}, {side}x{side}", [channels, side, side]
    candidates = [multiplied_in(c) for c in convolutions(quick)]
    cases += _cases(name, candidates, shape, "onnxruntime", (1,), limits, rounds)
    cases += _cases(name, candidates, shape, "torch", (8,), limits, rounds)
    bars = [_bar(case, quick) for case in cases]
    largest = width * width * 4
    print(_table(cases, bars, limits.described(largest)))
    named = [f"{c['layer']}, {c['runtime']}, batch {c['batch']}, {c['candidate']}" for c in cases]
    print(missed_text(list(zip(named, bars, strict=True))))
    figures = {
        "core": core,
        "read_gb_s": limits.bandwidth(largest) / 1e9,
        "peak_gmac_s": limits.peak / 1e9,
        "cases": [{**case, "bar": bar and bar.to_dict()} for case, bar in zip(cases, bars, strict=True)],
    }
    print(f"written: {write_json(arguments, figures)}")


def _cases(
    what: str,
    candidates: Sequence[Candidate],
    shape: Sequence[int],
    runtime: str,
    batches: Sequence[int],
    limits: Limits,
    rounds: int,
) -> list[dict[str, Any]]:
    """Times all candidates against each other, once per batch size."""
    runners: dict[str, Callable[[Tensor], object]] = {}
    for candidate in candidates:
        if runtime == "torch":
            runners[candidate.name] = candidate.layer.eval()
        elif not candidate.torch_only:
            model = layer_model(candidate.layer, torch.zeros(1, *shape))
            runners[candidate.name] = partial(_run_onnx, session(model.SerializeToString()).run)
    cases = []
    for batch in batches:
        x = torch.randn(batch, *shape)
        for slow in (False, True):
            group = [c for c in candidates if c.name in runners and batch <= c.most_batch and c.slow is slow]
            if not group:
                continue
            beside = group if group[0].name == DENSE else [candidates[0], *group]
            calls = {c.name: partial(runners[c.name], x) for c in beside}
            with torch.inference_mode():
                timings = compare(calls, rounds=min(rounds, 5) if slow else rounds, budget_s=5, clock=process_time)
            for candidate in group:
                timing = timings[candidate.name]
                macs = candidate.weights * x[0, 0].numel() * batch
                moved = 4 * (candidate.weights + 2 * x.numel())  # as many outputs as inputs
                limit_ms = limits.limit_ms(moved, macs)
                cases.append(
                    {
                        "layer": what,
                        "runtime": runtime,
                        "batch": batch,
                        "candidate": candidate.name,
                        "density": str(candidate.density),
                        "ours": candidate.ours,
                        "moved_bytes": moved,
                        "macs": macs,
                        "limit_ms": limit_ms,
                        "of_limit": limit_ms / timing.median_ms,
                        "speedup": timing.speedup,
                        **timing.to_dict(),
                    }
                )
    return cases


def _run_onnx(run: Callable[..., object], x: Tensor) -> object:
    return run(None, {"x": x.numpy()})


def _bar(case: Mapping[str, Any], quick: bool) -> Bar | None:
    """The case's bar; a quick run's sizes have none."""
    if quick or not case["ours"]:
        return None
    bounds = BARS.get((case["layer"].split()[0], case["runtime"], case["batch"]), {})
    bound = bounds.get(Fraction(case["density"]).denominator)
    return None if bound is None else Bar(case["speedup"], bound)


def _table(cases: Sequence[Mapping[str, Any]], bars: Sequence[Bar | None], caption: str) -> str:
    rows = [
        [
            case["layer"],
            case["runtime"],
            str(case["batch"]),
            case["candidate"],
            ms_text(case["median_ms"], case["p10_ms"], case["p90_ms"]),
            ratio_text(case["speedup"]),
            "-" if bar is None else str(bar),
            f"{case['limit_ms']:.3g}",
            f"{100 * case['of_limit']:.0f} %",
        ]
        for case, bar in zip(cases, bars, strict=True)
    ]
    heads = ["layer", "runtime", "batch", "weights", "ms (10th-90th)", "to dense", "bar", "limit ms", "of limit"]
    return table_text("Predefined-sparse layers against dense ones, inference", heads, rows, caption=caption)


if __name__ == "__main__":
    main()
