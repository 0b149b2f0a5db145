"""Accuracy against what it costs, as curves with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter

from offramp.report.pictures import panels, svg

__all__ = ["Curve", "Panel", "curves", "placements_picture"]

_COLOURS = {"sparse": "#d1495b", "narrow": "#31688e", "narrow-macs": "#35b779", "dense": "#440154"}
_NETWORK_COLOURS = ("#31688e", "#d1495b", "#8d99ae", "#440154", "#f08a24", "#35b779")


@dataclass(frozen=True)
class Curve:
    """One curve of a panel.

    Attributes:
        name: For the legend; the names of the kinds of networks have colours of their own.
        x: To the right.
        y: Upwards, in %.
        spread: Half of the 95 % interval of each y.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Curves over the same axes, and a level to compare them with.

    Attributes:
        title: Above.
        curves: What is drawn.
        level: A horizontal line, in %, and what it is.
        bar: A second one, dashed, if given.
    """

    title: str
    curves: Sequence[Curve]
    level: tuple[float, str]
    bar: tuple[float, str] | None = None


def curves(shown: Sequence[Panel], x_label: str) -> str:
    """Panels side by side as SVG text; x is logarithmic to base 2."""
    figure, axes = panels(4.6 * len(shown), 3.9, len(shown))
    for i, (panel, axis) in enumerate(zip(shown, axes, strict=True)):
        for curve in panel.curves:
            colour = _COLOURS.get(curve.name)
            axis.errorbar(
                curve.x, curve.y, curve.spread, fmt="o-", color=colour, ms=4, capsize=2, label=curve.name
            )
        level, what = panel.level
        axis.axhline(level, color=_COLOURS["dense"], lw=1, label=what)
        if panel.bar is not None:
            axis.axhline(panel.bar[0], color=_COLOURS["dense"], lw=0.8, ls="--", label=panel.bar[1])
        axis.set_xscale("log", base=2)
        ticks = sorted({x for curve in panel.curves for x in curve.x})
        axis.set_xticks(ticks, [f"{x:g}x" for x in ticks])
        axis.minorticks_off()
        axis.set_title(panel.title, fontsize=9)
        axis.set_xlabel(x_label, fontsize=8)
        if i == 0:
            axis.set_ylabel("test accuracy in %", fontsize=8)
        axis.legend(frameon=False, fontsize=7, loc="lower left")
    return svg(figure)


def placements_picture(rows: Sequence[tuple[str, str, int, float, float, int]]) -> str:
    """Error over the edge's modelled energy, a point per network, way and cut, as SVG text; both logarithmic.

    Args:
        rows: Network, way, cut, microjoules, accuracy in %, weights on the edge.
    """
    networks = list(dict.fromkeys(row[0] for row in rows))
    marks = {"split": "s", "early exit": "^", "both": "o"}
    figure, (axes,) = panels(8.4, 4.4, 1)
    for i, network in enumerate(networks):
        colour = _NETWORK_COLOURS[i % len(_NETWORK_COLOURS)]
        for way, mark in marks.items():
            points = [row for row in rows if row[0] == network and row[1] == way]
            x, y = [p[3] for p in points], [_error(p[4]) for p in points]
            axes.plot(x, y, mark, color=colour, ms=7, alpha=0.85)
            for p in points:
                axes.annotate(str(p[2]), (p[3], _error(p[4])), (5, 3), textcoords="offset points", fontsize=7)
    handles = [
        Line2D([], [], color=c, marker="o", ls="", label=n)
        for n, c in zip(networks, _NETWORK_COLOURS, strict=False)
    ]
    handles += [Line2D([], [], color="#555", marker=m, ls="", mfc="none", label=w) for w, m in marks.items()]
    axes.legend(handles=handles, frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_xlabel(
        "modelled energy of the edge per input in µJ (computing and sending); figures: the cut", fontsize=8
    )
    axes.set_ylabel("test error in %", fontsize=8)
    return svg(figure)


def _error(accuracy: float) -> float:
    """In %; a logarithmic axis has no place for none."""
    return max(100 - accuracy, 0.01)
