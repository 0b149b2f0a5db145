"""Decisions of the learners: live (choose and update), and compiled over 20 seeds of a replay, one thread.

Beside the compiled replay stand the policy itself in a loop, and plain NumPy that plays all seeds at once. The
samples are drawn at random and seven arms cost what I-SplitEE's MobileNetV2 does; arms, and so the work of an
update, are those that the learner chooses. The clock is the process's own, which other processes do not stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import compare, one_core, parser, ratio_text, write_json
from offramp.policy.base import Action, Context, Observation
from offramp.policy.cost import CostModel
from offramp.policy.forecast import Forecast
from offramp.policy.problem import Problem
from offramp.policy.registry import make_policy
from offramp.policy.ucb import UpperConfidence
from offramp.tables import table_text

DEPTHS = (3, 6, 9, 12, 15, 18, 19)
ALPHA = 0.5
SEEDS = 20
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("i-splitee", {}),
    ("i-splitee", {"audit": 0.1}),
    ("i-splitee", {"published": True}),
    ("i-splitee", {"discount": 0.999}),
    ("i-splitee", {"window": 1000}),
    ("splitee", {}),
    ("uee-ucb", {}),
)
#: Beside them live only: they have no compiled form.
WATCHED: tuple[tuple[str, dict[str, Any]], ...] = (("i-splitee", {"drift": "adwin"}), ("dynamic-split", {}))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "policy-decisions").parse_args(argv)
    core = one_core(torch_too=False)
    rounds, samples = (3, 300) if arguments.quick else (15, 10_000)
    world = _world(samples)
    orders = np.stack([np.random.default_rng(seed).permutation(samples) for seed in range(SEEDS)])
    live = [
        _live(name, options, rounds, samples) for name, options in FORMS + WATCHED if "published" not in options
    ]
    replays = [_replay(name, options, world, orders, rounds) for name, options in FORMS]
    print(_live_table(live))
    print(_replay_table(replays))
    figures = {"core": core, "samples": samples, "seeds": SEEDS, "live": live, "replays": replays}
    print(f"written: {write_json(arguments, figures)}")


def _world(samples: int) -> Problem:
    rng = np.random.default_rng(0)
    confidence = np.clip(rng.uniform(0.1, 0.9, (samples, 7)) + np.linspace(0, 0.3, 7), 0, 1)
    sure = confidence >= ALPHA
    sure[:, -1] = True
    here = np.array([0.1 * depth for depth in DEPTHS])
    prediction = rng.integers(0, 3, (samples, 7)).astype(np.int32)
    return Problem(tuple(range(7)), prediction, confidence, sure, here, here + 0.5)


def _context() -> Context:
    return Context(
        splits=tuple(range(-1, 7)),
        exits=tuple(range(6)),
        last=6,
        thresholds=(ALPHA,) * 6 + (None,),
        modes={},
        mode="float",
        cost=CostModel.in_layers(DEPTHS),
        forecast=Forecast((10.0,) * 7, (0.5,) * 6 + (0.0,), (5.0,) * 7, (10_000,) * 7, 20.0, 8e-4),
    )


# --- live -----------------------------------------------------------------------------------------------


def _live(name: str, options: Mapping[str, Any], rounds: int, samples: int) -> dict[str, Any]:
    """Microseconds of choose and update, the observations made beforehand."""
    world, context = _world(samples), _context()
    policy = make_policy(name, alpha=ALPHA, **options)
    choices = [policy.choose(context)]
    shown: dict[Action, list[Observation]] = {}

    def decisions() -> None:
        for t in range(samples):
            action = policy.choose(context)
            seen = shown.get(action)
            if seen is None:
                seen = shown[action] = [_seen(world, action, i) for i in range(samples)]
            policy.update(action, seen[t])

    def deepest() -> None:
        """The most that an update can have to do: every arm is learned."""
        seen = shown[choices[-1]]
        for t in range(samples):
            policy.choose(context)
            policy.update(choices[-1], seen[t])

    decisions()
    deep = Action(6, (), watch=tuple(range(6)) if getattr(make_policy(name), "watches", True) else ())
    choices.append(deep)
    shown[deep] = [_seen(world, deep, i) for i in range(samples)]
    timings = compare(
        {"chosen": decisions, "deepest": deepest}, rounds=rounds, budget_s=6, clock=time.process_time
    )
    micro = {kind: [1e3 * ms / samples for ms in timing.samples_ms] for kind, timing in timings.items()}
    return {
        "policy": name,
        "options": dict(options),
        **{
            kind: {"median_us": float(np.median(us)), "p10_us": float(np.percentile(us, 10)), "least_us": min(us)}
            for kind, us in micro.items()
        },
    }


def _seen(world: Problem, action: Action, sample: int) -> Observation:
    row, k = world.confidence[sample].tolist(), action.split
    evaluated = sorted({*action.watch, *action.exits, k})
    stays = k == 6 or (bool(action.exits) and row[k] >= ALPHA)
    answer = k if stays else 6
    return Observation(
        confidences={i: row[i] for i in evaluated},
        labels={i: int(world.prediction[sample, i]) for i in evaluated},
        final_confidence=row[6] if answer == 6 else None,
        exit=answer,
        confidence=row[answer],
        offloaded=not stays,
    )


def _learner(name: str, options: Mapping[str, Any]) -> UpperConfidence:
    policy = make_policy(name, alpha=ALPHA, **options)
    assert isinstance(policy, UpperConfidence)
    return policy


# --- replays --------------------------------------------------------------------------------------------


def _replay(
    name: str, options: Mapping[str, Any], world: Problem, orders: NDArray[np.int64], rounds: int
) -> dict[str, Any]:
    policy = _learner(name, options)
    start = time.process_time()
    arms = policy.replay(world, orders)
    first_s = time.process_time() - start
    calls: dict[str, Any] = {"compiled": partial(policy.replay, world, orders)}
    if name == "i-splitee" and "published" in options:
        assert (_in_numpy(world, orders) == arms).mean() > 0.999  # sums in another order may break a tie otherwise
        calls["numpy"] = partial(_in_numpy, world, orders)
    if name == "i-splitee" and not options:
        calls["loop"] = partial(_in_a_loop, world, orders[:1])
    timings = compare(calls, rounds=rounds, budget_s=6, clock=time.process_time)
    decisions = {kind: orders.shape[1] if kind == "loop" else orders.size for kind in calls}
    return {
        "policy": name,
        "options": dict(options),
        "first_call_s": first_s,
        "per_s": {
            kind: [
                float(p) for p in np.percentile([1e3 * decisions[kind] / ms for ms in t.samples_ms], (50, 10, 90))
            ]
            for kind, t in timings.items()
        },
    }


def _in_a_loop(world: Problem, orders: NDArray[np.int64]) -> list[int]:
    """One seed of the policy itself, its observations included."""
    policy, context = _learner("i-splitee", {}), _context()
    chosen = []
    for sample in orders[0]:
        action = policy.choose(context)
        policy.update(action, _seen(world, action, int(sample)))
        chosen.append(action.split)
    return chosen


def _in_numpy(world: Problem, orders: NDArray[np.int64]) -> NDArray[np.int64]:
    """I-SplitEE with the published counterfactuals, all seeds at once, a step at a time."""
    arms = np.arange(7)
    answered = np.where(world.sure, world.confidence, world.confidence[:, -1:])
    reward = answered - np.where(world.sure, world.local_cost, world.offload_cost)
    seeds, steps = orders.shape
    counts, sums = np.zeros((seeds, 7)), np.zeros((seeds, 7))
    chosen = np.empty(orders.shape, np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        for t in range(steps):
            index = np.where(counts, sums / counts + np.sqrt(math.log(t + 1) / counts), np.inf)
            k = index.argmax(axis=1)
            shown = arms <= k[:, None]
            counts += shown
            sums += np.where(shown, reward[orders[:, t]], 0.0)
            chosen[:, t] = k
    return chosen


def _label(case: Mapping[str, Any]) -> str:
    return " ".join([case["policy"], *(f"{key}={value}" for key, value in case["options"].items())])


def _live_table(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            _label(case),
            *(f"{case[kind][key]:.2f}" for kind in ("chosen", "deepest") for key in ("median_us", "p10_us")),
        ]
        for case in cases
    ]
    heads = ["policy", "µs", "p10", "deepest µs", "p10"]
    return table_text("A live decision: choose and update, 7 arms", heads, rows)


def _replay_table(cases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in cases:
        rates = case["per_s"]
        ours = rates["compiled"][0]
        others = [
            f"{rates[kind][0] / 1e6:.3f} ({ratio_text(ours / rates[kind][0])})" if kind in rates else "-"
            for kind in ("numpy", "loop")
        ]
        low, high = (f"{rate / 1e6:.1f}" for rate in rates["compiled"][1:])
        rows.append([_label(case), f"{ours / 1e6:.1f} ({low}-{high})", *others, f"{case['first_call_s']:.1f}"])
    heads = ["policy", "compiled", "numpy", "policy in a loop", "first call s"]
    caption = "million decisions a second, medians (10th to 90th percentile); in brackets how much faster ours is"
    return table_text(f"A replay of {SEEDS} seeds, 7 arms, one thread", heads, rows, caption=caption)


if __name__ == "__main__":
    main()
