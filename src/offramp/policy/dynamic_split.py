"""Dynamic split: where the forecast says that an answer comes soonest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from offramp.errors import ActionError, ConfigError
from offramp.policy.base import Action, Context, Observation, Policy, checked_alpha
from offramp.policy.memory import ShareMemory, recalled

__all__ = ["DynamicSplit"]

#: Of an exit that nobody has seen, how often it was sure and how often it was seen.
_UNSEEN = (0.0, 0.0)
#: Sights after which an exit is no longer run only to be seen, and the most that may be of those remembered.
_ENOUGH, _ENOUGH_SHARE = 20.0, 0.1
#: Offloads lost in a row that are counted; more would keep it away for long from a server that came back.
_MOST_LOST = 10


class DynamicSplit(Policy):
    """The split with the smallest predicted latency, from the link's rate and the server's load as measured.

    Dynamic split computing (Bakhtiarnia et al. 2022, arXiv 2205.11269): T_l = head + transfer + tail, and the l
    that minimises it, sending the input (−1) and staying on the edge (the last) among them. It has no exits in
    it. Here the split's exit may answer, and so T_k = head + (1 − p_k)·(transfer + tail), where p_k is the share
    of inputs on which exit k was sure. Nobody knows p_k beforehand: an exit counts as sure until it was seen,
    which costs a try where even then it would be soonest. What was seen fades, so that a few unlucky inputs, or
    inputs that have changed, do not rule an exit out for good. Exits on the way are run for what they show until
    they have been seen a few times.

    What is never sent teaches nothing about the link. So a transfer counts as quick as it may well be, given how
    well the link is known; and the soonest split that sends is played once when what it takes longer is no more
    than a share `probing` of the time since the last transfer.

    Nor does a link's estimate know of a server that is gone: it may refuse at once. So from the second offload in
    a row on that brought no answer, each counts as if the edge had to run what is left once more.

    Args:
        alpha: The gates' threshold; None takes the bundle's own.
        discount: What is left of the shares p_k after each input.
        probing: The share of the time that may be lost to trying the link.

    Raises:
        ConfigError: α or a share outside [0, 1], or a discount outside (0, 1].
    """

    name = "dynamic-split"
    wants_forecast = True

    def __init__(self, *, alpha: float | None = None, discount: float = 0.99, probing: float = 0.02) -> None:
        if not 0 < discount <= 1:
            raise ConfigError(f"a discount is above 0 and at most 1 (forgets nothing), not {discount}")
        if not 0 <= probing <= 1:
            raise ConfigError(f"probing is the share of time that it may take, between 0 and 1, not {probing}")
        self.alpha, self.discount, self.probing = checked_alpha(alpha), discount, probing
        #: Milliseconds since the last transfer, as expected when they were chosen.
        self._kept_ms = self._chosen_ms = 0.0
        #: Offloads in a row that brought no answer.
        self._lost = 0
        self._enough = _ENOUGH if discount == 1 else min(_ENOUGH, _ENOUGH_SHARE / (1 - discount))
        #: By exit, how often it was sure and how often it was seen, discounted. One more sight counts as sure.
        self._seen: dict[int, tuple[float, float]] = {}
        self._context: Context | None = None
        self._gates: dict[int, float] = {}
        #: Per split milliseconds on the edge if its exit is run, if not, and from sending to the answer.
        self._takes: dict[int, tuple[float, float, float]] = {}
        #: The soonest split that sends, and what it takes.
        self._probe = (0, math.inf)

    def choose(self, context: Context) -> Action:
        """The split whose answer is expected soonest.

        Raises:
            ActionError: Nobody has measured what stages take.
        """
        if context is not self._context:
            self._begin(context)
        best, soonest = context.splits[0], math.inf
        for k, (gated, plain, sending) in self._takes.items():
            if k in self._gates:
                sure, seen = self._seen.get(k, _UNSEEN)
                ms = gated + (1.0 - (sure + 1.0) / (seen + 1.0)) * sending
            else:
                ms = plain + sending
            if ms < soonest:
                best, soonest = k, ms
        self._chosen_ms = soonest
        probe, takes = self._probe
        probing = 0 < self._kept_ms * self.probing >= takes - soonest
        if probing:
            best = probe
        gate = (best,) if best in self._gates and not probing else ()
        unknown = {e for e in self._gates if probing or self._seen.get(e, _UNSEEN)[1] < self._enough}
        watch = tuple(e for e in context.exits if e in unknown and e <= best and e not in gate)
        return context.action(best, gate, watch)

    def update(self, action: Action, observation: Observation) -> None:
        """Counts on which exits the input would have been answered, and what stayed on the edge."""
        if observation.offloaded or observation.failed:
            self._kept_ms = 0.0
            lost = min(self._lost + 1, _MOST_LOST) if observation.failed else 0
            if lost != self._lost:
                self._lost, self._context = lost, None  # what splits take is another now
        else:
            self._kept_ms += self._chosen_ms
        left = self.discount
        for e, (sure, seen) in self._seen.items():
            self._seen[e] = (left * sure, left * seen)
        for e, confidence in observation.confidences.items():
            if e in self._gates:
                sure, seen = self._seen.get(e, _UNSEEN)
                self._seen[e] = (sure + (confidence >= self._gates[e]), seen + 1.0)

    def state(self) -> dict[str, Any]:
        """The shares, as JSON values."""
        exits = sorted(self._seen)
        return ShareMemory(
            policy=self.name,
            settings=self._settings(),
            exits=tuple(exits),
            sure=tuple(self._seen[e][0] for e in exits),
            seen=tuple(self._seen[e][1] for e in exits),
            kept_ms=self._kept_ms,
            lost=self._lost,
        ).model_dump(mode="json")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave.

        Raises:
            PolicyStateError: No state, another policy's, or of other settings.
        """
        memory = recalled(ShareMemory, state, self.name, self._settings())
        self._seen = dict(zip(memory.exits, zip(memory.sure, memory.seen, strict=True), strict=True))
        self._kept_ms, self._lost, self._context = memory.kept_ms, memory.lost, None

    def _begin(self, context: Context) -> None:
        forecast = context.forecast
        if forecast is None:
            raise ActionError(
                f"{self.name} needs to know what stages and the link take; this context has no forecast"
            )
        # A gate above 1 is shut: nobody passes, so its head is not run.
        self._gates = {e: alpha for e in context.exits if (alpha := self.threshold(context, e)) <= 1}
        self._takes = {}
        for k in context.splits:
            sends, sending = k != context.last, 0.0
            if sends:
                left_ms = math.fsum(forecast.stage_ms[k + 1 : context.splits[-1] + 1])
                sending = forecast.soonest_ms(k) + max(0, self._lost - 1) * left_ms
            self._takes[k] = (forecast.head_ms(k, exit_too=sends), forecast.head_ms(k), sending)
        away = {k: plain + sending for k, (_, plain, sending) in self._takes.items() if k != context.last}
        self._probe = min(away.items(), key=lambda split: split[1], default=(context.last, math.inf))
        self._context = context

    def _settings(self) -> dict[str, float | int | bool | None]:
        return {"alpha": self.alpha, "discount": self.discount, "probing": self.probing}
