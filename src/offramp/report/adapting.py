"""Policies that adapt, as a picture: mean latency over each link, and how it goes when the link changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from offramp.report.pictures import panels, svg

__all__ = ["adapting_picture", "running_means"]

_FIXED, _ADAPTIVE = "#b8c0c8", ("#d1495b", "#f08a24", "#31688e")
_DASHES = ("-", "--", ":", "-.")


class _Row(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def latency_ms(self) -> tuple[float, ...]: ...
    @property
    def mean_ms(self) -> float: ...


class _Run(Protocol):
    @property
    def link(self) -> str: ...
    @property
    def change_at(self) -> int | None: ...
    @property
    def rows(self) -> Sequence[_Row]: ...
    @property
    def fixed(self) -> Sequence[_Row]: ...


def adapting_picture(runs: Sequence[_Run], *, window: int = 20) -> str:
    """A panel per link with a bar per policy, and one with running means over inputs where the link changes.

    Args:
        runs: As `run_live` gives them.
        window: Inputs of a running mean.
    """
    figure, axes = panels(3.1 * len(runs) + 1.5, 4.2, len(runs))
    for ax, run in zip(axes, runs, strict=True):
        fixed = {row.name for row in run.fixed}
        adaptive = [row.name for row in run.rows if row.name not in fixed]
        colour = {name: _ADAPTIVE[i % len(_ADAPTIVE)] for i, name in enumerate(adaptive)}
        ax.set_title(run.link.replace(", then ", ",\nthen "), fontsize=8)
        if run.change_at is None:
            names = [row.name for row in run.rows]
            means = [row.mean_ms for row in run.rows]
            ax.barh(names, means, color=[colour.get(name, _FIXED) for name in names], height=0.66)
            ax.axvline(min(row.mean_ms for row in run.fixed), color="#333", lw=0.9, ls=":")
            for place, mean in enumerate(means):
                ax.text(mean, place, f" {mean:.0f}", va="center", fontsize=7)
            ax.margins(x=0.14)
            ax.invert_yaxis()
            ax.set_xlabel("mean ms per input; dotted: best fixed split", fontsize=7)
            continue
        for i, row in enumerate(sorted(run.fixed, key=lambda row: row.mean_ms)[:2]):
            means = running_means(row.latency_ms, window)
            ax.plot(means, color="#8d99ae", lw=1.2, ls=_DASHES[i % len(_DASHES)], label=f"{row.name} (fixed)")
        for row in run.rows:
            if row.name in colour:
                ax.plot(running_means(row.latency_ms, window), color=colour[row.name], lw=1.6, label=row.name)
        ax.axvline(run.change_at, color="#333", lw=0.8, ls=":")
        ax.set_yscale("log")
        ax.set_xlabel(f"input; dotted: the link changes; means of {window}", fontsize=7)
        ax.set_ylabel("ms", fontsize=8)
        ax.legend(frameon=False, fontsize=6.5)
    return svg(figure)


def running_means(values: Sequence[float], window: int) -> list[float]:
    """Means of the last `window` values, of fewer at the start."""
    total = np.cumsum([0.0, *values])
    return [float((total[i + 1] - total[max(0, i + 1 - window)]) / min(i + 1, window)) for i in range(len(values))]
