"""`offramp tune`: new temperatures and thresholds for a bundle that is already there."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from offramp.cli.options import BundleArgument, DeltaOption, MaxDropOption, checked_delta
from offramp.errors import BundleError

__all__ = ["tune"]


def tune(
    bundle: BundleArgument,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME|FOLDER|FILE.npz",
            help="`mnist-subset`, `mnist`, `fashion-mnist`, `kmnist`, `cifar10`: the training images that were "
            "held out. A folder with one folder of images per class, or an .npz file with `x` and `y`: all of "
            "it; of the folder that the network was trained on, the part held out.",
        ),
    ],
    max_drop: MaxDropOption = 0.005,
    delta: DeltaOption = "0.1",
    confidence: Annotated[
        str, typer.Option(help="What is compared with the threshold: `max_softmax`, `entropy` or `margin`.")
    ] = "max_softmax",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")] = False,
) -> None:
    """Fits a bundle's temperatures and thresholds anew, by labelled data; needs no torch.

    **Never give test images, nor images that the network was trained on:** what is promised would not hold.

    Only `tuning.json` changes; models and digest stay, so edge and server still agree. The old file is kept
    as `tuning.json.bak`. An edge copy that lacks the last exit counts every wrong early answer as lost.
    """
    from offramp.bundle.bundle import Bundle
    from offramp.exits.confidence import check_confidence
    from offramp.report.live import stage_progress
    from offramp.report.tuning import calibration_text
    from offramp.runtime.labelled import held_out_data
    from offramp.runtime.stages import Stages
    from offramp.runtime.tuning import tune as tuned

    allowed = checked_delta(max_drop, delta)
    check_confidence(confidence)
    loaded = Bundle.load(bundle)
    if not dry_run and not os.access(bundle, os.W_OK):
        raise BundleError(f"{bundle} cannot be written; --dry-run shows what would change")
    console = Console(stderr=True)
    data = held_out_data(dataset, loaded.manifest)
    console.print(f"tuning by {data.what}", markup=False, highlight=False, soft_wrap=True)
    if data.doubt:
        note = f"note: {data.doubt}; if it has learnt from them, nothing below holds"
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    with stage_progress(console, "running the stages", len(data.labels)) as advance:
        found = tuned(
            Stages(loaded),
            data.inputs,
            data.labels,
            max_drop=max_drop,
            delta=allowed,
            confidence=confidence,
            on_batch=advance,
        )
    # Shown before it is written: what took long is not lost with a full disk.
    typer.echo(calibration_text(found.calibration, loaded.manifest, found.exits, before=loaded.tuning))
    if dry_run:
        typer.echo("nothing written (--dry-run)")
        return
    if not found.calibration.leaves:
        typer.echo("nothing written: no threshold can be promised, and the old tuning stays", err=True)
        raise typer.Exit(1)
    loaded.retuned(found.tuning)
    typer.echo(f"wrote {bundle / 'tuning.json'}; the old one is tuning.json.bak")
