"""Pictures as SVG text, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from offramp.report.rows import Row

__all__ = ["accuracy_against_cost", "choices_over_time", "exit_shares", "latency_parts", "panels", "svg"]

#: Exits and splits from shallow to deep (viridis), and what is sent as it is.
_DEPTH_COLOURS = ("#35b779", "#31688e", "#440154", "#fde725", "#90d743", "#21918c")
_LEARNER_COLOUR = "#d1495b"
_PART_COLOURS = {"edge": "#31688e", "link": "#c9cdd2", "server": "#35b779"}


def accuracy_against_cost(rows: Sequence[Row]) -> str:
    """Every row as a point: mean cost to the right, accuracy upwards."""
    figure, (axes,) = panels(7.2, 3.9, 1)
    shown = sorted((row for row in rows if row.accuracy is not None), key=lambda r: (r.cost, r.accuracy or 0))
    for i, row in enumerate(shown):
        accuracy = 100 * (row.accuracy or 0.0)
        colour = _LEARNER_COLOUR if "splitee" in row.name.lower() else _PART_COLOURS["edge"]
        axes.plot(row.cost, accuracy, "o", color=colour, ms=7)
        offset = (0, 9) if i % 2 == 0 else (0, -16)  # neighbours' names stand above and below in turn
        axes.annotate(row.name, (row.cost, accuracy), offset, textcoords="offset points", fontsize=8, ha="center")
    axes.margins(0.14, 0.25)
    low, high = axes.dataLim.intervaly
    if high - low < 1:  # rows that are equal would get an axis of 14 points around them, to beyond 100 %
        axes.set_ylim((low + high) / 2 - 1, (low + high) / 2 + 1)
    axes.set_xlabel("mean cost per input, in γ·layers + o per offload (I-SplitEE's units)")
    axes.set_ylabel("accuracy in %")
    return svg(figure)


def latency_parts(rows: Sequence[Row]) -> str:
    """Mean milliseconds of every row, by where they go."""
    figure, (axes,) = panels(7.2, 0.6 + 0.36 * len(rows), 1)
    names, left = [row.name for row in rows], np.zeros(len(rows))
    for part, colour in _PART_COLOURS.items():
        widths = np.array([getattr(row.latency_ms, part) for row in rows])
        axes.barh(names, widths, left=left, color=colour, label=part, height=0.62)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("mean milliseconds per input")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return svg(figure)


def exit_shares(rows: Sequence[Row], exits: int) -> str:
    """By row, the share of inputs that each exit answered."""
    figure, (axes,) = panels(7.2, 0.6 + 0.36 * len(rows), 1)
    names, left = [row.name for row in rows], np.zeros(len(rows))
    for e in range(exits):
        widths = np.array([100 * row.exit_share.get(e, 0.0) for row in rows])
        label = f"exit {e}" if e < exits - 1 else f"exit {e}, the last"
        colour = _DEPTH_COLOURS[e % len(_DEPTH_COLOURS)]
        axes.barh(names, widths, left=left, color=colour, label=label, height=0.62)
        left += widths
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of inputs answered, in %")
    axes.legend(frameon=False, fontsize=8, ncols=exits, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return svg(figure)


def choices_over_time(splits: Sequence[int], *, window: int = 40) -> str:
    """What a policy chose: each choice as a mark, and each split's share among the last `window` choices."""
    figure, (axes,) = panels(7.2, 3.4, 1)
    chosen = np.asarray(splits)
    t = np.arange(1, len(chosen) + 1)
    for i, split in enumerate(sorted(set(splits))):
        colour = _DEPTH_COLOURS[i % len(_DEPTH_COLOURS)]
        here = (chosen == split).astype(np.float64)
        counts = np.convolve(here, np.ones(window))[: len(here)]
        axes.plot(t, 100 * counts / np.minimum(t, window), color=colour, label=f"split {split}", lw=2)
        axes.plot(t[here > 0], np.full(int(here.sum()), -4.0 - 3 * i), "|", color=colour, ms=5, alpha=0.8)
    axes.set_ylim(-5 - 3 * len(set(splits)), 102)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlabel("input")
    axes.set_ylabel(f"share of the last {window} choices, in %")
    axes.legend(frameon=False, fontsize=8, ncols=len(set(splits)), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return svg(figure)


def panels(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of `width`×`height` inches with plain axes side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    found: list[Axes] = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eceff1", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    return figure, found


def svg(figure: Figure) -> str:
    """A figure as SVG text that says nothing of when it was drawn: the same figure gives the same text."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "offramp"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})  # type: ignore[no-untyped-call]
    text = out.getvalue()
    return text[text.index("<svg") :]
