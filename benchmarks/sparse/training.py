"""Training steps of predefined-sparse layers against dense and masked ones, in torch, on one core.

A step is a forward pass, a backward pass and Adam. The input needs a gradient, as inside a network, so a step
multiplies three times as much as a forward pass. The limit moves weights, gradient and both of Adam's moments
in and out once each (8 times the weights' bytes), and the input three times, the output twice. The masked rival
multiplies its weight by the mask at every pass. Adam is torch's default; dense and block layers are also timed
with `fused=True`, against each other. CSR and BSR are missing: Adam takes no compressed weight.
Times are CPU time, as in `benchmarks.sparse.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from time import process_time
from typing import Any

import torch
from torch import Tensor

from benchmarks.sparse.bars import Bar, missed_text
from benchmarks.sparse.limits import Limits
from benchmarks.sparse.rivals import DENSE, MASKED, Candidate, convolutions, linears
from benchmarks.timing import compare, ms_text, one_core, parser, ratio_text, write_json
from offramp.tables import table_text

__all__ = ["main", "training_step"]

#: How much faster than dense, and than masked, by kind and 1/ρ.
BARS: Mapping[tuple[str, str], Mapping[int, float]] = {
    ("Linear", DENSE): {4: 3.6, 16: 14},
    ("Linear", MASKED): {4: 7, 16: 25},
    ("Conv", DENSE): {4: 2.8, 8: 5},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "sparse-training").parse_args(argv)
    quick: bool = arguments.quick
    core = one_core()
    torch.manual_seed(0)
    limits = Limits(128 if quick else 1536)
    rounds = 3 if quick else 15
    width, channels, side = (64, 32, 7) if quick else (4096, 256, 28)
    cases: list[dict[str, Any]] = []
    candidates = linears(quick)
    cases += _cases(f"Linear {width}", candidates, torch.randn(64, width), limits, rounds)
    del candidates
    candidates = convolutions(quick)
    x = torch.randn(8, channels, side, side)
    cases += _cases(f"Conv 3x3 {channels}, {side}x{side}", candidates, x, limits, rounds)
    bars = [(_bar(case, DENSE, quick), _bar(case, MASKED, quick)) for case in cases]
    held = 16 * width * width
    print(_table(cases, bars, limits.described(held)))
    named = [
        (f"{case['layer']}, {case['candidate']} over {rival}", bar)
        for case, both in zip(cases, bars, strict=True)
        for rival, bar in zip((DENSE, MASKED), both, strict=True)
    ]
    print(missed_text(named))
    figures = {
        "core": core,
        "read_gb_s": limits.bandwidth(held) / 1e9,
        "peak_gmac_s": limits.peak / 1e9,
        "cases": [
            {**case, "bars": [bar and bar.to_dict() for bar in both]}
            for case, both in zip(cases, bars, strict=True)
        ],
    }
    print(f"written: {write_json(arguments, figures)}")


def training_step(layer: torch.nn.Module, x: Tensor, *, fused: bool | None = None) -> Callable[[], object]:
    """One step as a call: forward, backward with the input's gradient, Adam.

    Args:
        layer: Any module.
        x: Its input.
        fused: As `torch.optim.Adam` takes it.
    """
    adam = torch.optim.Adam(layer.parameters(), lr=1e-6, fused=fused)  # small: a thousand steps must stay tame
    x = x.detach().clone().requires_grad_()
    seed = torch.randn_like(layer(x))

    def step() -> None:
        adam.zero_grad()
        x.grad = None
        layer(x).backward(seed)
        adam.step()

    return step


def _cases(
    what: str, candidates: Sequence[Candidate], x: Tensor, limits: Limits, rounds: int
) -> list[dict[str, Any]]:
    cases = []
    trained = [c for c in candidates if c.trains]
    fast = [c for c in trained if c.name in (DENSE, MASKED) or c.ours]
    slow = [c for c in trained if c.slow]
    groups = [("default", [c for c in trained if not c.slow]), ("default", slow), ("fused", fast)]
    for adam, group in groups:
        beside = group if group[0].name == DENSE else [candidates[0], *group]
        calls = {c.name: training_step(c.layer, x, fused=True if adam == "fused" else None) for c in beside}
        timings = compare(calls, rounds=5 if group is slow else rounds, budget_s=15, clock=process_time)
        masked = timings.get(MASKED)
        for candidate in group:
            timing = timings[candidate.name]
            macs = 3 * candidate.weights * x[0, 0].numel() * len(x)
            moved = 4 * (8 * candidate.weights + 5 * x.numel())  # as many outputs as inputs
            limit_ms = limits.limit_ms(moved, macs, held=4 * (4 * candidate.weights + 2 * x.numel()))
            cases.append(
                {
                    "layer": what,
                    "batch": len(x),
                    "adam": adam,
                    "candidate": candidate.name,
                    "density": str(candidate.density),
                    "ours": candidate.ours,
                    "moved_bytes": moved,
                    "macs": macs,
                    "limit_ms": limit_ms,
                    "of_limit": limit_ms / timing.median_ms,
                    "speedup": {
                        DENSE: timing.speedup,
                        MASKED: None if masked is None else timing.over(masked),
                    },
                    **timing.to_dict(),
                }
            )
    return cases


def _bar(case: Mapping[str, Any], rival: str, quick: bool) -> Bar | None:
    """The case's bar over a rival; a quick run's sizes have none, nor has fused Adam."""
    if quick or not case["ours"] or case["adam"] != "default":
        return None
    bounds = BARS.get((case["layer"].split()[0], rival), {})
    bound = bounds.get(Fraction(case["density"]).denominator)
    return None if bound is None else Bar(case["speedup"][rival], bound)


def _table(cases: Sequence[Mapping[str, Any]], bars: Sequence[tuple[Bar | None, Bar | None]], caption: str) -> str:
    rows = [
        [
            case["layer"],
            case["adam"],
            case["candidate"],
            ms_text(case["median_ms"], case["p10_ms"], case["p90_ms"]),
            ratio_text(case["speedup"][DENSE]),
            "-" if over_dense is None else str(over_dense),
            "-" if case["speedup"][MASKED] is None else ratio_text(case["speedup"][MASKED]),
            "-" if over_masked is None else str(over_masked),
            f"{case['limit_ms']:.3g}",
            f"{100 * case['of_limit']:.0f} %",
        ]
        for case, (over_dense, over_masked) in zip(cases, bars, strict=True)
    ]
    heads = ["layer", "Adam", "weights", "ms (10th-90th)", "to dense", "bar", "to masked", "bar"]
    heads += ["limit ms", "of limit"]
    return table_text("Predefined-sparse layers against dense ones, training steps", heads, rows, caption=caption)


if __name__ == "__main__":
    main()
