"""What a cut tells of its input: the share of the pixels' variance that whoever reads the wire can draw from it.

The reader here is weak: a ridge regression from the tensor to the pixels, learnt from images of the same kind, as
anybody who holds the bundle's first stages can make. Networks trained to invert see more (He et al., Model
Inversion Attacks against Collaborative Inference, ACSAC 2019), so the figure is a lower bound of what is revealed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import parser, write_json
from offramp.bundle.bundle import Bundle
from offramp.bundle.preprocessing import preprocess
from offramp.recipes import EPOCHS, load_splits, train
from offramp.runtime.stages import Stages
from offramp.tables import bytes_text, table_text

Array = NDArray[np.float64]
#: Penalties that are tried; the one that reads the held-out images best is kept.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "serving-reveal")
    made.add_argument("--bundle", type=Path, help="of 28×28 digits; the demo's network, trained here, if left out")
    arguments = made.parse_args(argv)
    images, epochs = (300, 1) if arguments.quick else (2000, EPOCHS)
    splits = load_splits("mnist-subset")
    with tempfile.TemporaryDirectory() as folder:
        bundle = (
            Bundle.load(arguments.bundle)
            if arguments.bundle is not None
            else train("sparse", splits, Path(folder) / "digits.bundle", epochs=epochs, progress=False).bundle
        )
        learnt, held_out, test = (
            part.images[:count]
            for part, count in ((splits.train, images), (splits.held_out, images // 5), (splits.test, images // 5))
        )
        rows = _rows(Stages(bundle), [learnt, held_out, test])
    text = [[row["sent"], bytes_text(row["bytes"]), f"{row['share']:.0%}"] for row in rows]
    print(
        table_text("What a linear reader draws from the wire", ["sent", "bytes", "of the pixels' variance"], text)
    )
    print(f"learnt from {len(learnt):,} images, read from {len(test):,} others")
    print(f"written: {write_json(arguments, {'rows': rows})}")


def _rows(stages: Stages, parts: list[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    manifest = stages.bundle.manifest
    pixels = [part.reshape(len(part), -1) / 255.0 for part in parts]
    assert manifest.preprocessing is not None
    tensors: list[list[NDArray[Any]]] = [[preprocess(part, manifest.preprocessing)] for part in parts]
    rows: list[dict[str, Any]] = []
    for k in range(manifest.last):
        tensors = [list(stages.stage(k, part)[0]) for part in tensors]
        for mode in manifest.modes(k):
            packed = [stages.encode(k, mode, part)[0] for part in tensors]
            read = [stages.decode(k, mode, part)[0] for part in packed]
            size = sum(tensor[:1].nbytes for tensor in packed[0])
            rows.append({"sent": f"cut {k}, {mode}", "bytes": size, "share": _share(read, pixels)})
    return rows


def _share(read: list[list[NDArray[Any]]], pixels: list[Array]) -> float:
    """R² over all pixels of the last part, of a ridge regression learnt on the first, chosen on the second."""
    flat = [np.concatenate([t.reshape(len(t), -1) for t in part], axis=1).astype(np.float64) for part in read]
    mean, spread = flat[0].mean(0), flat[0].std() + 1e-12
    learnt, held_out, test = ((part - mean) / spread for part in flat)
    level = pixels[0].mean(0)
    values, vectors = np.linalg.eigh(learnt @ learnt.T / learnt.shape[1])
    target = vectors.T @ (pixels[0] - level)

    def error(part: Array, wanted: Array, penalty: float) -> float:
        weights = vectors @ (target / (values + penalty * len(values) / 1e3)[:, None])
        return float(np.square(part @ (learnt.T @ weights) / learnt.shape[1] + level - wanted).sum())

    best = min(PENALTIES, key=lambda penalty: error(held_out, pixels[1], penalty))
    return 1 - error(test, pixels[2], best) / float(np.square(pixels[2] - level).sum())


if __name__ == "__main__":
    main()
