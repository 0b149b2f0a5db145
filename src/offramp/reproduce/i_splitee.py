"""I-SplitEE, SplitEE and SplitEE-S on recorded traces under distortion (arXiv 2401.10541, 2309.09195)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from offramp.errors import ConfigError
from offramp.interval import interval
from offramp.policy.compiled import need_compiler
from offramp.policy.cost import CostModel
from offramp.report.levels import Line, Place, change_picture, levels_picture, regret_and_planes
from offramp.report.live import stage_progress
from offramp.report.replaying import intervals
from offramp.reproduce.bars import BARS, LOST, SAVED, compared, said, signed
from offramp.reproduce.change import Change, change_facts, change_table, changed, sentence
from offramp.reproduce.gates import Gates, facts, gates_of, gates_table
from offramp.reproduce.hindsight import reach
from offramp.reproduce.level_tables import averages_table, bars_of, bars_table, levels_table, standing
from offramp.reproduce.levels import AUDITED, BEST, JUDGED, LEARNER, Averaged, Setting, play_levels, policies
from offramp.reproduce.measured import Measured, measured, measured_sentences, measured_table
from offramp.reproduce.recorded import NETWORKS, Recorded, recorded
from offramp.reproduce.study import origin, write_study
from offramp.reproduce.traces import DISTORTIONS

__all__ = ["ISplitEESettings", "study_i_splitee"]

#: γ, the cost per layer; o goes from γ to 5γ.
GAMMA = 0.1
OFFLOADS = (1, 2, 3, 4, 5)
#: Policies that are no arms, with which a learner has to be compared.
_RIVALS = ("split-0-all", "server-only", "cascade")
#: Of a quick look: samples per trace, runs, every so manieth level, offload costs.
_QUICK = (400, 2, 6, (1, 5))
#: Places in a run at which pictures and figures keep regret.
_KEPT = 50

#: Runs where cost is measured; dynamic split is replayed input by input.
_MEASURED_RUNS = 5

#: Costs by o in γ; exits' depths come first.
Priced = Callable[[tuple[int, ...], int], CostModel]


@dataclass(frozen=True)
class ISplitEESettings:
    """What to study.

    Attributes:
        traces: The folder of the traces.
        seeds: Runs at each level.
        out: Where tables, pictures and figures go.
        quick: A look at whether it runs: few samples, levels, costs and runs.

    Raises:
        ConfigError: Fewer than one run, or a file where a folder has to be.
    """

    traces: Path = Path("docs/evidence/traces")
    seeds: int = 20
    out: Path = Path("docs/evidence")
    quick: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"a study needs at least one run, not {self.seeds}")
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out} is a file; give a directory")


@dataclass(frozen=True, eq=False)
class Found:
    """What a network's traces gave.

    Attributes:
        recorded: The traces.
        gates: The choices of gates.
        settings: By gates, a setting per offload cost.
        change: The run whose world changes.
        measured: Undistorted images where milliseconds are what costs, under the first gates.
    """

    recorded: Recorded
    gates: Sequence[Gates]
    settings: Sequence[Sequence[Setting]]
    change: Change
    measured: Sequence[Measured]


def papers_cost(depths: tuple[int, ...], offload: int) -> CostModel:
    """I-SplitEE's cost: γ per layer, `offload` times γ per cut sent; heads are free."""
    return CostModel.in_layers(depths, gamma=GAMMA, offload=GAMMA * offload)


def study_i_splitee(
    settings: ISplitEESettings, console: Console, priced: Priced = papers_cost
) -> tuple[list[str], list[Path]]:
    """Replays the learners beside all that they are compared with; gives tables, and the files written.

    Args:
        settings: What to study.
        console: Gets the progress.
        priced: What things cost, by the exits' depths and o in γ; linear in o.

    Raises:
        ConfigError: Settings that cannot be, or a folder that cannot be written to.
        MissingExtraError: Numba is not installed.
        TraceError: Traces that are missing, or do not belong together.
    """
    need_compiler()
    limit, seeds, every, offloads = _QUICK if settings.quick else (None, settings.seeds, 1, OFFLOADS)
    distortions = DISTORTIONS[::every]
    networks = [recorded(settings.traces, network, distortions, limit) for network in NETWORKS]
    shown: list[str] = []
    written: list[Path] = []
    command = "offramp reproduce i-splitee" + (" --quick" if settings.quick else f" --seeds {seeds}")
    if settings.traces != ISplitEESettings.traces:
        command += f" --traces {settings.traces.name}"
    for one in networks:
        gates = gates_of(one)
        total = seeds * len(distortions) * len(offloads) * len(gates) * len(policies(one.plain))
        with stage_progress(console, one.network.title, total) as on_runs:
            found = _played(one, gates, offloads, seeds, partial(priced, one.depths), on_runs)
        name = f"i-splitee-{one.network.name}" + ("-quick" if settings.quick else "")
        tables = _tables(found)
        shown += tables
        written += _written(found, tables, settings.out, name, command)
    return shown, written


def _played(
    one: Recorded,
    gates: Sequence[Gates],
    offloads: Sequence[int],
    seeds: int,
    cost: Callable[[int], CostModel],
    on_runs: Callable[[int], None],
) -> Found:
    settings = [
        [play_levels(one.levels, g, f"{o}γ" if o > 1 else "γ", cost(o), seeds, on_runs) for o in offloads]
        for g in gates
    ]
    plays = measured(gates[0].on(one.plain), min(seeds, _MEASURED_RUNS))
    return Found(one, gates, settings, changed(one, gates[0], cost, seeds), plays)


def _tables(found: Found) -> list[str]:
    title = found.recorded.network.title
    tables = [gates_table(found.gates, found.recorded)]
    for settings in found.settings:
        name = settings[0].gates.name
        tables.append(bars_table(f"{title}, gates {name}: what the learners reach", settings))
        tables.append(averages_table(f"{title}, gates {name}: everybody", settings))
        last = settings[-1]
        tables.append(levels_table(f"{title}, gates {name}, o = {last.label}: level by level", last))
    tables.append(change_table(found.change, f"{title}: a world that changes half-way"))
    tables.append(measured_table(f"{title}: once cost is measured", found.measured, found.gates[0].name))
    tables.append("\n".join(sentences(found)))
    return tables


def sentences(found: Found) -> list[str]:
    """Every bar, at which costs it holds, and what simple ways are beside it: for each choice of gates."""
    one, lines = found.recorded, []
    title = one.network.title
    for settings in found.settings:
        for name in JUDGED:
            judged = [{v.bar: v for v in bars_of(s, name)} for s in settings]
            for bar, words in BARS.items():
                stands = [
                    (s.label, "holds" if v[bar].holds else "DOES NOT HOLD", v[bar].figures)
                    for s, v in zip(settings, judged, strict=True)
                ]
                lines.append(said(f"{title}, gates {settings[0].gates.name}, {name}: {words}", stands))
        for rival in (r for r in _RIVALS if r in settings[0].policies):
            beside = []
            for s in settings:
                other = standing(s, rival)
                figures = f"cost {signed(-100 * other.saved, 1)} %, {signed(other.points, 2)} points"
                beside.append((s.label, compared(standing(s, AUDITED), other), figures))
            lines.append(said(f"{title}, gates {settings[0].gates.name}, {rival} beside {AUDITED}", beside))
    most = [(s.label, reach(one.levels.values(), s.cost, LOST)) for s in found.settings[0]]
    told = [
        (
            label,
            "within reach" if m.saved >= SAVED else "OUT OF EVERY FIXED ARM'S REACH",
            f"{m.saved:.1%}, exit {m.exit}",
        )
        for label, m in most
    ]
    what = f"the most that one exit with one threshold at all levels saves at {LOST:g} points, known in hindsight"
    lines.append(said(f"{title}, {what}, against {SAVED:.0%}", told))
    lines += [f"{title}: {_best_arms(found)}", *measured_sentences(title, found.measured)]
    return [*lines, f"{title}: {sentence(found.change)}"]


def in_short(found: Found) -> list[str]:
    """A line per choice of gates: what learners and simple ways save, from the first offload cost to the last."""
    lines = []
    for settings in found.settings:
        told = []
        for name in (*JUDGED, *_RIVALS):
            saved = [signed(-100 * s.saved(name), 1) for s in settings]
            points = [signed(s.points(name), 2) for s in settings]
            told.append(f"{name} {saved[0]} to {saved[-1]} % of the cost at {points[0]} to {points[-1]} points")
        lines.append(
            f"Gates {settings[0].gates.name}, o = {settings[0].label} to {settings[-1].label}: {'; '.join(told)}"
        )
    return lines


def _best_arms(found: Found) -> str:
    arms = sorted({arm for settings in found.settings for s in settings for arm in s.best})
    if len(arms) == 1:
        return (
            f"arm {arms[0]} is the best fixed arm at every level, for every choice of gates and every offload "
            "cost played: these costs leave nothing to adapt to, and a learner can only find that arm quickly"
        )
    return f"the best fixed arms over levels, gates and offload costs are {', '.join(map(str, arms))}"


def _written(found: Found, tables: Sequence[str], out: Path, name: str, command: str) -> list[Path]:
    one, last = found.recorded, [settings[-1] for settings in found.settings]
    runs = last[0].final.accuracy.shape[1]
    files = {name: _picture(last), f"{name}-levels": _levels(last[0]), f"{name}-change": _change(found.change)}
    *shown, verdict = tables
    text = [f"# I-SplitEE on {one.network.title}'s traces, CIFAR-10 under noise and blur", "", f"`{command}`", ""]
    depths = ", ".join(map(str, one.depths))
    text += [
        f"{len(one.plain):,} test images at each of {len(one.levels)} levels, {runs} runs; cost γ·depth, and o "
        f"more if anything is sent, γ = {GAMMA:g}; depths {depths}. SplitEE and SplitEE-S are played on these "
        "traces: their own paper's tables are of ElasticBERT, and are not repeated here.",
        "",
        "## In short",
        "Against the final exit, averaged over the levels; the first table says which gates are which.",
        "",
        *(f"- {line}" for line in in_short(found)),
        "",
        "## Every bar",
        *(f"- {line}" for line in verdict.splitlines()),
        "",
        "## Tables",
    ]
    for table in shown:
        text += ["```text", table, "```", ""]
    text += [line for file in files for line in (f"![{file}]({file}.svg)", "")]
    figures = {
        "origin": origin(command),
        "network": one.network.title,
        "digest": one.plain.meta.digest,
        "depths": list(one.depths),
        "runs": runs,
        "gamma": GAMMA,
        "levels": list(one.levels),
        "gates": facts(found.gates),
        "settings": [_facts(s, s is settings[-1]) for settings in found.settings for s in settings],
        "measured": [m.to_dict() for m in found.measured],
        "change": change_facts(found.change),
        "said": verdict.splitlines(),
    }
    return write_study(out, name, text="\n".join(text), pictures=files, figures=figures)


def _picture(last: Sequence[Setting]) -> str:
    first = last[0]
    kept = _places(first.steps)
    drawn = [name for name in first.policies if name != BEST and not name.startswith("splitee-s")]
    lines = []
    for p in (first.policies[name] for name in drawn):
        regret = p.regret[:, kept]
        lines.append(Line(p.name, regret.mean(axis=0), intervals(regret), p.learns, p.replay_only))
    planes = {
        f"gates {s.gates.name}, o = {s.label}": [
            Place(p.name, float(p.cost.mean()), 100 * float(p.accuracy.mean()), p.learns, p.replay_only)
            for p in (s.policies[name] for name in drawn)
        ]
        for s in last
    }
    return regret_and_planes(first.steps[kept], lines, planes, f"gates {first.gates.name}, o = {first.label}")


def _levels(setting: Setting) -> str:
    names = (LEARNER, BEST, "edge-only", "random", "split-0-all", "server-only", "cascade")
    chosen = [setting.policies[name] for name in names if name in setting.policies]
    return levels_picture(
        setting.levels,
        {p.name: p.cost.mean(axis=1) for p in chosen},
        {p.name: 100 * p.accuracy.mean(axis=1) for p in chosen},
        f"gates {setting.gates.name}, o = {setting.label}",
    )


def _change(change: Change) -> str:
    kept, lines = _places(change.found.steps), []
    for played in change.found.played:
        regret = change.regret(played)[:, kept]
        lines.append(Line(played.name, regret.mean(axis=0), intervals(regret), played.learns, played.replay_only))
    return change_picture(change.found.steps[kept], lines, len(change.found.traces[0]), change.levels)


def _places(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which places in a run pictures and figures keep."""
    return np.unique(np.linspace(0, len(steps) - 1, _KEPT).astype(np.int64))


def _facts(setting: Setting, over_time: bool) -> dict[str, Any]:
    kept = _places(setting.steps)

    def told(policy: Averaged) -> dict[str, Any]:
        found: dict[str, Any] = {
            "published": policy.replay_only,
            "accuracy": _span(policy.accuracy),
            "cost": _span(policy.cost),
            "offloaded": _span(policy.offloaded),
            "regret": _span(policy.level_regret),
            "by_level": {
                "accuracy": np.round(policy.accuracy.mean(axis=1), 4).tolist(),
                "cost": np.round(policy.cost.mean(axis=1), 4).tolist(),
            },
        }
        if over_time:
            found["regret_over_time"] = np.round(policy.regret.mean(axis=0)[kept], 1).tolist()
        return found

    return {
        "gates": setting.gates.name,
        "o": setting.label,
        "offload": setting.cost.sends[0],
        "best_fixed_arms": list(setting.best),
        "bars": {name: {v.bar: v.holds for v in bars_of(setting, name)} for name in JUDGED},
        **({"steps": setting.steps[kept].tolist()} if over_time else {}),
        "policies": {name: told(policy) for name, policy in setting.policies.items()},
    }


def _span(levels: NDArray[np.float64]) -> dict[str, float]:
    runs = levels.mean(axis=0)
    return {"mean": round(float(runs.mean()), 5), "interval": round(interval(runs.tolist()), 5)}
