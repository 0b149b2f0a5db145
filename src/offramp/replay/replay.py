"""Replays policies on recorded traces: many runs in shuffled order, and what each came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError, TraceError
from offramp.policy.cost import CostModel, MeasuredCost
from offramp.policy.forecast import Forecast
from offramp.replay.play import Maker, play
from offramp.replay.scores import Played, Reward, Scores
from offramp.replay.simulator import Simulator
from offramp.replay.trace import Trace

__all__ = ["Replay", "replay"]


@dataclass(frozen=True, eq=False)
class Replay:
    """What several policies came to on the same runs.

    Attributes:
        played: One per policy, in the order asked.
        steps: (points,) after how many samples each regret stands.
        best: The best fixed arm in hindsight, as a split.
        arm_rewards: By arm its expected reward.
        reward: What an answer is worth.
        cost: What things cost.
        alpha: The gates' threshold, for policies that bring none.
        traces: What was played on, in this order.
        seeds: How many runs.
        seed: The first run's.
    """

    played: tuple[Played, ...]
    steps: NDArray[np.int64]
    best: int
    arm_rewards: Mapping[int, float]
    reward: Reward
    cost: CostModel
    alpha: float | tuple[float, ...]
    traces: tuple[Trace, ...]
    seeds: int
    seed: int


def replay(
    traces: Sequence[Trace],
    policies: Mapping[str, Maker],
    *,
    cost: CostModel | MeasuredCost | None = None,
    forecast: Forecast | None = None,
    alpha: float | tuple[float, ...] | None = None,
    reward: Reward | None = None,
    seeds: int = 20,
    seed: int = 0,
    on_runs: Callable[[int], None] = lambda runs: None,
) -> Replay:
    """Plays every policy on the same runs.

    A run sees every sample once, in an order of its own; several traces follow one another, so that the world
    changes where one ends. Policies are asked and told as by an edge (`Simulator`), or play by their compiled
    form where they have one.

    Args:
        traces: With the same exits and depths each.
        policies: By name, from a seed.
        cost: What things cost, or what is weighed of what the forecast says; the papers' units at the traces'
            depths if left out.
        forecast: What stages and the link take, as `forecast_of` makes it; for measured cost, and for policies
            that choose by it.
        alpha: The threshold of every early exit, or one each, for policies that bring none; 0.5 if left out, or
            0 where there are no confidences.
        reward: What an answer is worth; its confidence where there are confidences, if left out.
        seeds: How many runs.
        seed: The first run's, for its order and its policy; the next run's is one more.
        on_runs: Told how many runs of any policy have been played since it was last told.

    Raises:
        ConfigError: No traces or policies, what makes no policy, fewer than one run, or thresholds, costs or
            rewards that cannot be.
        TraceError: Traces that do not go together or have no early exit, fewer samples than exits, rewards of
            accuracy without labels, or a policy that asks for confidences where there are none.
        ActionError: A policy that chose what no edge with these exits can do.
    """
    if not traces or not policies:
        raise ConfigError("a replay needs at least one trace and one policy")
    for name, make in policies.items():
        if not callable(make):
            raise ConfigError(f"{name!r} is to be a function that makes a policy from a seed, not {make!r}")
    if seeds < 1 or seed < 0:
        raise ConfigError(f"a replay needs at least one run, and seeds from 0; not {seeds} and {seed}")
    trace, lengths = _joined(traces), tuple(map(len, traces))
    chosen_alpha = alpha if alpha is not None else 0.0 if trace.confidence is None else 0.5
    if isinstance(cost, MeasuredCost):
        if forecast is None:
            raise ConfigError(
                "cost measured in latency, payload and energy needs to know the link (--rate): a forecast, as "
                "`forecast_of` makes it"
            )
        cost = cost.prices(forecast).model(forecast)
    simulator = Simulator(trace, cost, chosen_alpha, forecast)
    scores = Scores(simulator, lengths, reward)
    orders = _orders(lengths, seeds, seed)
    played = []
    for name, make in policies.items():
        plays = play(simulator, make, orders, seed, on_runs)
        played.append(scores.of(name, make(seed), plays, orders))
    return Replay(
        played=tuple(played),
        steps=scores.steps,
        best=scores.best,
        arm_rewards=scores.arm_rewards,
        reward=scores.reward,
        cost=simulator.context.cost,
        alpha=chosen_alpha,
        traces=tuple(traces),
        seeds=seeds,
        seed=seed,
    )


def _joined(traces: Sequence[Trace]) -> Trace:
    """The traces as one; its costs are the first's."""
    first = traces[0]
    for other in traces[1:]:
        for name in ("exits", "depths", "confidence"):
            ours, theirs = getattr(first.meta, name), getattr(other.meta, name)
            if ours != theirs:
                raise TraceError(f"traces of different networks: {name} {ours} and {theirs}")
        if (first.confidence is None) != (other.confidence is None):
            raise TraceError("of these traces some have confidences and some have none")
    confidences = [t.confidence for t in traces if t.confidence is not None]
    return replace(
        first,
        prediction=np.concatenate([t.prediction for t in traces]),
        confidence=np.concatenate(confidences) if confidences else None,
        label=np.concatenate([t.label for t in traces]),
    )


def _orders(lengths: Sequence[int], seeds: int, seed: int) -> NDArray[np.int64]:
    """(runs, samples): each trace shuffled in itself, by the run's seed."""
    runs = []
    for run in range(seeds):
        rng, begin, order = np.random.default_rng(seed + run), 0, []
        for n in lengths:
            order.append(begin + rng.permutation(n))
            begin += n
        runs.append(np.concatenate(order))
    return np.stack(runs).astype(np.int64)
