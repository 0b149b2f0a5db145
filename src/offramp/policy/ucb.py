"""What learners by upper confidence bound share: the index, forgetting, and what they know as JSON."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ActionError, ConfigError
from offramp.policy.base import Action, Context, Policy
from offramp.policy.draws import uniform, uniforms
from offramp.policy.memory import LearnerMemory, recalled
from offramp.policy.plays import HEAVIEST
from offramp.policy.problem import Problem

__all__ = ["UpperConfidence"]


class UpperConfidence(Policy):
    """Plays the arm with the largest mean reward + c·sqrt(ln(t + 1) / N), each arm once first.

    t counts plays and N what was learned about the arm (Auer et al. 2002, "Finite-time analysis of the
    multiarmed bandit problem"). Where the world changes, the past is forgotten in one of two ways (Garivier
    and Moulines, arXiv 0805.3415): with a discount γ, everything known is multiplied by γ at each play; with
    a window, only the last plays count. t is then what is left of it: Σγ^s, or at most the window.

    Args:
        mu: μ, the weight of cost in a reward.
        c: The weight of exploration.
        discount: γ, above 0 and at most 1; 1 forgets nothing.
        window: The plays that count; None counts all.
        audit: ε, the probability with which a play has no gate, so that what the gate would hide is seen; for
            learners that have something hidden from them.
        seed: Of the draws of audits.

    Raises:
        ConfigError: Negative weights, a discount outside (0, 1], a window below 1, or both; ε outside [0, 1].
    """

    #: Whether the exits on the way are run for what they show.
    watches: ClassVar[bool] = True
    #: Whether the first plays begin with the deepest arm.
    deepest_first: ClassVar[bool] = False

    def __init__(
        self, *, mu: float, c: float, discount: float, window: int | None, audit: float = 0.0, seed: int = 0
    ) -> None:
        if not 0 <= mu < math.inf or not 0 <= c < math.inf:
            raise ConfigError(f"mu and c must be at least 0 and finite, not {mu} and {c}")
        if not 0 < discount <= 1:
            raise ConfigError(f"a discount is above 0 and at most 1 (forgets nothing), not {discount}")
        if window is not None and (not isinstance(window, int) or window < 1):
            raise ConfigError(
                f"a window is a whole number of plays, at least 1, not {window}; None counts all plays"
            )
        if window is not None and discount < 1:
            raise ConfigError(f"either a discount or a window, not both ({discount} and {window})")
        if not 0 <= audit <= 1:
            raise ConfigError(f"audit is the probability of looking behind a gate, between 0 and 1, not {audit}")
        self.mu, self.c, self.discount, self.window = mu, c, discount, window
        self.audit, self.seed, self.step = audit, seed, 0
        self.arms: tuple[int, ...] = ()
        #: t: the plays that still count.
        self.plays = 0.0
        self._forgets = discount < 1 or window is not None
        #: What one play counts. Under a discount the past keeps its numbers and new plays weigh more and more,
        #: so that only the arms that are learned about change; N is counts/weight.
        self._weight = 1.0
        #: Per arm: counts, sums, means, scales. The index is means[i] + scales[i]·sqrt(ln(t + 1)·weight), with an
        #: infinite mean where nothing is known.
        self._known: tuple[list[float], list[float], list[float], list[float]] = ([], [], [], [])
        self._recent: deque[list[float | None]] = deque()
        self._context: Context | None = None
        self._actions: tuple[Action, ...] = ()
        self._audits: tuple[Action, ...] = ()
        self._place: dict[int, int] = {}
        #: Per arm μ times the cost of answering on the edge, and of offloading.
        self._pays: tuple[tuple[float, float], ...] = ()

    @property
    def counts(self) -> dict[int, float]:
        """By arm N, what is left of how often something was learned about it."""
        return {arm: n / self._weight for arm, n in zip(self.arms, self._known[0], strict=True)}

    @property
    def means(self) -> dict[int, float]:
        """By arm the mean reward; 0 where nothing is known."""
        counts, _, means, _ = self._known
        return {arm: mean if n else 0.0 for arm, mean, n in zip(self.arms, means, counts, strict=True)}

    def choose(self, context: Context) -> Action:
        """The arm with the largest index; of equal ones the shallowest."""
        if context is not self._context:
            self._begin(context)
        best = self._best()
        if self.audit:
            self.step += 1
            if uniform(self.seed, self.step - 1) < self.audit:
                return self._audits[best]
        return self._actions[best]

    def audited(self, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.bool_]:
        """Of each run and play in a replay, whether its gate is opened to see what it hides.

        Args:
            shape: (runs, samples).
            seed: Run r draws as the policy with the seed `seed + r`.
        """
        return uniforms(seed, *shape) < self.audit if self.audit else np.zeros(shape, np.bool_)

    def replay(self, problem: Problem, orders: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
        """The arms that fresh policies of these settings play on recorded samples, compiled.

        Args:
            problem: What there is to see, and what it costs.
            orders: (runs, samples): in which order each run sees the samples.
            seed: Run r draws as the policy with the seed `seed + r`.

        Returns:
            (runs, samples) indices into the problem's arms.

        Raises:
            ConfigError: Orders that are no (runs, samples) indices of samples.
            MissingExtraError: Numba is not installed.
        """
        from offramp.policy.compiled import played

        checked = problem.checked(orders)
        return played(
            self._seen_in(problem),
            checked,
            audited=self.audited(checked.shape, seed),
            side=self.watches,
            deepest_first=self.deepest_first,
            published=self.replay_only,
            audit=self.audit,
            mu=self.mu,
            c=self.c,
            discount=self.discount,
            window=self.window or 0,
        )

    def state(self) -> dict[str, Any]:
        """What was learned, as JSON values."""
        return LearnerMemory(
            policy=self.name,
            settings=self._settings(),
            arms=self.arms,
            plays=self.plays,
            weight=self._weight,
            counts=tuple(self._known[0]),
            sums=tuple(self._known[1]),
            recent=tuple(tuple(values) for values in self._recent),
            seed=self.seed,
            step=self.step,
        ).model_dump(mode="json")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave, with the settings that it was learned with.

        Raises:
            PolicyStateError: No state, another policy's, or of other settings.
        """
        memory = recalled(LearnerMemory, state, self.name, self._settings())
        self.arms, self.plays, self._weight = memory.arms, memory.plays, memory.weight
        self._know(memory.counts, memory.sums)
        self._recent = deque(list(values) for values in memory.recent)
        self._context = None  # its arms are compared with these
        self.seed, self.step = memory.seed, memory.step

    def forget(self) -> None:
        """Starts anew, as if nothing had been played; only the draws of audits go on."""
        self.plays, self._weight = 0.0, 1.0
        self._know((0.0,) * len(self.arms), (0.0,) * len(self.arms))
        self._recent.clear()

    # --- what an algorithm says about itself ---------------------------------------------------------

    def _settings(self) -> dict[str, float | int | bool | None]:
        """What a state was learned with; a state of other settings is refused."""
        return {"mu": self.mu, "c": self.c, "discount": self.discount, "window": self.window, "audit": self.audit}

    def _seen_in(self, problem: Problem) -> Problem:
        """The problem whose confidences are what this learner is rewarded with."""
        return problem

    def _arms_of(self, context: Context) -> tuple[int, ...]:
        return context.arms

    def _action(self, context: Context, arm: int) -> Action:
        """The papers' arm: its exit may answer; heads on the way are run for what they show."""
        watch = tuple(i for i in self.arms if 0 <= i < arm) if self.watches else ()
        return context.action(arm, context.gate(arm), watch)

    def _without_gate(self, context: Context, arm: int) -> Action:
        here = context.gate(arm)
        return context.action(arm, (), tuple(i for i in self.arms if 0 <= i < arm or i in here))

    # --- learning ------------------------------------------------------------------------------------

    def _begin(self, context: Context) -> None:
        if not context.arms:
            raise ActionError(f"{self.name} needs a split with an exit, or the last stage on the edge")
        arms = self._arms_of(context)
        if self.arms and arms != self.arms:
            raise ActionError(f"this {self.name} has learned about arms {self.arms}; this edge has {arms}")
        if not self.arms:
            self.arms = arms
            self.forget()
        self._place = {arm: i for i, arm in enumerate(self.arms)}
        self._actions = tuple(self._action(context, arm) for arm in self.arms)
        self._audits = tuple(self._without_gate(context, arm) for arm in self.arms)
        pays = context.cost.paid
        heads = [tuple(e for e in arms if 0 <= e <= arm and (self.watches or e == arm)) for arm in arms]
        self._pays = tuple(
            (self.mu * pays(arm, False, h), self.mu * pays(arm, True, h))
            for arm, h in zip(arms, heads, strict=True)
        )
        self._context = context

    def _best(self) -> int:
        width = math.sqrt(math.log(self.plays + 1.0) * self._weight)
        _, _, means, scales = self._known
        index = [mean + scale * width for mean, scale in zip(means, scales, strict=True)]
        best = max(index)
        if best == math.inf and self.deepest_first:
            return len(index) - 1 - index[::-1].index(best)
        return index.index(best)

    def _know(self, counts: Sequence[float], sums: Sequence[float]) -> None:
        known = self._known
        known[0][:], known[1][:] = counts, sums
        known[2][:] = [total / n if n else math.inf for total, n in zip(sums, counts, strict=True)]
        known[3][:] = [self.c / math.sqrt(n) if n else 0.0 for n in counts]

    def _played(self, action: Action) -> int:
        """The place of the arm that an action plays."""
        try:
            return self._place[action.split]
        except KeyError:
            what = "was told of a play before it chose one" if self._context is None else "has no such arm"
            raise ActionError(f"split {action.split}: {self.name} {what}; its arms are {self.arms}") from None

    def _learn(self, values: list[float | None]) -> None:
        """Counts a play, and the rewards of arms 0, 1, … that it showed; None where nothing was shown."""
        counts, sums, means, scales = self._known
        if self._forgets:
            self._forget(values)
        self.plays = self.discount * self.plays + 1.0 if self.window is None else float(len(self._recent))
        weight, c, sqrt = self._weight, self.c, math.sqrt
        for i, value in enumerate(values):
            if value is not None:
                n = counts[i] = counts[i] + weight
                total = sums[i] = sums[i] + weight * value
                means[i] = total / n
                scales[i] = c / sqrt(n)

    def _forget(self, values: list[float | None]) -> None:
        """Lets a play take its share of what was known, before it is learned from."""
        counts, sums, means, scales = self._known
        if self.window is None:
            self._weight /= self.discount
            if self._weight > HEAVIEST:
                self._know([n / self._weight for n in counts], [total / self._weight for total in sums])
                self._weight = 1.0
            return
        if len(self._recent) == self.window:
            for i, value in enumerate(self._recent.popleft()):
                if value is not None:
                    n = counts[i] = counts[i] - 1.0
                    total = sums[i] = sums[i] - value if n else 0.0
                    if i >= len(values) or values[i] is None:  # of the others the index is made anew anyway
                        means[i] = total / n if n else math.inf
                        scales[i] = self.c / math.sqrt(n) if n else 0.0
        self._recent.append(values)
