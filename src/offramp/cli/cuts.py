"""`offramp cuts`: where an ONNX model can be cut, and the bundle that comes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from offramp.cli.extras import needs_extra
from offramp.cli.options import JsonOption
from offramp.errors import ConfigError, ExportError

if TYPE_CHECKING:
    from offramp.bundle.cuts import Cut, CutGraph

__all__ = ["cuts"]

#: Without --all, one place is shown of each of so many equal parts of the work.
_PARTS = 20


def cuts(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX model, from any framework.")],
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Cut at this tensor, or at several: A+B. Repeat it for more cuts."),
    ] = None,
    best: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE,…",
            help="The cuts that send the fewest bytes: one per share, rising, of all multiply-accumulates that "
            "its head may take, such as 0.2,0.5.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The network's own output; the graph's last one if left out."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Write a bundle cut there; an older bundle there is replaced."),
    ] = None,
    exits: Annotated[
        list[str] | None,
        typer.Option(
            "--exit", metavar="CUT=OUTPUT", help="The logits of the exit at a cut, counted from 0: 0=aux_logits."
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy|FILE.npz",
            help="Inputs to fit the modes of each cut to, so that it may travel in few bits; several by name.",
        ),
    ] = None,
    free_batch: Annotated[
        bool,
        typer.Option("--free-batch", help="Make a fixed batch dynamic, if a run shows that nothing else changes."),
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every place.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Finds where an ONNX model can be cut, and what crosses there; cuts it into a bundle. Needs no torch."""
    with needs_extra("cuts", "onnx"):
        from offramp.bundle.cuts import CutGraph
        from offramp.bundle.foreign import bundle_from_onnx
        from offramp.bundle.onnxload import load_onnx, prepared
    from offramp.datasets.arrays import inputs_among

    if at and best is not None:
        raise ConfigError("--at names the cuts, --best chooses them; give one of the two")
    if out is None and (exits or samples):
        raise ConfigError("--exit and --samples belong to a bundle; say where it goes with --out BUNDLE")
    if out is not None and not at and best is None:
        raise ConfigError("a bundle needs cuts: name them with --at NAME, or let --best SHARE,… choose")
    limits = None if best is None else _numbers(best)
    heads = dict(_exit(text) for text in exits or ())
    arrays = None if samples is None else _samples(samples)
    with Console(stderr=True).status(f"reading {model}"):
        source = load_onnx(model, free_batch=free_batch)
        whole = prepared(source)
        graph = CutGraph(whole, output)
        chosen = graph.places if limits is None and not at else graph.at(at) if at else graph.best(limits or ())
    if not chosen:
        raise ExportError(
            f"{model} has no useful place to cut: everything that it multiplies lies behind tensors that cannot "
            "travel, or is one operation"
        )
    shown = chosen if every or at or best else _most_useful(chosen)
    typer.echo(json.dumps(_facts(graph, shown), indent=1) if as_json else _text(model, graph, shown, len(chosen)))
    if out is not None:
        with Console(stderr=True).status(f"writing {out}"):
            names = [cut.name for cut in chosen]
            inputs = None if arrays is None else inputs_among(arrays, [v.name for v in whole.graph.input])
            bundle = bundle_from_onnx(source, names, out, exits=heads, output=output, samples=inputs)
        typer.echo(f"{out}: {len(bundle.manifest.stages)} stages, digest {bundle.digest[:16]}…", err=as_json)


def _most_useful(places: Sequence[Cut]) -> list[Cut]:
    """Per equal part of the work the place that sends least, and every natural bottleneck."""
    best: dict[int, Cut] = {}
    for place in places:
        part = _PARTS * place.macs_before // (place.macs_before + place.macs_after)
        if part not in best or place.bytes < best[part].bytes:
            best[part] = place
    return [place for place in places if place.bottleneck or place in best.values()]


def _facts(graph: CutGraph, cuts: Sequence[Cut]) -> dict[str, object]:
    return {
        "output": graph.output,
        "input_bytes": graph.input_bytes,
        "macs": graph.macs,
        "cuts": [
            {
                "name": cut.name,
                "tensors": [t.model_dump(mode="json") for t in cut.tensors],
                "bytes": cut.bytes,
                "compression": cut.compression,
                "macs_before": cut.macs_before,
                "macs_after": cut.macs_after,
                "depth": cut.depth,
                "bottleneck": cut.bottleneck,
                "proven": cut.proven,
            }
            for cut in cuts
        ],
    }


def _text(model: Path, graph: CutGraph, cuts: Sequence[Cut], places: int) -> str:
    from offramp.tables import bytes_text, count_text, table_text

    def work(macs: int) -> str:
        return f"{count_text(macs)} {macs / graph.macs:6.1%}" if graph.macs else "0"

    rows = [
        [
            cut.name,
            ", ".join("x".join(map(str, t.shape)) or "1" for t in cut.tensors),
            bytes_text(cut.bytes),
            f"{cut.compression:.1%}",
            work(cut.macs_before),
            work(cut.macs_after),
            str(cut.depth),
            "*" if cut.bottleneck else "",
        ]
        for cut in cuts
    ]
    caption = f"input {bytes_text(graph.input_bytes)}; {count_text(graph.macs)} MACs to {graph.output}; "
    caption += "*: natural bottleneck, less than the input and every place before"
    if len(cuts) < places:
        caption += (
            f"\n{len(cuts)} of {places} places: of each {100 // _PARTS}% of the MACs the one that sends least, "
            "and every natural bottleneck; --all shows all"
        )
    if not all(cut.proven for cut in cuts):
        caption += "\nthe search was cut short: the best places seen, maybe not the best there are"
    heads = ["cut", "shape", "sends", "of input", "MACs before", "MACs after", "depth", "bottleneck"]
    width = max(160, *(len(row[0]) + 110 for row in rows))
    return table_text(str(model), heads, rows, caption=caption, width=width)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--best is shares of the work, such as 0.2,0.5, not {text!r}") from error


def _exit(text: str) -> tuple[int, str]:
    number, equals, name = text.partition("=")
    if not number.isdecimal() or not equals or not name:
        raise ConfigError(f"--exit is CUT=OUTPUT, such as 0=aux_logits, not {text!r}")
    return int(number), name


def _samples(file: Path) -> Any:
    from offramp.datasets.arrays import read_arrays

    try:
        return read_arrays(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--samples {file} is no array that can be read: {error}") from error
