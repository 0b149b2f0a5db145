"""`offramp trace`: what every exit says about every sample, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from offramp.cli.options import BundleArgument
from offramp.errors import ConfigError, TraceError

__all__ = ["trace"]


def trace(
    bundle: BundleArgument,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME|FOLDER|FILE.npz",
            help="`mnist-subset`, `mnist`, `fashion-mnist`, `kmnist`, `cifar10`: the test images. A folder with "
            "one folder of images per class, or an .npz file with `x` and `y`: all of it.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="Where the trace goes; a file there is replaced.")],
    distort: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:SIGMA",
            help="`gaussian_noise:0.1`, its deviation on pixels in [0, 1], or `gaussian_blur:0.8`, in pixels.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many samples, the first ones.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="For the noise.")] = 0,
) -> None:
    """Records what every exit of a bundle says about every sample, for replaying policies; needs no torch.

    Prediction, confidence and label per exit and sample, milliseconds per stage, and bytes per cut and mode.
    CIFAR-10-C's noise is 0.04, 0.06, 0.08, 0.09 and 0.10.
    """
    from offramp.bundle.bundle import Bundle
    from offramp.datasets.distortion import Distortion
    from offramp.replay.record import record
    from offramp.report.live import stage_progress
    from offramp.report.tracing import trace_text
    from offramp.runtime.labelled import test_data
    from offramp.runtime.stages import Stages

    distortion = None if distort is None else Distortion.parse(distort, seed)
    if out.suffix != ".npz":
        raise ConfigError(f"--out is a file that ends in .npz, not {str(out)!r}")
    if not out.parent.is_dir():
        raise TraceError(f"there is no folder {out.parent} to write {out.name} to")
    loaded = Bundle.load(bundle)
    console = Console(stderr=True)
    data = test_data(dataset, loaded.manifest).first(limit)
    with stage_progress(console, "tracing", len(data.labels)) as on_batch:
        found = record(Stages(loaded), data, distortion=distortion, on_batch=on_batch)
    found.save(out)
    typer.echo(trace_text(found))
    typer.echo(f"wrote {out}: {len(found):,} samples, {len(found.meta.exits)} exits", err=True)
