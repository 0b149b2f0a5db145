"""Encoding and decoding a cut in every mode, one thread, one sample.

Beside each session stands the same arithmetic in NumPy, and a plain copy of the floats, which is what reading and
writing them once costs: no codec can be much faster than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.sessions import session
from benchmarks.timing import compare, ms_text, one_core, parser, ratio_text, write_json
from offramp.bundle.codec import make_codec
from offramp.bundle.manifest import TensorSpec
from offramp.bundle.quantiser import MODES, Quantiser, fit_quantiser
from offramp.tables import bytes_text, table_text

#: Cuts of ResNet-56 on 32×32 and of MobileNetV2 on 224×224 images.
SHAPES = ((64, 8, 8), (32, 16, 16), (24, 56, 56))

Array = NDArray[np.generic]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "bundle-codecs").parse_args(argv)
    core = one_core(torch_too=False)
    rounds = 5 if arguments.quick else 100
    cases = [_case(shape, mode, rounds) for shape in SHAPES[: 1 if arguments.quick else None] for mode in MODES]
    print(_table(cases))
    print(f"written: {write_json(arguments, {'core': core, 'cases': cases})}")


def _case(shape: tuple[int, ...], mode: str, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    seen = np.maximum(rng.standard_normal((32, *shape)), 0).astype(np.float32)
    how = fit_quantiser(seen, MODES[mode])
    tensor = TensorSpec(name="cut_0", dtype="float32", shape=shape)
    encoder, decoder = (session(m.SerializeToString()) for m in make_codec([tensor], [how], mode))
    x, name = seen[:1], f"cut_0_{mode}"
    (packed,) = encoder.run(None, {"cut_0": x})
    (back,) = decoder.run(None, {name: packed})
    assert (packed.reshape(1, -1) == _encode(how, x)).all()
    np.testing.assert_allclose(_decode(how, packed, shape), back, rtol=0, atol=1e-6)
    calls: dict[str, Callable[[], object]] = {
        "copy": x.copy,
        "encode": partial(encoder.run, None, {"cut_0": x}),
        "encode, numpy": partial(_encode, how, x),
        "decode": partial(decoder.run, None, {name: packed}),
        "decode, numpy": partial(_decode, how, packed, shape),
    }
    timings = compare(calls, rounds=rounds, budget_s=5, sample_ms=0.5)
    return {
        "shape": shape,
        "mode": mode,
        "float_bytes": tensor.bytes,
        "packed_bytes": packed.nbytes,
        "timings": {what: timing.to_dict() for what, timing in timings.items()},
    }


def _along(how: Quantiser, values: NDArray[Any]) -> NDArray[Any]:
    return values if how.axis is None else values.reshape(1, -1, 1, 1)


def _encode(how: Quantiser, x: NDArray[np.float32]) -> NDArray[np.uint8]:
    levels = np.rint(x / _along(how, how.scale)) + _along(how, how.zero)
    rows = np.clip(levels, 0, 2**how.bits - 1).astype(np.uint8).reshape(8 // how.bits, -1)
    shifts = np.arange(0, 8, how.bits, dtype=np.uint8)[:, None]
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(rows << shifts, axis=0)[None]
    return packed


def _decode(how: Quantiser, packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    shifts = np.arange(0, 8, how.bits, dtype=np.uint8)[:, None]
    levels = ((packed.reshape(1, -1) >> shifts) & (2**how.bits - 1)).reshape(1, *shape)
    middle = _along(how, how.zero).astype(np.float32)
    back: NDArray[np.float32] = (levels.astype(np.float32) - middle) * _along(how, how.scale)
    return back


def _table(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in cases:
        timings = case["timings"]
        copied = timings["copy"]["median_ms"]
        row = ["×".join(map(str, case["shape"])), case["mode"], bytes_text(case["packed_bytes"])]
        for what in ("encode", "decode"):
            ours, theirs = timings[what], timings[f"{what}, numpy"]
            row += [
                ms_text(*(1e3 * ours[key] for key in ("median_ms", "p10_ms", "p90_ms"))),
                ratio_text(theirs["median_ms"] / ours["median_ms"]),
                ratio_text(ours["median_ms"] / copied),
                f"{case['float_bytes'] / ours['median_ms'] / 1e6:.2f}",
            ]
        rows.append(row)
    heads = ["cut", "mode", "sent"]
    heads += [f"{what} {figure}" for what in ("enc", "dec") for figure in ("µs", "vs numpy", "of a copy", "GB/s")]
    caption = "vs numpy: NumPy's time over ours; of a copy: ours over that of copying the floats; GB/s of floats"
    return table_text("Codecs of a cut, one sample, one thread", heads, rows, caption=caption)


if __name__ == "__main__":
    main()
