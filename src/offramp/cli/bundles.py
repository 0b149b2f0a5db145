"""`offramp inspect | profile`: what a bundle holds, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.credentials import CaOption, CertOption, EdgeTokenOption, KeyOption, edge_credentials
from offramp.cli.extras import needs_extra
from offramp.cli.options import BundleArgument, JsonOption, ServerOption, SlowdownOption

__all__ = ["inspect", "profile"]


def inspect(
    bundle: BundleArgument,
    patterns: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the sparse layers' patterns to this .svg or .png file."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Shows what a bundle holds: stages, exits, cuts and what they send. Verifies every file."""
    from offramp.bundle.bundle import Bundle
    from offramp.report.inspection import inspection, inspection_text

    if patterns is None:
        loaded = Bundle.load(bundle)
    else:
        with needs_extra("inspect --patterns", "report"):
            from offramp.report.patterns import check_suffix, stored_patterns, write_patterns
        check_suffix(patterns)
        loaded = Bundle.load(bundle)
        drawn = stored_patterns(loaded.manifest.provenance)
        write_patterns(drawn, patterns)
        typer.echo(f"{patterns}: the patterns of {len(drawn)} sparse layers", err=True)
    facts = inspection(loaded)
    typer.echo(json.dumps(facts, indent=1) if as_json else inspection_text(facts))


def profile(
    bundle: BundleArgument,
    server: ServerOption = None,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: EdgeTokenOption = None,
    runs: Annotated[int, typer.Option(min=3, help="Runs per median.")] = 50,
    edge_slowdown: SlowdownOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Measures every stage here, and with --server the link, and predicts the latency of every split."""
    from offramp.bundle.bundle import Bundle
    from offramp.connect import connect
    from offramp.report.profile import measure, profile_text
    from offramp.runtime.stages import Stages

    loaded = Bundle.load(bundle)
    channel = None if server is None else connect(server, loaded, edge_credentials(ca, cert, key, token_file))
    try:
        facts = measure(Stages(loaded, slowdown=edge_slowdown), channel, runs=runs)
    finally:
        if channel is not None:
            channel.close()
    facts["edge_slowdown"] = edge_slowdown
    typer.echo(json.dumps(facts, indent=1) if as_json else profile_text(loaded, facts))
    if edge_slowdown > 1 and not as_json:
        typer.echo(f"The edge is emulated, {edge_slowdown:g}x slower than this machine.")
