"""`offramp modes`: what each way for a cut to travel costs and saves."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer
from rich.console import Console

from offramp.cli.options import BundleArgument, JsonOption
from offramp.errors import BundleError, ConfigError

__all__ = ["modes"]


def modes(
    bundle: BundleArgument,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME|FOLDER|FILE.npz",
            help="Labelled data that the network has not learnt from, as `offramp tune` takes it.",
        ),
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Samples, at most; all of them if left out.")] = None,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Keep in `tuning.json` the mode with the fewest bytes within --max-loss as the usual one, and "
            "the rates below which compression pays.",
        ),
    ] = False,
    max_loss: Annotated[
        float, typer.Option(help="Accuracy that the usual mode may cost at any cut: 0.01 is one point.")
    ] = 0.01,
    as_json: JsonOption = False,
) -> None:
    """Sends labelled data across every cut in every mode: bytes, time and accuracy.

    `uint8` takes one range for the whole cut, `uint8c` one per channel; `uint4` and `uint2` have ranges per
    channel and put two and four values into a byte. What lies beyond a range is clipped. Needs no torch.
    """
    from offramp.bundle.bundle import Bundle
    from offramp.report.live import stage_progress
    from offramp.report.modes import mode_facts, modes_text
    from offramp.runtime.labelled import held_out_data
    from offramp.runtime.modes import measure_modes, retuned_modes
    from offramp.runtime.stages import Stages

    if not 0 <= max_loss <= 1:
        raise ConfigError(f"--max-loss is a fraction between 0 and 1, not {max_loss}")
    loaded = Bundle.load(bundle)
    if write and not os.access(bundle, os.W_OK):
        raise BundleError(f"{bundle} cannot be written; leave --write out to look only")
    console = Console(stderr=True)
    data = held_out_data(dataset, loaded.manifest).first(limit)
    if data.doubt:
        console.print(f"note: {data.doubt}", markup=False, highlight=False, soft_wrap=True)
    with stage_progress(console, "crossing every cut", len(data.labels)) as advance:
        found = measure_modes(Stages(loaded), data.inputs, data.labels, on_batch=advance)
    if as_json:
        typer.echo(json.dumps({"data": data.what, "modes": mode_facts(found, loaded.manifest)}, indent=1))
    else:
        typer.echo(modes_text(found, loaded.manifest, data.what))
    if write:
        fresh = retuned_modes(loaded.tuning, found, max_loss=max_loss)
        loaded.retuned(fresh)
        typer.echo(
            f"usual mode: {loaded.tuning.mode} before, {fresh.mode} now; wrote {bundle / 'tuning.json'}, the old "
            "one is tuning.json.bak",
            err=True,
        )
