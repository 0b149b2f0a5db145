"""A world that changes half-way: who finds the new best arm, and what it costs until then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.errors import TraceError
from offramp.interval import interval
from offramp.policy.cost import CostModel
from offramp.replay.comparisons import asked
from offramp.replay.play import Maker
from offramp.replay.replay import Replay, replay
from offramp.replay.scores import Played, Scores
from offramp.replay.simulator import Simulator
from offramp.reproduce.gates import Gates
from offramp.reproduce.recorded import Recorded
from offramp.tables import table_text

__all__ = ["FORMS", "Change", "change_facts", "change_table", "changed", "find_change", "sentence"]

#: I-SplitEE that remembers all, lets the past fade, and counts the last plays only.
FORMS = ("i-splitee", "i-splitee,discount=0.999", "i-splitee,window=1000")
#: What keeping the old arm has to lose per input, so that a learner can tell within a hundred plays or so.
_GAP = 0.3
#: Offload costs to look through, in γ.
_MOST = 100


@dataclass(frozen=True, eq=False)
class Change:
    """Two levels, one after the other.

    Attributes:
        levels: Their names.
        best: Each one's best fixed arm.
        offload: o in γ.
        gap: What keeping the other level's best arm loses per input, the smaller of both.
        found: What was played.
    """

    levels: tuple[str, str]
    best: tuple[int, int]
    offload: int
    gap: float
    found: Replay

    def regret(self, played: Played) -> NDArray[np.float64]:
        """(runs, points) cumulative regret against the best arm of the level that it is at."""
        steps, rewards, half = self.found.steps, self.found.rewards_by_trace, len(self.found.traces[0])
        before, after = (rewards[best][i] - rewards[self.found.best][i] for i, best in enumerate(self.best))
        return np.asarray(played.regret + before * np.minimum(steps, half) + after * np.maximum(steps - half, 0))

    def second_half(self, played: Played) -> NDArray[np.float64]:
        """(runs,) the regret that the second half brought."""
        so_far = self.regret(played)
        end = int(np.searchsorted(self.found.steps, len(self.found.traces[0])))
        return np.asarray(so_far[:, -1] - so_far[:, end])


def find_change(
    recorded: Recorded, gates: Gates, priced: Callable[[int], CostModel]
) -> tuple[int, str, str, float]:
    """The smallest o at which two levels have different best arms that matter, and those two.

    For each o in whole γ, the pair of levels for which keeping the other's best arm loses most (the smaller of
    both losses); the first o at which that is at least 0.3 per input. The level whose best arm is shallower
    comes first: at a deep arm everything shallower is seen, so the change that is hard to notice is that to a
    deeper one. Labels are not looked at.

    Args:
        recorded: The traces.
        gates: Everybody's.
        priced: Costs by o in γ; linear in it.

    Returns:
        o in γ, the first level, the second level, and the gap.

    Raises:
        TraceError: No o up to 100γ has such a pair.
    """
    names = list(recorded.levels)
    # Rewards are linear in o, so two prices say all of them.
    zero, one = (
        np.array(
            [
                list(Scores(Simulator(gates.on(t), priced(o)), (len(t),), "confidence").arm_rewards.values())
                for t in recorded.levels.values()
            ]
        )
        for o in (0, 1)
    )
    for offload in range(1, _MOST + 1):
        rewards = zero + offload * (one - zero)
        best = rewards.argmax(axis=1)
        kept = rewards[:, best]  # level, level whose best arm is kept
        loses = rewards.max(axis=1)[:, None] - kept
        gap = np.minimum(loses, loses.T)
        i, j = np.unravel_index(int(gap.argmax()), gap.shape)
        if gap[i, j] >= _GAP:
            first, second = sorted((int(i), int(j)), key=lambda level: int(best[level]))
            return offload, names[first], names[second], float(gap[i, j])
    raise TraceError(f"no two levels have best arms that differ by {_GAP} at any o up to {_MOST}γ")


def changed(
    recorded: Recorded,
    gates: Gates,
    priced: Callable[[int], CostModel],
    seeds: int,
    on_runs: Callable[[int], None] = lambda runs: None,
) -> Change:
    """Plays the forms of I-SplitEE, the best arm of either half, and a random arm, over a change.

    Raises:
        OfframpError: As `find_change` and `replay` say.
    """
    offload, first, second, gap = find_change(recorded, gates, priced)
    cost = priced(offload)
    traces = [gates.on(recorded.levels[level]) for level in (first, second)]
    arms = [Scores(Simulator(t, cost), (len(t),)).best for t in traces]
    last = traces[0].meta.exits[-1]
    names = [*("edge-only" if k == last else f"split-{k}" for k in arms), "random", *FORMS]
    makers: dict[str, Maker] = {name: asked(name)[name] for name in names}
    found = replay(traces, makers, cost=cost, seeds=seeds, on_runs=on_runs)
    return Change((first, second), (arms[0], arms[1]), offload, gap, found)


def change_table(change: Change, title: str) -> str:
    """One row per policy: regret in either half, and how often the new best arm was played after the change."""
    rows = []
    for played in change.found.played:
        second, whole = change.second_half(played), change.regret(played)[:, -1]
        rows.append(
            [
                played.name,
                _span(whole - second),
                _span(second),
                f"{played.splits_by_trace[0].get(change.best[0], 0.0):.1%}",
                f"{played.splits_by_trace[1].get(change.best[1], 0.0):.1%}",
                "-" if played.accuracy is None else f"{100 * played.accuracy.mean():.2f}",
                f"{played.cost.mean():.4f}",
            ]
        )
    heads = [
        "policy",
        "regret, first half",
        "regret, second half",
        f"arm {change.best[0]} in the first",
        f"arm {change.best[1]} in the second",
        "accuracy %",
        "cost",
    ]
    return table_text(title, heads, rows, caption=_chosen(change))


def sentence(change: Change) -> str:
    """Who recovers, in words."""
    told = []
    stays = float(change.second_half(change.found.played[0]).mean())
    for played in change.found.played[-len(FORMS) :]:
        regret = float(change.second_half(played).mean())
        share = played.splits_by_trace[1].get(change.best[1], 0.0)
        told.append(f"{played.name} {regret:.0f}, arm {change.best[1]} on {share:.1%}")
    return (
        f"after the change from {change.levels[0]} to {change.levels[1]} (o = {change.offload}γ), regret of the "
        f"second half and share of its best arm: {'; '.join(told)}; staying at arm {change.best[0]}: {stays:.0f}"
    )


def change_facts(change: Change) -> dict[str, object]:
    """The same as JSON values."""
    return {
        "levels": change.levels,
        "best_arms": change.best,
        "offload_in_gamma": change.offload,
        "gap": change.gap,
        "chosen": _chosen(change),
        "policies": {
            played.name: {
                "regret_second_half": float(change.second_half(played).mean()),
                "interval": interval(change.second_half(played).tolist()),
                "regret": float(change.regret(played)[:, -1].mean()),
                "new_best_arm": played.splits_by_trace[1].get(change.best[1], 0.0),
            }
            for played in change.found.played
        },
    }


def _chosen(change: Change) -> str:
    n = len(change.found.traces[0])
    return (
        f"{n:,} samples of {change.levels[0]}, then as many of {change.levels[1]}; {change.found.seeds} runs. "
        f"o = {change.offload}γ is the smallest, in whole γ, at which keeping the other level's best arm loses at "
        f"least {_GAP} an input, and these are the levels for which it loses most ({change.gap:.2f}); the "
        "shallower arm first, since a deeper one sees it anyway. Regret: against the best arm of the level that "
        "it is at"
    )


def _span(runs: NDArray[np.float64]) -> str:
    half = f"{interval(runs.tolist()):.0f}"
    return f"{runs.mean():.0f}" + (f" ± {half}" if half != "0" else "")
