"""A trace as a table."""

from __future__ import annotations

from offramp.replay.trace import Trace
from offramp.tables import bytes_text, count_text, table_text

__all__ = ["trace_text"]


def trace_text(trace: Trace) -> str:
    """Per exit its accuracy and confidence, what it takes to get there, and the bytes of the cut that feeds it."""
    meta, accuracy, confidence = trace.meta, trace.accuracy, trace.confidence
    rows = []
    for column, exit_index in enumerate(meta.exits):
        last = column == len(meta.exits) - 1
        # A cascade evaluates the heads on the way as well.
        macs = sum(meta.stage_macs[: exit_index + 1]) + sum(meta.exit_macs[: column + 1])
        ms = sum(meta.stage_ms[: exit_index + 1]) + sum(meta.exit_ms[: column + 1])
        sizes = [per_cut[exit_index + 1] for per_cut in meta.cut_bytes.values()] if not last else []
        rows.append(
            [
                f"exit {exit_index}" + (", the last" if last else ""),
                str(meta.depths[exit_index]),
                f"{100 * accuracy[column]:.2f}",
                "-" if confidence is None else f"{100 * float(confidence[:, column].mean()):.1f}",
                count_text(macs) if meta.stage_macs else "-",
                f"{ms:.3g}" if meta.stage_ms else "-",
                ", ".join(
                    f"{mode} {bytes_text(size)}"
                    for mode, size in zip(meta.cut_bytes, sizes, strict=False)
                    if size is not None
                )
                or "-",
            ]
        )
    heads = ["exit", "depth", "accuracy %", "mean confidence %", "MACs to it", "ms to it", "its cut"]
    what = f"{meta.data}{', ' + meta.distortion if meta.distortion else ''}: {len(trace):,} samples"
    return table_text(
        f"Trace of {meta.bundle}", heads, rows, caption=f"{what}; MACs and ms with the heads on the way"
    )
