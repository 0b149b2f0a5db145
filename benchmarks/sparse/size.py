"""Bytes of predefined-sparse layers against dense ones: in training, in an ONNX file, and while they run.

Resident is what training keeps: parameters, buffers, gradients and Adam's state. The passes' bytes are the peak
of everything else (`benchmarks.sparse.activations`): outputs, gathered copies, a weight that is put together.
Nothing here is timed; the figures are the same at every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sessions import layer_model
from benchmarks.sparse.activations import inference_bytes, training_bytes
from benchmarks.sparse.bars import Bar, missed_text
from benchmarks.sparse.rivals import Candidate, convolutions, linears, multiplied_in
from benchmarks.timing import parser, write_json
from offramp.tables import bytes_text, table_text

#: The most that bytes may be, as a multiple of ρ; for files above `LARGE` only.
MOST = 1.05
LARGE = 1e6


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "sparse-size").parse_args(argv)
    quick: bool = arguments.quick
    torch.manual_seed(0)
    width, channels, side = (64, 32, 7) if quick else (4096, 256, 28)
    candidates = linears(quick)
    cases = _cases(f"Linear {width}", candidates, torch.randn(64, width))
    del candidates
    candidates = convolutions(quick)
    x = torch.randn(8, channels, side, side)
    cases += _cases(f"Conv 3x3 {channels}, {side}x{side}", candidates, x)
    bars = [{what: _bar(case, what, quick) for what in ("resident", "file")} for case in cases]
    print(_table(cases, bars))
    named = [
        (f"{case['layer']}, {case['candidate']}, {what}", bar)
        for case, both in zip(cases, bars, strict=True)
        for what, bar in both.items()
    ]
    print(missed_text(named))
    judged = [
        {**case, "bars": {what: bar and bar.to_dict() for what, bar in both.items()}}
        for case, both in zip(cases, bars, strict=True)
    ]
    print(f"written: {write_json(arguments, {'cases': judged})}")


def _cases(what: str, candidates: Sequence[Candidate], x: Tensor) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = []
    dense: dict[str, int] = {}
    for candidate in candidates:
        if not candidate.trains:
            continue
        layer = candidate.layer
        found = {
            "file": layer_model(multiplied_in(candidate).layer, x[:1]).ByteSize(),
            "inference": inference_bytes(layer, x),
            "training": training_bytes(layer, x),
            "resident": _resident(layer, x),
        }
        dense = dense or found
        cases.append(
            {
                "layer": what,
                "batch": len(x),
                "candidate": candidate.name,
                "density": str(candidate.density),
                "ours": candidate.ours,
                "bytes": found,
                "to_dense": {name: size / dense[name] for name, size in found.items()},
            }
        )
    return cases


def _resident(layer: nn.Module, x: Tensor) -> int:
    """Parameters, buffers, gradients and Adam's state after a step."""
    adam = torch.optim.Adam(layer.parameters())
    layer.zero_grad()
    layer(x).sum().backward()
    adam.step()
    state = [value for entry in adam.state.values() for value in entry.values() if isinstance(value, Tensor)]
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    tensors = [*layer.parameters(), *layer.buffers(), *gradients, *state]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def _bar(case: Mapping[str, Any], what: str, quick: bool) -> Bar | None:
    """The bar of all block patterns with K = 1; a quick run's sizes have none."""
    if quick or not case["ours"] or (what == "file" and case["bytes"]["file"] <= LARGE):
        return None
    return Bar(case["to_dense"][what], MOST * float(Fraction(case["density"])), most=True)


def _table(cases: Sequence[Mapping[str, Any]], bars: Sequence[Mapping[str, Bar | None]]) -> str:
    rows = []
    for case, both in zip(cases, bars, strict=True):
        row = [case["layer"], case["candidate"]]
        for what in ("resident", "file"):
            row += [bytes_text(case["bytes"][what]), f"{case['to_dense'][what]:.4f}", str(both[what] or "-")]
        rows.append([*row, bytes_text(case["bytes"]["inference"]), bytes_text(case["bytes"]["training"])])
    heads = ["layer", "weights", "resident", "to dense", "bar", "ONNX file", "to dense", "bar", "forward peak"]
    heads += ["step peak"]
    caption = f"resident: parameters, buffers, gradients, Adam; batch {', '.join(_batches(cases))} for the peaks"
    return table_text("Bytes of predefined-sparse layers against dense ones", heads, rows, caption=caption)


def _batches(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(f"{case['batch']} ({case['layer'].split()[0]})" for case in cases))


if __name__ == "__main__":
    main()
