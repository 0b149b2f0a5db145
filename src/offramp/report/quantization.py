"""What quantising stages changed, as tables."""

from __future__ import annotations

from typing import Any

from offramp.runtime.comparison import Comparison
from offramp.tables import bytes_text, table_text

__all__ = ["quantization_facts", "quantization_notes", "quantization_text"]

#: Slower than this is worth saying; less is what two runs differ by.
_SLOWER = 1.05


def quantization_text(found: Comparison, stages: tuple[int, ...], caption: str) -> str:
    """Per stage bytes and time, per exit accuracy, before and after.

    Args:
        found: What was measured.
        stages: The stages that are int8 now.
        caption: Below the tables: what it was measured on.
    """
    rows = []
    for s in found.stages:
        rows.append(
            [
                str(s.stage),
                "int8" if s.stage in stages else "as before",
                bytes_text(s.bytes_before),
                bytes_text(s.bytes_after),
                f"{s.bytes_before / s.bytes_after:.2f}x",
                f"{s.ms_before:.3f}",
                f"{s.ms_after:.3f}",
                f"{s.ms_before / s.ms_after:.2f}x",
            ]
        )
    sizes = [sum(getattr(s, name) for s in found.stages) for name in ("bytes_before", "bytes_after")]
    times = [sum(getattr(s, name) for s in found.stages) for name in ("ms_before", "ms_after")]
    ends = ["all", "", *map(bytes_text, sizes), f"{sizes[0] / sizes[1]:.2f}x"]
    rows.append([*ends, *(f"{ms:.3f}" for ms in times), f"{times[0] / times[1]:.2f}x"])
    heads = ["stage", "now", "bytes before", "after", "smaller", "ms before", "after", "faster"]
    title = "Stages, before and after; one input, one thread, medians of runs in turn"
    text = table_text(title, heads, rows) + "\n"
    last = len(found.exits) - 1
    rows = [
        [
            str(e.exit) + (", the last" if i == last else ""),
            f"{e.accuracy_before:.2%}",
            f"{e.accuracy_after:.2%}",
            _points(e.accuracy_before, e.accuracy_after),
            f"{e.changed:,}",
        ]
        for i, e in enumerate(found.exits)
    ]
    if last:
        accuracy = found.cascade_before, found.cascade_after
        rows.append(["at the thresholds", *(f"{a:.2%}" for a in accuracy), _points(*accuracy), "-"])
        rows.append(["leave early", f"{found.early_before:.2%}", f"{found.early_after:.2%}", "-", "-"])
    heads = ["exit", "accuracy before", "after", "points", "answers changed"]
    return text + table_text(f"Exits on {found.samples:,} inputs", heads, rows, caption=caption)


def quantization_notes(found: Comparison, stages: tuple[int, ...], kept: tuple[int, ...]) -> list[str]:
    """What the user should know beyond the tables, a line each.

    Args:
        found: What was measured.
        stages: The stages that are int8 now.
        kept: Those that were chosen and stay float.
    """
    notes = [f"stage {i} stays float: it holds no weights that can be quantised" for i in kept]
    for s in found.stages:
        if s.stage not in stages:
            continue
        if s.bytes_after >= s.bytes_before:
            notes.append(f"stage {s.stage} became larger; leave it out with --stages")
        if s.ms_after > _SLOWER * s.ms_before:
            notes.append(f"stage {s.stage} became {s.ms_after / s.ms_before:.2f}x slower on this machine")
    if len(found.exits) > 1:
        notes.append(
            "temperatures and thresholds are those of the old bundle, and what they promised need not hold for "
            "this one; fit them anew: offramp tune"
        )
    return notes


def quantization_facts(found: Comparison, stages: tuple[int, ...], kept: tuple[int, ...]) -> dict[str, Any]:
    """The tables and the notes as JSON values."""
    notes = quantization_notes(found, stages, kept)
    return {"int8": list(stages), "kept_float": list(kept), **found.to_dict(), "notes": notes}


def _points(before: float, after: float) -> str:
    return f"{100 * (after - before):+.2f}"
