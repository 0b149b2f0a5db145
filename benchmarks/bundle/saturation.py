"""Do int8 stages answer on this processor what they should? With weights of 7 bits, as bundles have, and of 8.

x86 processors without VNNI add two products of uint8 and int8 in 16 bits, and saturate. The reference is the
same graph computed as it is written, in float. Run it on such a processor, or on an emulated one:

    qemu-x86_64-static -cpu Haswell $(which python) -m benchmarks.bundle.saturation BUNDLE --dataset NAME
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from offramp.bundle.bundle import Bundle
from offramp.bundle.int8 import int8_graph
from offramp.bundle.shapes import session
from offramp.runtime.evaluation import batches
from offramp.runtime.labelled import calibration_data
from offramp.tables import table_text

Array = NDArray[Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", help="a bundle of float stages")
    parser.add_argument("--dataset", required=True, help="as `offramp quantize` takes it")
    parser.add_argument("--limit", type=int, default=100, help="test images (default: %(default)s)")
    arguments = parser.parse_args(argv)
    bundle = Bundle.load(arguments.bundle)
    known, test = calibration_data(arguments.dataset, bundle.manifest, 50)
    test = test.first(arguments.limit)
    (x,), (samples,) = (next(batches(bundle.manifest, part.inputs, len(part.labels))) for part in (test, known))
    rows = []
    for bits in (7, 8):
        chain, seen = [], samples
        for stage in bundle.manifest.stages:
            model = ModelProto.FromString(bundle.read(stage.graph))
            chain.append(int8_graph(model, [{model.graph.input[0].name: seen}], reduce_range=bits == 7) or model)
            seen = _run(chain[-1:], seen, fused=False)
        should, does = (_run(chain, x, fused=fused) for fused in (False, True))
        rows.append(
            [
                f"{bits} bits",
                f"{np.abs(should - does).mean():.4f}",
                str(int((should.argmax(axis=1) != does.argmax(axis=1)).sum())),
                *(f"{(logits.argmax(axis=1) == test.labels).mean():.1%}" for logits in (should, does)),
            ]
        )
    heads = ["weights", "mean logit difference", "answers changed", "accuracy as written", "as computed here"]
    print(table_text(f"{bundle.manifest.name}, {test.what}", heads, rows))


def _run(chain: Sequence[ModelProto], x: Array, *, fused: bool) -> Array:
    for model in chain:
        runner = session(model, optimise=fused)
        x = runner.run(None, {runner.get_inputs()[0].name: x})[0]
    return x


if __name__ == "__main__":
    main()
