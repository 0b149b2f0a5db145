"""UEE-UCB: which exit is good enough, judged by how often deeper exits disagree with the first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offramp.policy.base import Action, Observation
from offramp.policy.problem import Problem
from offramp.policy.ucb import UpperConfidence

__all__ = ["UEEUCB"]


class UEEUCB(UpperConfidence):
    """Learns online, without labels, at which exit to answer (Pacheco et al. 2022, arXiv 2209.09480).

    Arm j answers at exit j, on the edge, always. Where an exit that is right is followed by exits that are
    right (strong dominance), err_0 − err_j = P(Ŷ_0 ≠ Ŷ_j), so the smallest err_j + μ·C_j has the largest
    P(Ŷ_0 ≠ Ŷ_j) − μ·C_j. Playing j shows the labels of all exits up to j, and whether they differ from the
    first's. The deepest arm is played first; then the one with the largest mean of 1[Ŷ_0 ≠ Ŷ_j] − μ·C_j, plus
    c·sqrt(ln(t + 1) / N_j). The paper's index has C_0 in it too, which is the same for all, and its α is c².

    Args:
        mu: μ, the weight of cost: what a cost of 1 is worth in errors.
        c: The weight of exploration.
        discount: What is left of everything known after each play; 1 forgets nothing.
        window: The plays that count; None counts all.

    Raises:
        ConfigError: Negative weights, a discount or window that cannot be.
    """

    name = "uee-ucb"
    deepest_first = True
    #: Every gate is open: the arm's exit answers however sure it is.
    alpha = 0.0

    def __init__(
        self, *, mu: float = 1.0, c: float = 1.0, discount: float = 1.0, window: int | None = None
    ) -> None:
        super().__init__(mu=mu, c=c, discount=discount, window=window)

    def update(self, action: Action, observation: Observation) -> None:
        """Learns of every exit up to the one played whether it disagreed with the first."""
        k, labels = self._played(action), observation.labels
        first = labels.get(self.arms[0])
        values: list[float | None] = []
        for i in range(k + 1):
            label = labels.get(self.arms[i])
            values.append(None if first is None or label is None else float(label != first) - self._pays[i][0])
        self._learn(values)

    def _seen_in(self, problem: Problem) -> Problem:
        differs = (problem.prediction != problem.prediction[:, :1]).astype(np.float64)
        return replace(problem, confidence=differs, sure=np.ones_like(problem.sure))
