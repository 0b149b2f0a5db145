"""Policies at every level of distortion, and their averages over the levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.policy.cost import CostModel
from offramp.replay.comparisons import asked, comparisons
from offramp.replay.play import Maker
from offramp.replay.replay import replay
from offramp.replay.trace import Trace
from offramp.reproduce.gates import Gates

__all__ = ["AUDITED", "BEST", "JUDGED", "LEARNER", "Averaged", "Setting", "learners", "play_levels", "policies"]

#: What the best fixed arm of each level, known in hindsight, is called.
BEST = "best fixed arm of each level"
#: The share of inputs at which audited learners look behind the gate.
_AUDIT = 0.05
#: I-SplitEE as an edge plays it, without audits and with them.
LEARNER, AUDITED = "i-splitee", f"i-splitee,audit={_AUDIT}"
#: The same with one more arm than the paper's: sending the input.
SENDS = "i-splitee,send_input=true"
#: Those whom the bars are held against.
JUDGED = (LEARNER, AUDITED, SENDS)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Averaged:
    """One policy at every level.

    Attributes:
        name: As it was asked for.
        learns: Whether what it sees changes what it does.
        replay_only: Whether it learned from what no edge can see.
        accuracy: (levels, runs).
        cost: (levels, runs), the mean of an input.
        offloaded: (levels, runs), a share.
        regret: (runs, points) against each level's best fixed arm, the mean over levels.
        level_regret: (levels, runs) at the end.
    """

    name: str
    learns: bool
    replay_only: bool
    accuracy: Floats
    cost: Floats
    offloaded: Floats
    regret: Floats
    level_regret: Floats


@dataclass(frozen=True, eq=False)
class Setting:
    """Everybody under the same gates and costs.

    Attributes:
        gates: Which gates.
        label: What the costs are called, such as "o = 3γ".
        cost: The costs.
        levels: The distortions.
        best: Per level the best fixed arm in hindsight.
        last: The last exit.
        steps: (points,) after how many samples each regret stands.
        policies: By name.
    """

    gates: Gates
    label: str
    cost: CostModel
    levels: tuple[str, ...]
    best: tuple[int, ...]
    last: int
    steps: NDArray[np.int64]
    policies: Mapping[str, Averaged]

    @property
    def final(self) -> Averaged:
        """The final exit, always."""
        return self.policies["edge-only"]

    def saved(self, name: str) -> float:
        """The share of the final exit's cost that a policy saves, averaged over the levels."""
        return 1 - float(self.policies[name].cost.mean() / self.final.cost.mean())

    def points(self, name: str) -> float:
        """Points of accuracy above the final exit, averaged over the levels."""
        return 100 * float(self.policies[name].accuracy.mean() - self.final.accuracy.mean())

    @property
    def arms(self) -> tuple[str, ...]:
        """The fixed arms by name, the final exit last."""
        return (*(n for n in self.policies if n.startswith("split-") and not n.endswith("-all")), "edge-only")


def learners() -> dict[str, Maker]:
    """The papers' learners: as an edge can play them, with audits, as published, and with one more arm."""
    found: dict[str, Maker] = {}
    for name in ("i-splitee", "splitee", "splitee-s"):
        found.update(asked(name))
        if name != "splitee":
            audited = f"{name},audit={_AUDIT}"
            found[audited] = asked(audited)[audited]
    found[SENDS] = asked(SENDS)[SENDS]
    return found


def policies(trace: Trace) -> dict[str, Maker]:
    """Everybody who plays."""
    return {**comparisons(trace), **learners()}


def play_levels(
    levels: Mapping[str, Trace],
    gates: Gates,
    label: str,
    cost: CostModel,
    seeds: int,
    on_runs: Callable[[int], None] = lambda runs: None,
) -> Setting:
    """Plays everybody at every level.

    Args:
        levels: The traces by distortion.
        gates: Everybody's.
        label: What the costs are called.
        cost: Everybody's.
        seeds: Runs at each level.
        on_runs: Told how many runs have been played since it was last told.

    Raises:
        OfframpError: As `replay` says.
    """
    found = [
        replay([gates.on(trace)], policies(trace), cost=cost, seeds=seeds, on_runs=on_runs)
        for trace in levels.values()
    ]
    first = found[0]
    averaged = {}
    for i, one in enumerate(first.played):
        each = [level.played[i] for level in found]
        averaged[one.name] = Averaged(
            name=one.name,
            learns=one.learns,
            replay_only=one.replay_only,
            accuracy=_stacked([p.accuracy for p in each]),
            cost=np.stack([p.cost for p in each]),
            offloaded=np.stack([p.offloaded for p in each]),
            regret=np.stack([p.regret for p in each]).mean(axis=0),
            level_regret=np.stack([p.regret[:, -1] for p in each]),
        )
    last = first.traces[0].meta.exits[-1]
    best = tuple(level.best for level in found)
    averaged[BEST] = _best(averaged, best, last)
    return Setting(gates, label, cost, tuple(levels), best, last, first.steps, averaged)


def _best(averaged: Mapping[str, Averaged], best: Sequence[int], last: int) -> Averaged:
    arms = [averaged["edge-only" if k == last else f"split-{k}"] for k in best]
    return Averaged(
        name=BEST,
        learns=False,
        replay_only=True,
        accuracy=np.stack([arm.accuracy[i] for i, arm in enumerate(arms)]),
        cost=np.stack([arm.cost[i] for i, arm in enumerate(arms)]),
        offloaded=np.stack([arm.offloaded[i] for i, arm in enumerate(arms)]),
        regret=np.zeros_like(arms[0].regret),
        level_regret=np.zeros_like(arms[0].level_regret),
    )


def _stacked(known: Sequence[Floats | None]) -> Floats:
    return np.stack([accuracy for accuracy in known if accuracy is not None])
