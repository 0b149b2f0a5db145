"""A study of exits as tables in text: per exit, the cascade, at a distance, under distortion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from offramp.bundle.manifest import Manifest
from offramp.replay.trace import Trace
from offramp.report.rows import rows_table
from offramp.reproduce.distant import Distant
from offramp.reproduce.findings import Findings
from offramp.runtime.tuning import macs_per_answer
from offramp.tables import count_text, table_text

__all__ = ["cascades_table", "distant_table", "distortions_table", "exits_table"]


def exits_table(ways: Sequence[Findings], taps: Sequence[str], manifest: Manifest, trace: Trace) -> str:
    """Per exit what it costs to get there, and what each way of training gives.

    Args:
        ways: One per way of training.
        taps: The submodule before each early exit.
        manifest: The bundle's.
        trace: Of the undistorted test images; says how long each step takes.
    """
    macs = macs_per_answer(manifest, range(manifest.last))
    heads = ["exit", "behind", "depth", "MACs", "share", "ms"]
    for way in ways:
        heads += [f"{way.way} %", "ECE", "cooled"]
    rows, ms = [], 0.0
    for e, tap in enumerate((*taps, "-")):
        ms += trace.meta.stage_ms[e] + trace.meta.exit_ms[e]
        row = [str(e), tap, str(manifest.stages[e].depth), count_text(macs[e]), f"{macs[e] / macs[-1]:.1%}"]
        row.append(f"{ms:.2f}")
        for way in ways:
            row += [
                f"{100 * way.accuracy[e]:.2f}",
                f"{100 * way.ece_before[e]:.2f}",
                f"{100 * way.ece_after[e]:.2f}",
            ]
        rows.append(row)
    caption = (
        f"{len(trace):,} test images, measured once. MACs and ms: of one answer there, the heads on the way "
        "included; ms: medians of 100 images one at a time, one thread. ECE: expected calibration error in "
        "points, 15 bins; cooled: with the temperature fitted on held-out images"
    )
    return table_text("Exits", heads, rows, caption=caption)


def cascades_table(ways: Sequence[Findings], last: str) -> str:
    """What cascades save and cost on the test images, per way of training and allowed drop.

    Args:
        ways: One per way of training.
        last: What is promised of the cascade in the bundle, in words.
    """
    exits = len(ways[0].accuracy)
    heads = ["training", "allowed", "threshold", "MACs saved", "accuracy %", "drop"]
    heads += [f"exit {e}" for e in range(exits)]
    rows = [
        [
            way.way,
            f"{100 * cascade.max_drop:g}",
            "never" if cascade.threshold > 1 else f"{cascade.threshold:.4f}",
            f"{cascade.macs_saved:.1%}",
            f"{100 * cascade.accuracy:.2f}",
            f"{100 * cascade.drop:.2f}",
            *(f"{share:.1%}" for share in cascade.exit_share),
        ]
        for way in ways
        for cascade in way.cascades
    ]
    caption = (
        "on the test images. Allowed and drop: points below the last exit; exit columns: the share that each one "
        f"answers. The bundle's: {last}"
    )
    return table_text("Cascades, thresholds chosen on held-out images", heads, rows, caption=caption)


def distant_table(found: Distant) -> str:
    """What each policy did over the link."""
    table = rows_table(
        found.rows,
        title=f"Edge and server, {found.rows[0].inputs} test images; edge emulated: {found.slowdown:g}x slower",
        caption=f"link: {found.link}; mean ms per input by part; cost in I-SplitEE's units",
    )
    shares = [
        f"{row.name}: {sum(s for e, s in row.exit_share.items()) - row.offloaded_share:.1%} answered on the edge"
        for row in found.rows
    ]
    said = f"every probability within {found.furthest:.0e} of the one computed in one process"
    return "\n".join([table, "; ".join(shares), said])


def distortions_table(traces: Mapping[str, Trace]) -> str:
    """The accuracy of every exit under every distortion."""
    exits = len(next(iter(traces.values())).meta.exits)
    rows = [
        [distortion or "none", *(f"{100 * a:.2f}" for a in trace.accuracy)] for distortion, trace in traces.items()
    ]
    heads = ["distortion", *(f"exit {e} %" for e in range(exits))]
    caption = "noise: its deviation on pixels in [0, 1]; blur: in pixels"
    return table_text("Exits on distorted test images", heads, rows, caption=caption)
