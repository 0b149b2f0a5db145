"""A replay as a table in text, and as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.interval import interval
from offramp.replay.replay import Replay
from offramp.replay.scores import Played
from offramp.tables import table_text

__all__ = ["intervals", "replay_figures", "replay_table", "shown_name"]

#: Smaller shares would be printed as 0.0 %.
_SHOWN = 0.0005


def replay_table(found: Replay, *, title: str = "Replay") -> str:
    """One row per policy: means over runs, each with half of its 95 % interval where runs differ."""
    heads = ["policy", "accuracy %", "cost", "offloaded %", "final regret", "splits chosen"]
    rows = []
    for played in found.played:
        splits = ", ".join(f"{k}: {share:.1%}" for k, share in played.splits.items() if share >= _SHOWN)
        rows.append(
            [
                shown_name(played, found),
                "-" if played.accuracy is None else _span(100 * played.accuracy, 2),
                _span(played.cost, 4),
                _span(100 * played.offloaded, 1),
                _span(played.regret[:, -1], 1),
                splits,
            ]
        )
    # A column that says nothing of any policy is left out.
    shown = [i for i in range(len(heads)) if {row[i] for row in rows} not in ({"-"}, {"0.0"})]
    rows = [[row[i] for i in shown] for row in rows]
    return table_text(title, [heads[i] for i in shown], rows, caption=_caption(found))


def shown_name(played: Played, found: Replay) -> str:
    """A policy's name, with what a reader has to know of it."""
    last = found.traces[0].meta.exits[-1]
    best = "edge-only" if found.best == last else f"split-{found.best}"
    told = [
        what
        for what, holds in (
            ("the final exit", played.name == "edge-only"),
            ("best fixed arm", played.name == best),
            ("sees hidden answers", played.replay_only),
        )
        if holds
    ]
    return f"{played.name} ({', '.join(told)})" if told else played.name


def replay_figures(found: Replay) -> dict[str, Any]:
    """The same and more as JSON values: every run's figures, and regret over time."""
    cost = found.cost
    return {
        "data": [
            {"trace": t.meta.bundle, "data": t.meta.data, "distortion": t.meta.distortion, "samples": len(t)}
            for t in found.traces
        ],
        "exits": list(found.traces[0].meta.exits),
        "runs": found.seeds,
        "seed": found.seed,
        "alpha": found.alpha,
        "reward": found.reward,
        "cost": asdict(cost),
        "best_fixed_arm": found.best,
        "arm_rewards": {str(k): value for k, value in found.arm_rewards.items()},
        "steps": found.steps.tolist(),
        "policies": [
            {
                "name": played.name,
                "published": played.replay_only,
                "accuracy": None if played.accuracy is None else _figures(played.accuracy),
                "cost": _figures(played.cost),
                "offloaded": _figures(played.offloaded),
                "regret": _figures(played.regret[:, -1]),
                "regret_over_time": {
                    "mean": played.regret.mean(axis=0).tolist(),
                    "interval": intervals(played.regret).tolist(),
                },
                "splits": {str(k): share for k, share in played.splits.items()},
            }
            for played in found.played
        ],
    }


def intervals(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half of the 95 % interval of the mean over runs, of every column of (runs, …)."""
    return np.array([interval(column) for column in runs.T.tolist()])


def _figures(runs: NDArray[np.float64]) -> dict[str, Any]:
    return {"mean": float(runs.mean()), "interval": interval(runs.tolist()), "runs": runs.tolist()}


def _span(runs: NDArray[np.float64], digits: int) -> str:
    half = f"{interval(runs.tolist()):.{digits}f}"
    return f"{runs.mean():.{digits}f}" + (f" ± {half}" if float(half) else "")


def _caption(found: Replay) -> str:
    cost = found.cost
    samples = ", then ".join(
        f"{len(trace):,} samples of {trace.meta.data or trace.meta.bundle}"
        + (f" ({trace.meta.distortion})" if trace.meta.distortion else "")
        for trace in found.traces
    )
    worth = "the answering exit's confidence" if found.reward == "confidence" else "1 if right"
    gates = "" if found.traces[0].confidence is None else f"; gates at {_alphas(found.alpha)}"
    return (
        f"{samples}; {found.seeds} runs, each in an order of its own: mean ± half of the 95 % interval. Cost "
        f"{cost.words}{gates}. Reward: {worth}, less the cost; regret "
        f"against always split {found.best}, the best fixed arm: expected rewards, summed over the run"
    )


def _alphas(alpha: float | tuple[float, ...]) -> str:
    return f"{alpha:g}" if isinstance(alpha, float | int) else ", ".join(f"{a:g}" for a in alpha)
