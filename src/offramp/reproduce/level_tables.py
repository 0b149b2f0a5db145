"""Tables of policies at several levels and costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offramp.interval import interval
from offramp.reproduce.bars import BARS, Standing, Verdict, signed, verdicts
from offramp.reproduce.levels import BEST, LEARNER, Averaged, Setting
from offramp.tables import table_text

__all__ = ["averages_table", "bars_of", "bars_table", "levels_table", "shown", "standing"]


def standing(setting: Setting, name: str) -> Standing:
    """Where a policy stands, averaged over the levels."""
    regret = float(setting.policies[name].level_regret.mean())
    return Standing(setting.saved(name), setting.points(name), regret)


def bars_of(setting: Setting, name: str = LEARNER) -> list[Verdict]:
    """Which bars a learner reached."""
    arms = {arm: standing(setting, arm) for arm in setting.arms}
    return verdicts(standing(setting, name), arms, standing(setting, "random"))


def shown(policy: Averaged) -> str:
    """A policy's name, with what a reader has to know of it."""
    if policy.name == "edge-only":
        return "edge-only (the final exit)"
    return policy.name + (" (sees hidden answers)" if policy.replay_only and policy.learns else "")


def bars_table(title: str, settings: Sequence[Setting]) -> str:
    """One row per learner and offload cost: what it saves and loses, and which bars it reaches."""
    rows = []
    for name in (p.name for p in settings[0].policies.values() if p.learns):
        for setting in settings:
            policy, at = setting.policies[name], standing(setting, name)
            found = {v.bar: "yes" if v.holds else "NO" for v in bars_of(setting, name)}
            share = at.regret / max(standing(setting, "random").regret, 1e-9)
            half = interval((100 * policy.accuracy.mean(axis=0)).tolist())
            rows.append(
                [
                    shown(policy) if setting is settings[0] else "",
                    setting.label,
                    signed(-100 * at.saved, 1),
                    f"{signed(at.points, 2)} ± {half:.2f}",
                    f"{at.regret:.0f}",
                    f"{share:.1%}",
                    *found.values(),
                ]
            )
    heads = ["policy", "o", "cost %", "points", "regret", "of random's"]
    heads += ["cost", "accuracy", "not dominated", "regret", "paper's claim"]
    caption = (
        f"averages over {len(settings[0].levels)} levels; cost and points (± half of the 95 % interval over "
        "runs): against the final exit; regret: at the end, against each level's best fixed arm; then the bars: "
        f"{'; '.join(BARS.values())}. An arm dominates if it is as cheap and as accurate, and better in one of "
        "them. Heads are free in these costs, so splitee-s, with the same gates, does what i-splitee does"
    )
    return table_text(title, heads, rows, caption=caption)


def averages_table(title: str, settings: Sequence[Setting]) -> str:
    """One row per policy: what it saves at every offload cost, what it loses at the least and at the highest."""
    first, last = settings[0], settings[-1]
    heads = ["policy", *(f"cost % at {s.label}" for s in settings)]
    heads += [f"{what} at {s.label}" for what in ("points", "regret") for s in (first, last)]
    rows = []
    for name, policy in first.policies.items():
        rows.append(
            [
                shown(policy),
                *(signed(-100 * s.saved(name), 1) for s in settings),
                *(signed(s.points(name), 2) for s in (first, last)),
                *(f"{s.policies[name].level_regret.mean():.0f}" for s in (first, last)),
            ]
        )
    caption = (
        f"averages over {len(first.levels)} levels against the final exit, which costs "
        f"{first.final.cost.mean():.4g} and is right on {100 * first.final.accuracy.mean():.2f} %"
    )
    return table_text(title, heads, rows, caption=caption)


def levels_table(title: str, setting: Setting) -> str:
    """One row per level: I-SplitEE beside the best fixed arm, and the simple ways."""
    heads = ["level", "final %", "arm"]
    names = {LEARNER: "I-SplitEE", BEST: "best arm", "split-0-all": "split-0-all", "cascade": "cascade"}
    known = {name: short for name, short in names.items() if name in setting.policies}
    for short in known.values():
        heads += [f"{short} %", "cost"]
    heads += ["regret", "random's"]
    rows = []
    for i, level in enumerate(setting.levels):
        row = [level, f"{100 * setting.final.accuracy[i].mean():.2f}", str(setting.best[i])]
        for name in known:
            policy = setting.policies[name]
            row += [f"{100 * policy.accuracy[i].mean():.2f}", f"{policy.cost[i].mean():.3f}"]
        row += [f"{setting.policies[name].level_regret[i].mean():.0f}" for name in (LEARNER, "random")]
        rows.append(row)
    sent = float(np.mean(setting.policies["server-only"].cost))
    caption = (
        f"arm: the best fixed one at this level; sending the input costs {sent:.3g} at the final exit's accuracy"
    )
    return table_text(title, heads, rows, caption=caption)
