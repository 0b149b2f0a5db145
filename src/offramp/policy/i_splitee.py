"""I-SplitEE: upper confidence bounds over splits, with what shallower exits showed on the way."""

from __future__ import annotations

import math

from offramp.errors import ConfigError
from offramp.policy.base import Action, Observation
from offramp.policy.splitting import SplitLearner

__all__ = ["ISplitEE"]


class ISplitEE(SplitLearner):
    """Learns online, without labels, at which exit to split (Bajpai et al. 2024, arXiv 2401.10541).

    Arms and rewards are `SplitLearner`'s. Side observations: playing arm k shows the confidences of all exits
    before it, so their own rewards are learned too. An arm i that would have offloaded needs C_L, which nobody
    sees on an input that was answered at exit k. There are three ways out:

    - `audit=ε`: with probability ε an input has no gate, is offloaded whatever exit k says, and pays for it.
      Exit k's confidence stands in for C_L, and what an audit finds is weighted by 1/ε: C_k + (C_L − C_k)/ε
      where audited, C_k where not, which is C_L in expectation (the difference estimator of Horvitz and
      Thompson 1952; without C_k in it, rewards would vary by 1/ε).
    - `audit=0`: arm i learns nothing from that input. Shallow arms are then learned from inputs on which they
      are sure more than from others; `biased` says so.
    - `published=True`: C_L of every input, as the paper's own replay uses it. It plays in replays only.

    An offload that brings no answer says how every shallower arm that was as unsure would have fared: alike.

    Args:
        alpha: α, the gates' threshold; None takes the bundle's own.
        send_input: Whether sending the input is an arm too.
        mu: μ, the weight of cost.
        c: The weight of exploration.
        audit: ε.
        published: Whether it learns from what a replay alone can know.
        discount: What is left of everything known after each play; 1 forgets nothing.
        window: The plays that count; None counts all.
        seed: Of the draws of audits.

    Raises:
        ConfigError: α or ε outside [0, 1], negative weights, a discount or window that cannot be, or audits of
            a policy that sees everything.
    """

    name = "i-splitee"

    def __init__(
        self,
        *,
        alpha: float | None = 0.5,
        send_input: bool = False,
        mu: float = 1.0,
        c: float = 1.0,
        audit: float = 0.0,
        published: bool = False,
        discount: float = 1.0,
        window: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            alpha=alpha,
            send_input=send_input,
            mu=mu,
            c=c,
            discount=discount,
            window=window,
            audit=audit,
            seed=seed,
        )
        if published and audit:
            raise ConfigError(f"a published policy sees every C_L already; leave out audit={audit} or published")
        self.replay_only = published

    @property
    def biased(self) -> bool:
        """Whether shallow arms are learned from inputs on which they are sure more than from others."""
        return not self.audit and not self.replay_only

    def update(self, action: Action, observation: Observation) -> None:
        """Learns the reward of the arm played, and of every shallower one whose reward was seen or estimated."""
        k = self._played(action)
        seen, arms, gates = observation.confidences, self.arms, self._gates
        own = self._reward(k, observation)
        failed = observation.failed
        final = self._final_or_estimate(k, action, observation) if k and not failed else None
        # The server failed the input, not the arm: whoever would have offloaded it would have fared alike.
        unsure = arms[k] < 0 or seen.get(arms[k], -math.inf) < gates[k][0]
        lost = own if failed and unsure else None
        values: list[float | None] = []
        if k and arms[0] < 0:  # the input has no exit that could be sure
            values.append(lost if final is None else final - gates[0][2])
        for i in range(len(values), k):
            confidence = seen.get(arms[i])
            threshold, here, offloaded = gates[i]
            if confidence is None:
                values.append(None)
            elif confidence >= threshold:
                values.append(confidence - here)
            else:
                values.append(lost if final is None else final - offloaded)
        values.append(own)
        self._learn(values)

    def _final_or_estimate(self, k: int, action: Action, seen: Observation) -> float | None:
        """C_L as seen or estimated, or None."""
        final = self._final(seen)
        if self.replay_only:
            return seen.hidden_final if final is None else final
        if not self.audit or action.split in (-1, self._last):
            return final
        gate = seen.confidences.get(self.arms[k])
        if gate is None or gate < self._gates[k][0]:
            return final
        if action.exits:
            return gate
        return None if final is None else gate + (final - gate) / self.audit

    def _settings(self) -> dict[str, float | int | bool | None]:
        return {**super()._settings(), "published": self.replay_only}
