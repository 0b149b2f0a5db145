"""UEE-UCB on published predictions (arXiv 2209.09480): choosing an exit without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from offramp.datasets.source import given_folder
from offramp.errors import DatasetError
from offramp.policy.base import Action, Context, Observation, Policy
from offramp.policy.cost import CostModel
from offramp.policy.registry import make_policy
from offramp.replay.comparisons import comparisons
from offramp.replay.play import Maker
from offramp.replay.replay import Replay, replay
from offramp.replay.table import read_table
from offramp.replay.trace import Trace
from offramp.report.live import stage_progress
from offramp.report.regret import replay_picture
from offramp.report.replaying import replay_figures, replay_table
from offramp.reproduce.study import origin, write_study
from offramp.tables import table_text

__all__ = ["PlayedFirst", "UeeSettings", "study_uee"]

FIRST = "uee-ucb, exit 0 first"
_FILE = "imdb_elasticbert_4exits.csv"
_WHERE = (
    "https://github.com/MLiONS/MutiExitDNNs, Model_Exit_Predictions/Exit_Predictions_TrainDevTest_IMDb_4exits.csv"
)


@dataclass(frozen=True)
class UeeSettings:
    """What to study.

    Attributes:
        trace: A table of predictions with the true class last; IMDb's in `$OFFRAMP_DATA/traces` if left out.
        depths: Per exit, the layers on the path to it; the last exit's cost is 1, the others' their share of it.
        seeds: Runs.
        out: Where tables, pictures and figures go.
    """

    trace: Path | None
    depths: tuple[int, ...]
    seeds: int
    out: Path


class PlayedFirst(Policy):
    """Another policy, but for the first input, on which a given exit answers.

    Args:
        policy: Chooses from the second input on; it learns from the first as well.
        exit_index: The exit that is played first.
    """

    def __init__(self, policy: Policy, exit_index: int) -> None:
        self.policy, self.name, self.alpha = policy, f"{policy.name}, exit {exit_index} first", policy.alpha
        self._first: int | None = exit_index

    def choose(self, context: Context) -> Action:
        """The exit on the first input, with its gate; then what the policy says."""
        action, first = self.policy.choose(context), self._first
        if first is None:
            return action
        self._first = None
        return context.action(first, context.gate(first), tuple(e for e in context.exits if e < first))

    def update(self, action: Action, observation: Observation) -> None:
        """Passed on to the policy."""
        self.policy.update(action, observation)


def study_uee(settings: UeeSettings, console: Console) -> tuple[list[str], list[Path]]:
    """Replays UEE-UCB beside every fixed exit and a random one; gives tables, and the files written.

    Raises:
        DatasetError: No table of predictions is found.
        ConfigError: Depths or seeds that cannot be, or a folder that cannot be written to.
        TraceError: A table that cannot be read, or has no true classes.
    """
    trace = read_table(_path(settings.trace), settings.depths)
    cost = CostModel.in_layers(settings.depths, gamma=1 / settings.depths[-1], offload=0.0)
    facts = exit_facts(trace, cost)
    policies: dict[str, Maker] = {
        **comparisons(trace, offload=False),
        "uee-ucb": partial(_uee, None),
        FIRST: partial(_uee, 0),
    }
    with stage_progress(console, "replaying", settings.seeds * len(policies)) as on_runs:
        found = replay([trace], policies, cost=cost, reward="accuracy", seeds=settings.seeds, on_runs=on_runs)
    tables = [exits_table(facts, trace), replay_table(found, title="UEE-UCB and what it is compared with")]
    said = sentences(found, facts)
    name = "uee-imdb" if settings.trace is None else f"uee-{settings.trace.stem}"
    command = (
        "offramp reproduce uee"
        + ("" if settings.trace is None else f" --trace {settings.trace.name}")
        + f" --depths {','.join(map(str, settings.depths))} --seeds {settings.seeds}"
    )
    shown = "\n\n".join(f"```text\n{table}\n```" for table in [*tables, "\n".join(said)])
    text = f"# Choosing an exit without labels: UEE-UCB\n\n`{command}`\n\n{shown}\n\n![regret]({name}.svg)\n"
    figures = {"origin": origin(command), "exit_facts": facts, **replay_figures(found)}
    written = write_study(settings.out, name, text=text, pictures={name: replay_picture(found)}, figures=figures)
    return [*tables, "\n".join(said)], written


def exit_facts(trace: Trace, cost: CostModel) -> list[dict[str, Any]]:
    """Per exit its error and cost, and how often it disagrees with the first, which is what UEE-UCB can see."""
    error = 1 - np.array(trace.accuracy)
    differs = (trace.prediction != trace.prediction[:, :1]).mean(axis=0)
    return [
        {
            "exit": e,
            "depth": trace.meta.depths[e],
            "cost": cost.paid(e, False),
            "error": float(error[e]),
            "better_than_first": float(error[0] - error[e]),
            "disagrees_with_first": float(differs[e]),
        }
        for e in trace.meta.exits
    ]


def exits_table(facts: Sequence[dict[str, Any]], trace: Trace) -> str:
    """The facts as a table."""
    heads = ["exit", "depth", "cost", "error", "error + cost", "better than exit 0 by", "disagrees with exit 0"]
    rows = [
        [
            str(f["exit"]),
            str(f["depth"]),
            f"{f['cost']:.4f}",
            f"{f['error']:.4f}",
            f"{f['error'] + f['cost']:.4f}",
            f"{f['better_than_first']:.4f}",
            f"{f['disagrees_with_first']:.4f}",
        ]
        for f in facts
    ]
    right = trace.prediction == trace.label[:, None]
    broken = float((right[:, :-1] & ~right[:, 1:]).any(axis=1).mean())
    caption = (
        f"{len(trace):,} samples. Under strong dominance the last two columns would be the same; an exit that is "
        f"right is followed by one that is wrong on {broken:.2%} of the samples"
    )
    return table_text(f"Exits of {trace.meta.data}", heads, rows, caption=caption)


def sentences(found: Replay, facts: Sequence[dict[str, Any]]) -> list[str]:
    """What was found, in words."""
    by_name = {played.name: played for played in found.played}
    rewards = found.arm_rewards
    worst = min(rewards, key=rewards.__getitem__)
    learned, random = by_name["uee-ucb"], by_name["random"]
    assert learned.accuracy is not None
    assert random.accuracy is not None
    seen = max(facts, key=lambda f: f["disagrees_with_first"] - f["cost"])
    share = learned.splits.get(found.best, 0.0)
    regret, others = learned.regret.mean(axis=0), random.regret.mean(axis=0)
    half = int(np.searchsorted(found.steps, found.steps[-1] / 2))
    return [
        f"the best fixed exit by error + cost is exit {found.best}; by disagreement, which needs no labels, it is "
        f"exit {seen['exit']}",
        f"UEE-UCB plays exit {found.best} on {share:.2%} of the samples: accuracy {learned.accuracy.mean():.4f} "
        f"at mean cost {learned.cost.mean():.4f}; a random exit {random.accuracy.mean():.4f} at "
        f"{random.cost.mean():.4f}",
        f"regret against always exit {found.best} after {found.steps[-1]:,} samples: {regret[-1]:.1f}, a random "
        f"exit's {others[-1]:.1f}; {regret[half]:.1f} of UEE-UCB's come from the first half",
        f"with the worst exit by error + cost, {worst}, played first, always exit {found.best} has a regret of "
        f"{rewards[found.best] - rewards[worst]:.3f}; UEE-UCB plays the last exit first by itself. With exit 0, "
        f"which has the most errors, played first: {by_name[FIRST].regret[:, -1].mean():.1f}",
    ]


def _uee(first: int | None, seed: int) -> Policy:
    policy = make_policy("uee-ucb", seed=seed)
    return policy if first is None else PlayedFirst(policy, first)


def _path(given: Path | None) -> Path:
    if given is not None:
        return given
    folder = given_folder("traces")
    if folder is None or not (folder / _FILE).is_file():
        raise DatasetError(
            f"there is no traces/{_FILE} in the folder that OFFRAMP_DATA names; get it from {_WHERE}, and give it "
            "by --trace FILE --depths 1,3,7,12"
        )
    return folder / _FILE
