"""Policies at several levels of distortion as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from offramp.report.pictures import panels, svg
from offramp.report.regret import COLOURS, LEARNER_COLOURS

__all__ = ["Line", "Place", "change_picture", "levels_picture", "regret_and_planes"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Line:
    """A policy over time.

    Attributes:
        name: The policy.
        mean: (points,).
        half: (points,) half of the 95 % interval.
        learns: Whether it learns.
        hidden: Whether it sees what no edge can.
    """

    name: str
    mean: Floats
    half: Floats
    learns: bool
    hidden: bool


@dataclass(frozen=True)
class Place:
    """A policy in the plane of cost and accuracy (in %)."""

    name: str
    cost: float
    accuracy: float
    learns: bool
    hidden: bool


def regret_and_planes(
    steps: NDArray[np.int64], lines: Sequence[Line], planes: Mapping[str, Sequence[Place]], what: str
) -> str:
    """Regret over time, then a plane of cost and accuracy for each choice of gates; fixed policies are points.

    Args:
        steps: (points,) after how many inputs the lines stand.
        lines: Cumulative regrets.
        planes: By title.
        what: What the lines are of.
    """
    figure, (left, *right) = panels(5.2 + 3.4 * len(planes), 4.6, 1 + len(planes))
    colours = _colours([*lines, *(place for places in planes.values() for place in places)])
    _lines(left, steps, lines, colours)
    left.set_yscale("symlog", linthresh=1)
    left.set_ylabel("cumulative regret, mean over levels", fontsize=8)
    left.set_title(what, fontsize=8)
    for axes, (title, places) in zip(right, planes.items(), strict=True):
        for place in places:
            axes.plot(
                place.cost,
                place.accuracy,
                "*" if place.learns else "o",
                color=colours[place.name],
                mfc="none" if place.hidden else colours[place.name],
                ms=11 if place.learns else 6,
                label=place.name,
            )
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("mean cost per input", fontsize=8)
        axes.set_ylabel("accuracy in %", fontsize=8)
        axes.margins(0.1, 0.12)
    handles = {
        label: handle
        for axes in (*right, left)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=7, loc="outside right center")
    return svg(figure)


def levels_picture(
    levels: Sequence[str], cost: Mapping[str, Floats], accuracy: Mapping[str, Floats], what: str
) -> str:
    """Cost and accuracy of each policy at every level.

    Args:
        levels: Their names.
        cost: By policy (levels,).
        accuracy: By policy (levels,), in %.
        what: What all of it is of.
    """
    figure, (left, right) = panels(11.6, 4.6, 2)
    palette = dict(zip(cost, cycle((LEARNER_COLOURS[0], *COLOURS)), strict=False))
    for axes, series, label in ((left, cost, "mean cost per input"), (right, accuracy, "accuracy in %")):
        for i, (name, values) in enumerate(series.items()):
            axes.plot(
                values, color=palette[name], lw=2.2 if not i else 1.3, marker="*" if not i else ".", label=name
            )
        axes.set_xticks(range(len(levels)), levels, rotation=60, ha="right")
        axes.set_ylabel(label, fontsize=8)
        axes.set_title(what, fontsize=8)
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=7, loc="outside right center")
    return svg(figure)


def change_picture(steps: NDArray[np.int64], lines: Sequence[Line], end: int, levels: tuple[str, str]) -> str:
    """Regret against the best arm of the level that it is at, before and after a change.

    Args:
        steps: (points,) after how many inputs the lines stand.
        lines: Cumulative regrets.
        end: After how many inputs the second level begins.
        levels: Their names.
    """
    figure, (axes,) = panels(8.4, 4.2, 1)
    _lines(axes, steps, lines, _colours(lines))
    axes.axvline(end, color="#555", lw=0.8, ls=":")
    for x, level, side in ((end * 0.98, levels[0], "right"), (end * 1.02, levels[1], "left")):
        axes.text(x, 0.03, level, fontsize=8, ha=side, va="bottom", transform=axes.get_xaxis_transform())
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylabel("cumulative regret against the level's best arm", fontsize=8)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=7, loc="outside right center")
    return svg(figure)


def _lines(axes: Axes, steps: NDArray[np.int64], lines: Sequence[Line], colours: Mapping[str, str]) -> None:
    for line in lines:
        colour = colours[line.name]
        style, width = "--" if line.hidden else "-", 2.2 if line.learns else 1.2
        axes.plot(steps, line.mean, color=colour, lw=width, ls=style, label=line.name)
        axes.fill_between(steps, line.mean - line.half, line.mean + line.half, color=colour, alpha=0.2, lw=0)
    axes.set_xlabel("input", fontsize=8)


def _colours(policies: Sequence[Line | Place]) -> dict[str, str]:
    plain, learners = cycle(COLOURS), cycle(LEARNER_COLOURS)
    found: dict[str, str] = {}
    for policy in policies:
        if policy.name not in found:
            found[policy.name] = next(learners if policy.learns else plain)
    return found
