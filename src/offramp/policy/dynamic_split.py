"""Dynamic split: where the forecast says that an answer comes soonest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from offramp.errors import ActionError, ConfigError
from offramp.policy.base import Action, Context, Observation, Policy, checked_alpha
from offramp.policy.memory import ShareMemory, recalled

__all__ = ["DynamicSplit"]


class DynamicSplit(Policy):
    """The split with the smallest predicted latency, from the link's rate and the server's load as measured.

    Dynamic split computing (Bakhtiarnia et al. 2022, arXiv 2205.11269): T_l = head + transfer + tail, and the l
    that minimises it, sending the input (−1) and staying on the edge (the last) among them. It has no exits in
    it. Here the split's exit may answer, and so T_k = head + (1 − p_k)·(transfer + tail), where p_k is the share
    of inputs on which exit k was sure. Nobody knows p_k beforehand: an exit counts as sure until it was seen,
    which costs a try where even then it would be soonest. Exits on the way are run where they cost little, for
    what they show.

    What is never sent teaches nothing about the link. So after `patience` inputs that all stayed on the edge,
    the soonest split that sends is played once.

    Args:
        alpha: The gates' threshold; None takes the bundle's own.
        discount: What is left of the shares p_k after each input.
        patience: Inputs without a transfer before one is made.

    Raises:
        ConfigError: α outside [0, 1], a discount outside (0, 1], or no patience.
    """

    name = "dynamic-split"
    wants_forecast = True

    def __init__(self, *, alpha: float | None = None, discount: float = 0.99, patience: int = 50) -> None:
        if not 0 < discount <= 1:
            raise ConfigError(f"a discount is above 0 and at most 1 (forgets nothing), not {discount}")
        if not isinstance(patience, int) or patience < 1:
            raise ConfigError(f"patience is a whole number of inputs, at least 1, not {patience}")
        self.alpha, self.discount, self.patience = checked_alpha(alpha), discount, patience
        self._kept = 0
        #: By exit, how often it was sure and how often it was seen, discounted. A first sight counts as sure.
        self._seen: dict[int, tuple[float, float]] = {}
        self._context: Context | None = None
        self._gates: dict[int, float] = {}
        #: Per split milliseconds on the edge if its exit is run, if not, and from sending to the answer.
        self._takes: dict[int, tuple[float, float, float]] = {}

    def choose(self, context: Context) -> Action:
        """The split whose answer is expected soonest.

        Raises:
            ActionError: Nobody has measured what stages take.
        """
        if context is not self._context:
            self._begin(context)
        probing = self._kept >= self.patience and context.splits[0] != context.last
        best, soonest = context.splits[0], math.inf
        for k, (gated, plain, sending) in self._takes.items():
            if probing:
                ms = plain + sending if k != context.last else math.inf
            elif k in self._gates:
                sure, seen = self._seen.get(k, (1.0, 1.0))
                ms = gated + (1.0 - sure / seen) * sending
            else:
                ms = plain + sending
            if ms < soonest:
                best, soonest = k, ms
        gate = () if probing else context.gate(best)
        watch = tuple(e for e in context.exits if e < best or (e == best and not gate))
        return context.action(best, gate, watch)

    def update(self, action: Action, observation: Observation) -> None:
        """Counts on which exits the input would have been answered, and what stayed on the edge."""
        self._kept = 0 if observation.offloaded else self._kept + 1
        for e, confidence in observation.confidences.items():
            if e in self._gates:
                sure, seen = self._seen.get(e, (1.0, 1.0))
                self._seen[e] = (
                    self.discount * sure + (confidence >= self._gates[e]),
                    self.discount * seen + 1.0,
                )

    def state(self) -> dict[str, Any]:
        """The shares, as JSON values."""
        exits = sorted(self._seen)
        return ShareMemory(
            policy=self.name,
            settings=self._settings(),
            exits=tuple(exits),
            sure=tuple(self._seen[e][0] for e in exits),
            seen=tuple(self._seen[e][1] for e in exits),
            kept=self._kept,
        ).model_dump(mode="json")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave.

        Raises:
            PolicyStateError: No state, another policy's, or of other settings.
        """
        memory = recalled(ShareMemory, state, self.name, self._settings())
        self._seen = dict(zip(memory.exits, zip(memory.sure, memory.seen, strict=True), strict=True))
        self._kept = memory.kept

    def _begin(self, context: Context) -> None:
        forecast = context.forecast
        if forecast is None:
            raise ActionError(
                f"{self.name} needs to know what stages and the link take; this context has no forecast"
            )
        self._gates = {e: self.threshold(context, e) for e in context.exits}
        self._takes = {}
        for k in context.splits:
            gated, sending = forecast.split_ms(k, 1.0), 0.0
            if k != context.last:
                sending = forecast.sending_ms(k)
            self._takes[k] = (gated, forecast.split_ms(k) - sending, sending)
        self._context = context

    def _settings(self) -> dict[str, float | int | bool | None]:
        return {"alpha": self.alpha, "discount": self.discount, "patience": self.patience}
