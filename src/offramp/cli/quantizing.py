"""`offramp quantize`: chosen stages of a bundle as int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from offramp.cli.extras import needs_extra
from offramp.cli.options import BundleArgument, JsonOption
from offramp.errors import ConfigError

__all__ = ["quantize"]


def quantize(
    bundle: BundleArgument,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME|FOLDER|FILE.npz",
            help="`mnist-subset`, `mnist`, `fashion-mnist`, `kmnist`, `cifar10`: training images that were held "
            "out calibrate, test images measure. A folder with one folder of images per class, or an .npz file "
            "with `x` and `y`: some calibrate, the others measure.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="NEW.bundle", help="Where the int8 bundle goes; an older bundle there is replaced."),
    ],
    stages: Annotated[str | None, typer.Option(metavar="0..2|0,2", help="Which stages; all if left out.")] = None,
    calibration: Annotated[
        int,
        typer.Option(min=1, help="Samples to calibrate on, drawn at random; at most half where they measure too."),
    ] = 200,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure on at most this many samples, the first ones.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Makes stages of a bundle int8: smaller, and faster where the processor has instructions for it.

    Stages still take and give float, so cuts, codecs and exits stay as they are. The digest is another one: edge
    and server both need the new bundle. What is lost in accuracy is measured and shown. Needs no torch.
    """
    with needs_extra("quantize", "onnx"):
        from offramp.runtime.quantization import quantize_stages
    from offramp.bundle.bundle import Bundle, check_place
    from offramp.report.live import stage_progress
    from offramp.report.quantization import quantization_facts, quantization_notes, quantization_text
    from offramp.runtime.labelled import calibration_data

    chosen = None if stages is None else _numbers(stages)
    loaded = Bundle.load(bundle)
    check_place(out)  # before data are read, which may take long
    console = Console(stderr=True)
    known, test = calibration_data(dataset, loaded.manifest, calibration)
    test = test.first(limit)
    words = f"calibrated on {known.what}; measured on {test.what}"
    if test.doubt:
        note = f"note: {test.doubt}; if it has learnt from them, accuracies are too high"
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    steps = len(known.labels) * (len(loaded.manifest.stages) if chosen is None else len(chosen))
    with stage_progress(console, "quantising and measuring", steps + 2 * len(test.labels)) as advance:
        found = quantize_stages(
            loaded,
            out,
            calibration=known.inputs,
            inputs=test.inputs,
            labels=test.labels,
            stages=chosen,
            data=words,
            on_batch=advance,
        )
    parts = found.comparison, found.stages, found.kept
    if as_json:
        facts = {"bundle": str(out), "digest": found.bundle.digest, "data": words, **quantization_facts(*parts)}
        typer.echo(json.dumps(facts, indent=1))
    else:
        typer.echo(quantization_text(*parts[:2], words))
    for note in quantization_notes(*parts):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    listed = ", ".join(map(str, found.stages))
    typer.echo(f"wrote {out}: int8 stages {listed}, digest {found.bundle.digest[:16]}…", err=as_json)


def _numbers(text: str) -> set[int]:
    """Stages as they were typed: numbers and ranges `A..B`, joined by commas."""
    found: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        ends = (first, last) if dots else (first, first)
        if not all(end.isdecimal() and len(end) < 6 for end in ends) or int(ends[0]) > int(ends[1]):
            raise ConfigError(f"--stages is numbers and ranges, such as 0..2 or 0,2, not {text!r}")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return found
