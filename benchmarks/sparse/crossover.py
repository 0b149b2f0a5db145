"""Where predefined-sparse layers become slower than dense ones, and the rule that says so before anything is run.

Small linear layers and 3x3 convolutions, densities 1/2 to 1/8, with K = 1, with K = 2, and with finer blocks at
1/4; in torch for inference and for a training step (forward, backward, Adam), in ONNX Runtime with one sample.
Linear layers run with 1 and 32 samples in torch, convolutions with 1, and with 8 in training.
Times are CPU time, as in `benchmarks.sparse.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import process_time
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from benchmarks.sessions import layer_model, session
from benchmarks.sparse.rule import Rule, best_rule
from benchmarks.sparse.training import training_step
from benchmarks.timing import compare, one_core, parser, write_json
from offramp.sparse.block import BlockPattern
from offramp.sparse.convolution import SparseConv2d
from offramp.sparse.layers import SparseLinear
from offramp.tables import table_text

WIDTHS = (16, 32, 64, 128, 256, 512, 1024)
CHANNELS = (16, 32, 64, 128, 256)
SIDES = (7, 14, 28)
#: Finer patterns of density 1/4: neurons per block, and the most blocks that are tried.
FINE, MOST_BLOCKS = (4, 16, 64), 64


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "sparse-crossover").parse_args(argv)
    quick: bool = arguments.quick
    core = one_core()
    torch.manual_seed(0)
    rounds, most = (3, 2) if quick else (9, None)  # most patterns of a layer
    linear = [case for n in (WIDTHS[:1] if quick else WIDTHS) for case in _linear_cases(n, rounds, most)]
    sides = SIDES[:1] if quick else SIDES
    conv = [case for n in (CHANNELS[:1] if quick else CHANNELS) for case in _conv_cases(n, sides, rounds, most)]
    print(_table("Linear n→n", linear))
    print(_table("Conv 3x3, n→n", conv))
    rules: dict[str, list[Rule]] = {}
    for name, cases in _groups([*linear, *conv]).items():
        slow = [case["speedup"] < 1 for case in cases]
        figures = {what: [case[what] for case in cases] for what in ("neurons per block", "weights", "macs")}
        rules[name] = [best_rule(figures, slow, terms=terms) for terms in (1, 2)]
        still = {what: figures[what] for what in ("neurons per block", "weights")}
        rules[name].append(best_rule(still, slow, terms=2))
        for rule in rules[name]:
            print(f"{name}: {rule}")
    record = {name: [rule.to_dict() for rule in found] for name, found in rules.items()}
    print(f"written: {write_json(arguments, {'core': core, 'rules': record, 'cases': [*linear, *conv]})}")


def _patterns(n: int) -> Iterator[BlockPattern]:
    taken = set()
    for q in (2, 4, 8):
        yield BlockPattern(n, n, 1, q)
        if q == 4:
            yield BlockPattern(n, n, 1, q, layout="strided")
        yield BlockPattern(n, n, 2, 2 * q)
        taken.add(2 * q)
    for width in FINE:
        blocks = n // width
        if 8 <= blocks <= MOST_BLOCKS and blocks not in taken:
            yield BlockPattern(n, n, blocks // 4, blocks)


def _linear_cases(n: int, rounds: int, most: int | None) -> list[dict[str, Any]]:
    patterns = list(_patterns(n))[:most]
    layers: list[nn.Module] = [nn.Linear(n, n)]
    layers += [SparseLinear(n, n, p.density, pattern=p) for p in patterns]
    cases = []
    models = [session(layer_model(layer, torch.zeros(1, n)).SerializeToString()) for layer in layers]
    for batch in (1, 32):
        x = torch.randn(batch, n)
        for what, calls in _calls(layers, x, x, models).items():
            cases += _timed(patterns, calls, rounds, f"{what} {batch}", n, n * n, batch)
    return cases


def _conv_cases(n: int, sides: Sequence[int], rounds: int, most: int | None) -> list[dict[str, Any]]:
    patterns = list(_patterns(n))[:most]
    layers: list[nn.Module] = [nn.Conv2d(n, n, 3, padding=1)]
    layers += [SparseConv2d(n, n, 3, p.density, padding=1, pattern=p) for p in patterns]
    cases = []
    models = [session(_any_side(layer_model(layer, torch.zeros(1, n, 14, 14)))) for layer in layers]
    for side in sides:
        x, many = torch.randn(1, n, side, side), torch.randn(8, n, side, side)
        for what, calls in _calls(layers, x, many, models).items():
            places = side * side * (len(many) if what == "step" else 1)
            cases += _timed(patterns, calls, rounds, f"{what} {side}²", n, 9 * n * n, places)
    return cases


def _any_side(model: onnx.ModelProto) -> bytes:
    """The model for images of any size: convolutions and gathers do not care, and one export does for all."""
    for value in (*model.graph.input, *model.graph.output):
        for place, name in ((2, "H"), (3, "W")):
            value.type.tensor_type.shape.dim[place].dim_param = name
    del model.graph.value_info[:]
    content: bytes = model.SerializeToString()
    return content


def _calls(
    layers: Sequence[nn.Module], x: Tensor, many: Tensor, models: Sequence[Any]
) -> dict[str, list[Callable[[], object]]]:
    fed = {"x": x.numpy()}
    return {
        "torch": [partial(_infer, layer, x) for layer in layers],
        "step": [training_step(layer, many) for layer in layers],
        "ort": [partial(model.run, None, fed) for model in models],
    }


def _infer(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return layer(x)  # type: ignore[no-any-return]


def _timed(
    patterns: Sequence[BlockPattern],
    calls: Sequence[Callable[[], object]],
    rounds: int,
    what: str,
    n: int,
    weights: int,
    places: int,
) -> list[dict[str, Any]]:
    """The dense layer is the first call, the patterns' the others."""
    timings = compare(
        {str(i): call for i, call in enumerate(calls)}, rounds=rounds, sample_ms=1, budget_s=3, clock=process_time
    )
    return [
        {
            "what": what,
            "n": n,
            "pattern": f"{p.joined}/{p.blocks}{' strided' if p.layout == 'strided' else ''}",
            "density": str(p.density),
            "neurons per block": n // p.blocks,
            "weights": weights,  # the dense layer's
            "macs": weights * places,
            "speedup": timings[str(i)].speedup,
            **timings[str(i)].to_dict(),
        }
        for i, p in enumerate(patterns, start=1)
    ]


def _groups(cases: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """All cases, and those of each way to run."""
    named = {"torch": "torch", "step": "training step", "ort": "onnxruntime"}
    found = {name: [case for case in cases if case["what"].split()[0] == key] for key, name in named.items()}
    return {**found, "all": list(cases)}


def _table(title: str, cases: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(case["what"] for case in cases))
    found = {(case["n"], case["pattern"], case["what"]): case["speedup"] for case in cases}
    rows = [
        [str(n), pattern, str(n // int(pattern.split()[0].split("/")[1]))]
        + [f"{found[n, pattern, what]:.2f}" for what in columns]
        for n, pattern in dict.fromkeys((case["n"], case["pattern"]) for case in cases)
    ]
    return table_text(f"{title}: times faster than dense", ["n", "K/G", "per block", *columns], rows)


if __name__ == "__main__":
    main()
