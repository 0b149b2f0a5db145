"""`offramp export`: what leaves the training machine: edge copies, and what clusters take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.extras import needs_extra
from offramp.cli.options import BundleArgument
from offramp.errors import ConfigError

if TYPE_CHECKING:
    from offramp.bundle.bundle import Bundle

__all__ = ["export"]


def export(
    bundle: BundleArgument,
    edge: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a copy for an edge: the first stages; with --stages.")
    ] = None,
    stages: Annotated[
        str | None, typer.Option(metavar="0..K", help="The stages that the edge copy holds, such as 0..1.")
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write a model repository for NVIDIA Triton; the directory must be empty."
        ),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="The most samples that Triton runs at once; 32 if left out.")
    ] = None,
    kserve: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a KServe InferenceService as YAML; with --storage-uri."),
    ] = None,
    storage_uri: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Where the cluster finds the Triton repository, or with --image the bundle: s3://…, gs://…, pvc://….",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="The server's container image: `offramp serve` answers in place of Triton."),
    ] = None,
    knative: Annotated[
        bool, typer.Option("--knative", help="For KServe's Knative mode; its Standard mode if left out.")
    ] = False,
) -> None:
    """Writes a bundle for where it runs: a smaller copy for an edge, a Triton repository, a KServe service."""
    from offramp.bundle.bundle import Bundle

    if edge is None and triton is None and kserve is None:
        raise ConfigError("say what to write: --edge DIR, --triton DIR or --kserve FILE")
    for option, value, goes_with, target in (
        ("--stages", stages, "--edge", edge),
        ("--max-batch", max_batch, "--triton", triton),
        ("--storage-uri", storage_uri, "--kserve", kserve),
        ("--image", image, "--kserve", kserve),
        ("--knative", knative or None, "--kserve", kserve),
    ):
        if value is not None and target is None:
            raise ConfigError(f"{option} goes with {goes_with}")
    if kserve is not None:  # before anything is written
        with needs_extra("export --kserve", "serve"):
            from offramp.serving.kserve import write_kserve
        if storage_uri is None:
            raise ConfigError("--kserve needs --storage-uri: where the cluster finds the model, such as s3://…")
    whole = Bundle.load(bundle)
    if edge is not None:
        _edge_copy(whole, edge, stages)
    if triton is not None:
        from offramp.serving.triton import write_triton

        models = write_triton(whole, triton, max_batch=32 if max_batch is None else max_batch)
        typer.echo(f"{triton}: for `tritonserver --model-repository`, models {', '.join(m.name for m in models)}")
    if kserve is not None and storage_uri is not None:
        name = write_kserve(whole, kserve, storage_uri=storage_uri, image=image, knative=knative)
        what = "Triton repository" if image is None else "bundle"
        typer.echo(f"{kserve}: InferenceService {name}; it expects the {what} at {storage_uri}")


def _edge_copy(whole: Bundle, edge: Path, stages: str | None) -> None:
    from offramp.tables import bytes_text

    first, dots, last = (stages or "").partition("..")
    if first != "0" or not dots or not last.isdecimal():
        came = "" if stages is None else f", not {stages!r}"
        raise ConfigError(f"--edge needs --stages 0..K, such as 0..1{came}")
    if int(last) >= whole.held:
        raise ConfigError(f"--stages goes to 0..{whole.held - 1}, which are all that there are, not to {stages}")
    copy = whole.edge_copy(edge, int(last) + 1)
    typer.echo(
        f"{edge}: stages {stages}, {bytes_text(copy.stored_bytes())} of {bytes_text(whole.stored_bytes())}, "
        f"digest {copy.digest[:16]}…"
    )
