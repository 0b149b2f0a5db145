"""What plays come to: accuracy, cost, share offloaded, and regret against the best fixed arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError, TraceError
from offramp.policy.base import Action, Policy
from offramp.replay.play import Plays, learns
from offramp.replay.simulator import Simulator

__all__ = ["REWARDS", "Played", "Reward", "Scores"]

Reward = Literal["confidence", "accuracy"]
REWARDS: tuple[Reward, ...] = get_args(Reward)

#: Places in a run at which its regret is kept.
_POINTS = 200


@dataclass(frozen=True, eq=False)
class Played:
    """What one policy came to in every run.

    Attributes:
        name: As it was asked for.
        learns: Whether what it sees changes what it does.
        replay_only: Whether it learned from what no edge can see.
        accuracy: (runs,) the share of right answers among samples whose label is known; None without labels.
        cost: (runs,) the mean cost of a sample.
        offloaded: (runs,) the share of samples that were sent on.
        splits: By split, the share of samples for which it was chosen, over all runs.
        splits_by_trace: The same for each trace alone.
        regret: (runs, points) cumulative regret after `Scores.steps` samples.
    """

    name: str
    learns: bool
    replay_only: bool
    accuracy: NDArray[np.float64] | None
    cost: NDArray[np.float64]
    offloaded: NDArray[np.float64]
    splits: Mapping[int, float]
    splits_by_trace: tuple[Mapping[int, float], ...]
    regret: NDArray[np.float64]


class Scores:
    """Rewards actions, and sums up what was played.

    The reward of an action on a sample is what its answer is worth less what was paid. An answer is worth its
    exit's confidence (I-SplitEE, arXiv 2401.10541; SplitEE, arXiv 2309.09195), or 1 where it is right and 0
    where not (UEE-UCB, arXiv 2209.09480: −(error + cost), but for a constant). Its expectation is the mean over
    the samples of one trace.

    Args:
        simulator: The edge loop on all traces, one after another.
        lengths: Samples per trace.
        reward: What an answer is worth; its confidence where there are confidences, if left out.

    Attributes:
        reward: What an answer is worth.
        arm_rewards: By arm its expected reward in a run.
        rewards_by_trace: By arm its expected reward in each trace.
        best: The arm for which it is largest: the best fixed arm in hindsight.
        steps: (points,) after how many samples each regret stands; the end of every trace is one of them.

    Raises:
        ConfigError: Confidence as a reward where there are none, or an unknown reward.
        TraceError: Accuracy as a reward where a label is not known.
    """

    def __init__(self, simulator: Simulator, lengths: Sequence[int], reward: Reward | None = None) -> None:
        trace = simulator.trace
        self.reward: Reward = (
            ("accuracy" if trace.confidence is None else "confidence") if reward is None else reward
        )
        if self.reward not in REWARDS:
            raise ConfigError(f"an answer is worth its {' or its '.join(REWARDS)}, not {reward!r}")
        if self.reward == "confidence" and trace.confidence is None:
            raise ConfigError("this trace has no confidences to reward; accuracy can be rewarded")
        self._known = trace.label >= 0
        if self.reward == "accuracy" and not self._known.all():
            raise TraceError("only right answers are worth something here, and not every label is known")
        self._simulator, self._lengths = simulator, tuple(lengths)
        self._begins = np.cumsum([0, *self._lengths[:-1]])
        self._right = (trace.prediction == trace.label[:, None]).astype(np.float64)
        self._worth = self._right if trace.confidence is None or self.reward == "accuracy" else trace.confidence
        arms = simulator.context.arms
        self.rewards_by_trace = {k: self._expected(simulator.arm(k), None) for k in arms}
        share = np.array(self._lengths) / sum(self._lengths)
        self.arm_rewards = {k: float(self.rewards_by_trace[k] @ share) for k in arms}
        self.best = max(arms, key=self.arm_rewards.__getitem__)
        n = sum(self._lengths)
        evenly = np.linspace(1, n, min(_POINTS, n)).astype(np.int64)
        self.steps: NDArray[np.int64] = np.union1d(evenly, np.cumsum(self._lengths))

    def of(self, name: str, policy: Policy, plays: Plays, orders: NDArray[np.int64]) -> Played:
        """What a policy's plays came to.

        Regret is Σ_t E[r(i*)] − E[r(a_t)]: i* is the best fixed arm, a_t what was played. It may fall: actions
        that are no arms, such as a cascade's, can be better than every arm.

        Args:
            name: As it was asked for.
            policy: Says what kind it is.
            plays: What it chose.
            orders: (runs, samples): which sample each run saw when.
        """
        outcomes = [self._simulator.outcome(action, plays.alpha) for action in plays.actions]
        chosen = plays.chosen
        cost = np.stack([o.cost for o in outcomes])[chosen, orders].mean(axis=1)
        offloaded = np.stack([o.offloaded for o in outcomes])[chosen, orders].mean(axis=1)
        accuracy = None
        if self._known.any():
            rows = np.arange(len(self._known))
            right = np.stack([self._right[rows, o.column] for o in outcomes])[chosen, orders]
            accuracy = (right * self._known[orders]).sum(axis=1) / self._known.sum()
        best = self.rewards_by_trace[self.best]
        behind = np.stack([best - self._expected(a, plays.alpha) for a in plays.actions])
        under_way = np.repeat(np.arange(len(self._lengths)), self._lengths)
        regret = np.cumsum(behind[chosen, under_way], axis=1)[:, self.steps - 1]
        parts = np.split(chosen, self._begins[1:], axis=1)
        return Played(
            name=name,
            learns=learns(policy),
            replay_only=policy.replay_only,
            accuracy=accuracy,
            cost=cost,
            offloaded=offloaded,
            splits=_shares(plays.actions, chosen),
            splits_by_trace=tuple(_shares(plays.actions, part) for part in parts),
            regret=regret,
        )

    def _expected(self, action: Action, alpha: float | None) -> NDArray[np.float64]:
        """(traces,) the expected reward of an action."""
        outcome = self._simulator.outcome(action, alpha)
        worth = np.take_along_axis(self._worth, outcome.column[:, None], axis=1)[:, 0]
        rewards = worth.astype(np.float64) - outcome.cost
        return np.asarray(np.add.reduceat(rewards, self._begins) / np.array(self._lengths))


def _shares(actions: Sequence[Action], chosen: NDArray[np.int64]) -> dict[int, float]:
    """By split, ascending, the share of plays that chose it; those that nobody chose are left out."""
    times = np.bincount(chosen.ravel(), minlength=len(actions)) / chosen.size
    splits: dict[int, float] = {}
    for action, share in sorted(zip(actions, times.tolist(), strict=True), key=lambda pair: pair[0].split):
        splits[action.split] = splits.get(action.split, 0.0) + share
    return {split: share for split, share in splits.items() if share > 0}
