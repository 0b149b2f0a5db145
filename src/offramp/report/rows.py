"""Results of a run, summed up: one row per policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError
from offramp.runtime.result import Result
from offramp.tables import bytes_text, table_text

__all__ = ["LatencyRow", "Row", "rows_table", "summarise"]


@dataclass(frozen=True)
class LatencyRow:
    """Milliseconds: the mean and 95th percentile from input to answer, and the mean of each part."""

    mean: float
    p95: float
    edge: float
    link: float
    server: float


@dataclass(frozen=True)
class Row:
    """What a policy did on some inputs.

    Attributes:
        name: The policy's name.
        inputs: How many inputs.
        accuracy: The share of right answers; None without labels.
        offloaded_share: The share of inputs that were sent on.
        degraded_share: The share answered without the server that was wanted, or not at all.
        latency_ms: Milliseconds by part.
        payload_bytes: Mean bytes sent per input.
        cost: Mean cost, by the edge's `CostModel`.
        exit_share: By exit, the share of inputs that it answered.
        split_share: By split, the share of inputs for which it was chosen.
    """

    name: str
    inputs: int
    accuracy: float | None
    offloaded_share: float
    degraded_share: float
    latency_ms: LatencyRow
    payload_bytes: float
    cost: float
    exit_share: dict[int, float]
    split_share: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self)


def summarise(name: str, results: Sequence[Result], labels: NDArray[np.int64] | None = None) -> Row:
    """Sums results up.

    Args:
        name: The row's name.
        results: One per input.
        labels: The true classes, if known.

    Raises:
        ConfigError: No results, or another number of labels.
    """
    if not results:
        raise ConfigError("there are no results to sum up")
    n = len(results)
    if labels is not None and len(labels) != n:
        raise ConfigError(f"{len(labels)} labels for {n} results")
    times = np.array(
        [[r.latency_ms.total, r.latency_ms.edge, r.latency_ms.link, r.latency_ms.server] for r in results]
    )
    mean = times.mean(axis=0)
    exits = [r.exit for r in results if r.exit is not None]
    splits = [r.action.split for r in results if r.action is not None]
    right = None if labels is None else [r.label == y for r, y in zip(results, labels, strict=True)]
    return Row(
        name=name,
        inputs=n,
        accuracy=None if right is None else float(np.mean(right)),
        offloaded_share=float(np.mean([r.payload_bytes > 0 for r in results])),
        degraded_share=float(np.mean([r.status != "ok" for r in results])),
        latency_ms=LatencyRow(*(float(v) for v in (mean[0], np.percentile(times[:, 0], 95), *mean[1:]))),
        payload_bytes=float(np.mean([r.payload_bytes for r in results])),
        cost=float(np.mean([r.cost for r in results])),
        exit_share={e: exits.count(e) / n for e in sorted(set(exits))},
        split_share={k: splits.count(k) / n for k in sorted(set(splits))},
    )


def rows_table(rows: Sequence[Row], *, title: str, caption: str = "") -> str:
    """The rows as a table in text."""
    heads = ["policy", "accuracy", "offloaded", "mean ms", "p95 ms", "edge", "link", "server", "sent", "cost"]
    cells = [
        [
            row.name,
            "-" if row.accuracy is None else f"{row.accuracy:.1%}",
            f"{row.offloaded_share:.1%}",
            f"{row.latency_ms.mean:.1f}",
            f"{row.latency_ms.p95:.1f}",
            f"{row.latency_ms.edge:.1f}",
            f"{row.latency_ms.link:.1f}",
            f"{row.latency_ms.server:.2f}",
            bytes_text(row.payload_bytes),
            f"{row.cost:.3f}",
        ]
        for row in rows
    ]
    return table_text(title, heads, cells, caption=caption)
