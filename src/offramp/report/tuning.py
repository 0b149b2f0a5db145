"""What calibration found, exit by exit, and what the cascade costs and saves, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.bundle.manifest import Manifest, Tuning
from offramp.exits.calibration import Calibration
from offramp.runtime.tuning import macs_per_answer, macs_saved
from offramp.tables import count_text, table_text

__all__ = ["calibration_text"]


def calibration_text(
    found: Calibration, manifest: Manifest, exits: Sequence[int], *, before: Tuning | None = None
) -> str:
    """Accuracy, calibration error, temperature, threshold, share and MACs per exit; below, the cascade in words.

    Args:
        found: What calibration found for `exits`.
        manifest: The bundle's.
        exits: The exits that were evaluated, ascending.
        before: The tuning that is replaced, to show its thresholds too.
    """
    last = manifest.last
    heads = ["exit", "accuracy", "ECE before", "ECE after", "temperature"]
    heads += ["threshold", "answers", "MACs"] if before is None else ["old threshold", "new", "answers", "MACs"]
    answers = [*(e for e in exits if e < last), last]
    rows = []
    for i, (e, macs) in enumerate(zip(answers, macs_per_answer(manifest, exits), strict=True)):
        row = [str(e), "-", "-", "-", "-"]
        if e in exits:
            row[1:] = [
                f"{found.accuracy[i]:.2%}",
                f"{found.ece_before[i]:.2%}",
                f"{found.ece_after[i]:.2%}",
                f"{found.temperatures[i]:.3f}",
            ]
        if before is not None:
            row.append(_threshold(before.thresholds[e]))
        row.append(_threshold(found.thresholds[i] if e < last else None))
        rows.append([*row, f"{found.exit_share[i]:.1%}", count_text(macs)])
    title = f"Exits on {found.tested:,} held-out samples; confidence: {found.confidence}"
    return table_text(title, heads, rows) + "\n" + _cascade(found, manifest, exits)


def _cascade(found: Calibration, manifest: Manifest, exits: Sequence[int]) -> str:
    saved = macs_saved(manifest, exits, found.exit_share)
    macs = f"{saved:.1%} fewer MACs" if saved >= 0 else f"{-saved:.1%} more MACs, for the heads,"
    macs += " than the network without exits"
    if found.cascade_accuracy is None or found.drop is None:
        known = f"{found.lost:.2%} wrong early answers; the last exit is not held here, so each counts as lost"
    else:
        known = (
            f"accuracy {found.cascade_accuracy:.2%} against {found.accuracy[-1]:.2%} at the last exit "
            f"(drop {100 * found.drop:.2f} points)"
        )
    return f"the cascade: {known}; {macs}\n{found.promise}"


def _threshold(value: float | None) -> str:
    if value is None:
        return "-"
    return "never" if value > 1 else f"{value:.4f}"
