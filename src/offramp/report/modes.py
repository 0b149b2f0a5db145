"""What every mode of every cut costs and saves, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offramp.bundle.manifest import Manifest
from offramp.runtime.modes import ModeFigures
from offramp.tables import bytes_text, table_text

__all__ = ["mode_facts", "modes_text"]


def mode_facts(figures: Sequence[ModeFigures], manifest: Manifest) -> list[dict[str, Any]]:
    """The figures as JSON values, with the share of MACs before the cut and what is lost against float."""
    whole = sum(stage.graph.macs for stage in manifest.stages) or 1
    plain = figures[0].accuracy
    in_float = {f.cut: f.payload_bytes for f in figures if f.mode == "float"}
    return [
        {
            "cut": f.cut,
            "edge_macs_share": sum(stage.graph.macs for stage in manifest.stages[: f.cut + 1]) / whole,
            "mode": f.mode,
            "payload_bytes": f.payload_bytes,
            "gzip_bytes": f.gzip_bytes,
            "fewer_than_float": in_float[f.cut] / f.payload_bytes,
            "encode_ms": f.encode_ms,
            "decode_ms": f.decode_ms,
            "gzip_ms": f.gzip_ms,
            "gzip_below_mbps": f.gzip_below_mbps,
            "accuracy": f.accuracy,
            "lost": plain - f.accuracy,
            "changed": f.changed,
        }
        for f in figures
    ]


def modes_text(figures: Sequence[ModeFigures], manifest: Manifest, what: str) -> str:
    """The same as a table in text.

    Args:
        figures: As `measure_modes` gives them.
        manifest: The bundle's.
        what: Which data these are, in words.
    """
    rows = [
        [
            "input" if row["cut"] == -1 else str(row["cut"]),
            f"{row['edge_macs_share']:.0%}",
            row["mode"],
            bytes_text(row["payload_bytes"]),
            f"{row['fewer_than_float']:.1f}x",
            f"{row['accuracy']:.2%}",
            f"{0 - 100 * row['lost']:+.2f}",
            f"{row['changed']:.2%}",
            f"{1e3 * row['encode_ms']:.0f}/{1e3 * row['decode_ms']:.0f}",
            bytes_text(row["gzip_bytes"]),
            f"{1e3 * row['gzip_ms']:.0f}",
            f"{row['gzip_below_mbps']:.1f}" if row["gzip_below_mbps"] > 0 else "never",
        ]
        for row in mode_facts(figures, manifest)
    ]
    heads = ["cut", "edge's MACs", "mode", "sent", "fewer", "accuracy", "points", "changed", "enc/dec µs"]
    heads += ["gzip", "gzip µs", "pays below Mbit/s"]
    caption = (
        f"{what}; accuracy of the last exit where every sample crosses there; points and fewer: against float; "
        "changed: predictions. gzip: bytes after the transport's compression, what that takes on both sides here, "
        "and the link's rate below which it gains time"
    )
    return table_text(f"{manifest.name}: how each cut may travel", heads, rows, caption=caption)
