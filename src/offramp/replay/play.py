"""Plays one policy on recorded samples: by its compiled form, or asked and told input by input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from offramp.errors import MissingExtraError
from offramp.policy.base import Action, Policy
from offramp.policy.problem import Problem
from offramp.policy.splitting import SplitLearner
from offramp.policy.ucb import UpperConfidence
from offramp.replay.simulator import Simulator

__all__ = ["Maker", "Plays", "learns", "play"]

#: A fresh policy from a seed.
Maker = Callable[[int], Policy]


@dataclass(frozen=True, eq=False)
class Plays:
    """What a policy chose.

    Attributes:
        actions: The actions that occurred.
        chosen: (runs, samples) indices into them, in the order of play.
        alpha: The policy's threshold; None for the context's.
    """

    actions: tuple[Action, ...]
    chosen: NDArray[np.int64]
    alpha: float | None


@runtime_checkable
class Compiled(Protocol):
    """A policy over the papers' arms that plays whole runs at once."""

    def replay(self, problem: Problem, orders: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """(runs, samples) indices of the arms played: those that policies with seeds `seed`, … would choose."""


def play(
    simulator: Simulator,
    make: Maker,
    orders: NDArray[np.int64],
    seed: int,
    on_runs: Callable[[int], None] = lambda runs: None,
) -> Plays:
    """What fresh policies choose, one per run.

    Args:
        simulator: The edge loop on a trace.
        make: The policy from a seed; run r has `seed + r`.
        orders: (runs, samples): in which order each run sees the samples.
        seed: The first run's.
        on_runs: Told how many runs have been played since it was last told.

    Raises:
        ActionError: A policy that chose what no edge with these exits can do.
        TraceError: A policy that asks for confidences where the trace has none.
    """
    policy = make(seed)
    if isinstance(policy, Compiled):
        _try_out(simulator, make(seed))
        try:  # numba is an extra
            played = _compiled(simulator, policy, policy.alpha, orders, seed)
        except MissingExtraError as error:
            warnings.warn(f"{error}; until then {policy.name} is replayed input by input, slowly", stacklevel=2)
        else:
            on_runs(len(orders))
            return played
    actions: dict[Action, int] = {}
    chosen = np.empty(orders.shape, np.int64)
    for run, order in enumerate(orders.tolist()):
        policy = make(seed + run)
        if policy.constant:
            chosen[run] = actions.setdefault(policy.choose(simulator.context), len(actions))
        else:
            chosen[run] = _driven(simulator, policy, order, actions)
        on_runs(1)
    return Plays(tuple(actions), chosen, policy.alpha)


def learns(policy: Policy) -> bool:
    """Whether a policy wants to be told what was seen."""
    return type(policy).update is not Policy.update


def _driven(simulator: Simulator, policy: Policy, order: list[int], actions: dict[Action, int]) -> list[int]:
    """The live form, asked and told as an edge would."""
    context, told = simulator.context, learns(policy)
    chosen = []
    for sample in order:
        action = policy.choose(context)
        chosen.append(actions.setdefault(action, len(actions)))
        if told:
            seen = simulator.observation(action, sample, policy.alpha, reveals=policy.replay_only)
            policy.update(action, seen)
    return chosen


def _compiled(
    simulator: Simulator, policy: Compiled, alpha: float | None, orders: NDArray[np.int64], seed: int
) -> Plays:
    learner = policy if isinstance(policy, UpperConfidence) else None
    watches = learner is not None and learner.watches
    send_input = isinstance(policy, SplitLearner) and policy.send_input
    problem = simulator.problem(alpha, watches=watches, send_input=send_input)
    chosen = policy.replay(problem, orders, seed)
    actions = [simulator.arm(k, watches=watches) for k in problem.arms]
    if learner is not None and learner.audit:
        chosen = chosen + len(actions) * learner.audited((len(orders), len(problem)), seed)
        actions += [simulator.arm(k, watches=watches, audited=True) for k in problem.arms]
    return Plays(tuple(actions), chosen, alpha)


def _try_out(simulator: Simulator, policy: Policy) -> None:
    """One input by the live form: a policy that asks for what the trace does not have is found out here."""
    action = policy.choose(simulator.context)
    policy.update(action, simulator.observation(action, 0, policy.alpha, reveals=policy.replay_only))
