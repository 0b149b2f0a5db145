"""int8 stages against float ones, and the ways to quantise: final accuracy, bytes, milliseconds.

The demo's network, trained briefly on packaged digits, and CIFAR-10's published ResNet-56 if it is in
$OFFRAMP_DATA/weights. One thread, one sample, medians by turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

import offramp as off
from benchmarks.bundle.networks import RESNET_EXITS
from benchmarks.exits.cached import MEAN, STD
from benchmarks.sessions import session
from benchmarks.timing import compare, ms_text, one_core, parser, write_json
from offramp.bundle.int8 import int8_graph
from offramp.datasets import mnist_subset
from offramp.errors import DatasetError
from offramp.recipes import build
from offramp.reproduce.resnet import resnet56
from offramp.runtime.evaluation import batches
from offramp.runtime.labelled import Labelled, calibration_data
from offramp.tables import bytes_text, table_text

Array = NDArray[Any]

FLOAT = "float"
#: What is changed, by name, of what `offramp quantize` does.
WAYS: dict[str, dict[str, Any]] = {
    "as offramp quantize": {},
    "8-bit weights": {"reduce_range": False},
    "scales per tensor": {"per_channel": False},
    "int8 activations": {"activation_type": QuantType.QInt8},
    "uint8 weights": {"weight_type": QuantType.QUInt8, "reduce_range": False},
    "QOperator": {"quant_format": QuantFormat.QOperator},
    "logits in steps": {"extra_options": {}},
    "only Conv, Gemm, MatMul": {"op_types_to_quantize": ["Conv", "Gemm", "MatMul"]},
    "range: 99.999 %": {
        "calibrate_method": CalibrationMethod.Percentile,
        "extra_options": {"OpTypesToExcludeOutputQuantization": ["Gemm"], "CalibPercentile": 99.999},
    },
    "range: entropy": {"calibrate_method": CalibrationMethod.Entropy},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "bundle-int8")
    made.add_argument("--images", type=int, default=2000, help="test images (default: %(default)s)")
    made.add_argument("--calibration", type=int, default=200, help="held-out images (default: %(default)s)")
    arguments = made.parse_args(argv)
    quick: bool = arguments.quick
    images, count = (100, 20) if quick else (arguments.images, arguments.calibration)
    rounds = 5 if quick else 100
    core = one_core()
    cases = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bundles: dict[str, tuple[off.Bundle, str, tuple[int, ...]]] = {
            "digits": (_digits(folder), "mnist-subset", (0, 1))
        }
        if not quick:
            try:
                bundles["ResNet-56"] = (_resnet(folder), "cifar10", (0, 1, 2))
            except DatasetError as error:
                print(f"left out: {error}")
        for name, (bundle, data, edge) in bundles.items():
            known, test = calibration_data(data, bundle.manifest, count)
            case = _Case(bundle, known, test.first(images), rounds)
            cases.append({"network": name, "data": test.first(images).what, **case.measured(edge)})
            print(_table(cases[-1]))
    print(f"written: {write_json(arguments, {'core': core, 'calibration': count, 'cases': cases})}")


class _Case:
    """One network's stages, with inputs to calibrate on and to measure by."""

    def __init__(self, bundle: off.Bundle, known: Labelled, test: Labelled, rounds: int) -> None:
        stages = bundle.manifest.stages
        self.stages = [_model(bundle.read(stage.graph)) for stage in stages]
        self.calibration = _fed(bundle, known)
        self.inputs = _fed(bundle, test)
        self.labels, self.rounds = test.labels, rounds

    def measured(self, edge: tuple[int, ...]) -> dict[str, Any]:
        """JSON values: every way on all stages, and the usual way on the edge's stages alone."""
        everything = range(len(self.stages))
        chains = {FLOAT: [m.SerializeToString() for m in self.stages]}
        chains[f"stages 0..{edge[-1]} only"] = self._quantised(edge, {})
        chains.update((name, self._quantised(everything, how)) for name, how in WAYS.items())
        logits = {name: _run_all(chain, self.inputs) for name, chain in chains.items()}
        one = self.inputs[:1]
        calls: dict[str, Callable[[], object]] = {
            name: partial(_run, [session(content) for content in chain], one) for name, chain in chains.items()
        }
        timings = compare(calls, rounds=self.rounds, budget_s=30)
        plain = logits[FLOAT]
        return {
            "samples": len(self.labels),
            "ways": {
                name: {
                    "accuracy": float((logits[name].argmax(axis=1) == self.labels).mean()),
                    "changed": int((logits[name].argmax(axis=1) != plain.argmax(axis=1)).sum()),
                    "logit_difference": float(np.abs(logits[name] - plain).mean()),
                    "bytes": sum(map(len, chain)),
                    "timing": timings[name].to_dict(),
                    "speedup": timings[name].over(timings[FLOAT]),
                }
                for name, chain in chains.items()
            },
        }

    def _quantised(self, chosen: Sequence[int], how: Mapping[str, Any]) -> list[bytes]:
        x, chain = self.calibration, []
        for i, stage in enumerate(self.stages):
            feeds = [{stage.graph.input[0].name: x[start : start + 50]} for start in range(0, len(x), 50)]
            found = int8_graph(stage, feeds, **how) if i in chosen else None
            chain.append((found or stage).SerializeToString())
            x = _run_all(chain[-1:], x)
        return chain


def _fed(bundle: off.Bundle, data: Labelled) -> Array:
    """What the first stage takes, in one batch."""
    ((x,),) = batches(bundle.manifest, data.inputs, len(data.labels))
    return x


def _run_all(chain: Sequence[bytes], x: Array) -> Array:
    runners = [session(content) for content in chain]
    return np.concatenate([_run(runners, x[start : start + 50]) for start in range(0, len(x), 50)])


def _run(runners: Sequence[Any], x: Array) -> Array:
    for runner in runners:
        x = runner.run(None, {runner.get_inputs()[0].name: x})[0]
    return x


def _digits(folder: Path) -> off.Bundle:
    train = mnist_subset()[0]
    x = torch.from_numpy(train.images).float().div(255).unsqueeze(1)
    net = build("sparse", x[:1], 10)[0]
    data = torch.utils.data.TensorDataset(x[:8000], torch.from_numpy(train.labels[:8000]))
    loader = torch.utils.data.DataLoader(data, 64)
    off.fit(net, loader, epochs=1, progress=False, accelerator="cpu")
    pixels = off.Preprocessing(color="grey", height=28, width=28)
    return off.export(net, x[:1], folder / "digits.bundle", classes=train.classes, preprocessing=pixels)


def _resnet(folder: Path) -> off.Bundle:
    example = torch.zeros(1, 3, 32, 32)
    net = off.MultiExit(resnet56(), RESNET_EXITS, example_input=example)  # heads stay untrained; none is asked
    pixels = off.Preprocessing(color="rgb", height=32, width=32, mean=MEAN, std=STD)
    return off.export(net, example, folder / "resnet56.bundle", preprocessing=pixels)


def _model(content: bytes) -> ModelProto:
    model = ModelProto()
    model.ParseFromString(content)
    return model


def _table(case: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{way['accuracy']:.2%}",
            str(way["changed"]),
            f"{way['logit_difference']:.3f}",
            bytes_text(way["bytes"]),
            ms_text(way["timing"]["median_ms"], way["timing"]["p10_ms"], way["timing"]["p90_ms"]),
            f"{way['speedup']:.2f}x",
        ]
        for name, way in case["ways"].items()
    ]
    heads = ["how", "accuracy", "answers changed", "mean logit difference", "bytes", "ms (10th-90th)", "to float"]
    return table_text(f"{case['network']}, {case['data']}", heads, rows)


if __name__ == "__main__":
    main()
