"""A replay as a picture: regret over time, and cost against accuracy."""

from __future__ import annotations

from itertools import cycle

from offramp.replay.replay import Replay
from offramp.report.pictures import panels, svg
from offramp.report.replaying import intervals, shown_name

__all__ = ["COLOURS", "LEARNER_COLOURS", "replay_picture"]

#: Of what does not learn, and of what does.
COLOURS = (
    "#8d99ae",
    "#31688e",
    "#35b779",
    "#440154",
    "#f08a24",
    "#21918c",
    "#90d743",
    "#c77dff",
    "#7f5539",
    "#ffb703",
    "#5f0f40",
)
LEARNER_COLOURS = ("#d1495b", "#1d1d1f", "#0077b6", "#e07a5f", "#6a994e", "#9d4edd")


def replay_picture(found: Replay) -> str:
    """Panels side by side as SVG text: every policy's regret with its 95 % interval, and a point per policy.

    Regret is drawn on a scale that is linear from −1 to 1 and logarithmic beyond, so that what learns and what
    does not are both seen. Without labels there is no accuracy, and regret stands alone.
    """
    labelled = any(played.accuracy is not None for played in found.played)
    figure, axes = panels(11.6 if labelled else 7.6, 4.4, 2 if labelled else 1)
    left = axes[0]
    plain, learners = cycle(COLOURS), cycle(LEARNER_COLOURS)
    for played in found.played:
        colour, width = (next(learners), 2.2) if played.learns else (next(plain), 1.2)
        mean, half = played.regret.mean(axis=0), intervals(played.regret)
        name = shown_name(played, found)
        left.plot(found.steps, mean, color=colour, lw=width, ls="--" if played.replay_only else "-", label=name)
        left.fill_between(found.steps, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
        if played.accuracy is not None:
            x, y = played.cost, 100 * played.accuracy
            axes[1].errorbar(
                x.mean(),
                y.mean(),
                intervals(y[:, None]),
                intervals(x[:, None]),
                fmt="*" if played.learns else "o",
                mfc="none" if played.replay_only else colour,
                color=colour,
                ms=11 if played.learns else 6,
            )
    left.set_yscale("symlog", linthresh=1)
    ends = [sum(map(len, found.traces[: i + 1])) for i in range(len(found.traces) - 1)]
    for end in ends:
        left.axvline(end, color="#555", lw=0.8, ls=":")
    left.set_xlabel("input" + ("; dotted: the next trace begins" if ends else ""), fontsize=8)
    left.set_ylabel(f"cumulative regret against split {found.best}", fontsize=8)
    if labelled:
        axes[1].margins(0.1, 0.12)
        axes[1].set_xlabel("mean cost per input", fontsize=8)
        axes[1].set_ylabel("accuracy in %", fontsize=8)
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=7, loc="outside right center")
    return svg(figure)
