"""What the edge loop would have done on recorded samples: any action, on all of them at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import CLOSED
from offramp.errors import ActionError, ConfigError, TraceError
from offramp.policy.base import Action, Context, Observation
from offramp.policy.cost import CostModel
from offramp.policy.forecast import Forecast
from offramp.policy.problem import Problem
from offramp.replay.trace import Trace

__all__ = ["Outcome", "Simulator"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one action comes to, per sample.

    Attributes:
        stopped: (samples,) the last stage that the edge ran; −1 for none.
        column: (samples,) the trace's column of the exit that answers.
        offloaded: (samples,) whether a cut is sent.
        cost: (samples,) what is paid.
    """

    stopped: NDArray[np.int64]
    column: NDArray[np.int64]
    offloaded: NDArray[np.bool_]
    cost: NDArray[np.float64]


class Simulator:
    """The edge loop on a trace, with a server that always answers, by the bundle's own rules.

    Exits answer as `Edge` lets them: those of the action up to its split, in order, each if its confidence
    reaches the policy's α or else the context's threshold. What is sent on is answered by the last exit, or,
    if the action lets exits beyond its split answer, by the first of the server's that is sure.

    Args:
        trace: What the exits say.
        cost: What things cost; the papers' units at the trace's depths if left out.
        alpha: The threshold of every early exit, or one per exit of the trace but the last, for policies that
            bring none. If left out, the bundle's own as the trace tells them; 0.5 where it does not. A trace
            without confidences takes 0 alone, at which every exit is sure.
        forecast: What stages and the link take, for policies that choose by it.

    Attributes:
        context: What policies may know before they choose.
        alphas: (exits - 1,) the thresholds.

    Raises:
        ConfigError: Thresholds outside [0, 1], of another number than early exits, or above 0 without
            confidences; a cost model of another number of stages.
        TraceError: No early exit, or fewer samples than exits.
    """

    def __init__(
        self,
        trace: Trace,
        cost: CostModel | None = None,
        alpha: float | tuple[float, ...] | None = None,
        forecast: Forecast | None = None,
    ) -> None:
        early, stages = trace.meta.exits[:-1], len(trace.meta.depths)
        if not early:
            raise TraceError("the trace has no early exit; a policy would have nothing to choose from")
        if len(trace) <= len(early):
            raise TraceError(f"{len(trace)} samples are fewer than the {len(early) + 1} exits to try")
        self.alphas = _own(trace) if alpha is None else _given(alpha, early)
        if trace.confidence is None and any(self.alphas):
            raise ConfigError(
                f"no exit can reach a threshold of {alpha}: this trace has no confidences; leave it out"
            )
        cost = cost or CostModel.in_layers(trace.meta.depths)
        if len(cost.stages) != stages:
            raise ConfigError(f"the cost model is one of {len(cost.stages)} stages, the trace of {stages}")
        self._alphas = dict(zip(early, self.alphas, strict=True))
        self.trace = trace
        self.context = Context(
            splits=tuple(range(-1, stages)),
            exits=early,
            last=stages - 1,
            thresholds=tuple(self._alphas.get(k) for k in range(stages)),
            modes={},
            mode="float",
            cost=cost,
            forecast=forecast,
        )
        self._columns = {e: column for column, e in enumerate(trace.meta.exits)}
        self._outcomes: dict[tuple[Action, float | None], Outcome] = {}
        self._witnesses: dict[tuple[Action, float | None], _Witness] = {}
        # As Python's own numbers, with which policies are quicker.
        self._labels: list[list[int]] = trace.prediction.tolist()
        self._confidences: list[list[float]] | None = None
        if trace.confidence is not None:
            self._confidences = trace.confidence.astype(np.float64).tolist()

    def outcome(self, action: Action, alpha: float | None = None) -> Outcome:
        """What an action comes to on every sample, under the policy's α (None: the context's thresholds).

        Raises:
            ActionError: An action that no edge with these exits can do.
            TraceError: A gate above 0 on a trace without confidences.
        """
        key = action, alpha
        if key not in self._outcomes:
            self._outcomes[key] = self._simulated(action, alpha)
        return self._outcomes[key]

    def observation(
        self, action: Action, sample: int, alpha: float | None = None, *, reveals: bool = False
    ) -> Observation:
        """What an edge would have seen of one sample after an action, and nothing else.

        Args:
            action: What a policy chose.
            sample: The row of the trace.
            alpha: The policy's threshold; None takes the context's.
            reveals: Whether the last exit's confidence is told as well, which no edge sees: for policies that
                are `replay_only`.

        Raises:
            ActionError: An action that no edge with these exits can do.
            TraceError: A gate above 0 on a trace without confidences.
        """
        key = action, alpha
        if key not in self._witnesses:
            self._witnesses[key] = _Witness(action, self.outcome(action, alpha), self)
        return self._witnesses[key].tells(sample, reveals)

    def row(self, sample: int) -> tuple[list[int], list[float] | None]:
        """Labels and confidences of one sample by column, as Python's own numbers."""
        return self._labels[sample], None if self._confidences is None else self._confidences[sample]

    def heads(self, action: Action) -> tuple[int, ...]:
        """The exits that an edge evaluates if an action goes all the way to its split."""
        wanted = {*action.exits, *action.watch, self.context.last}
        return tuple(e for e in self.trace.meta.exits if e in wanted and e <= action.split)

    def arm(self, k: int, *, watches: bool = False, audited: bool = False) -> Action:
        """The papers' arm k.

        Args:
            k: The exit.
            watches: Whether the exits on the way are run for what they show.
            audited: Whether it has no gate, so that what the gate would hide is seen.
        """
        gate = self.context.gate(k)
        watch = tuple(i for i in self.context.exits if (watches and i < k) or (audited and i in gate))
        return self.context.action(k, () if audited else gate, watch)

    def problem(self, alpha: float | None = None, *, watches: bool = False, send_input: bool = False) -> Problem:
        """The papers' arms as arrays, for policies that bring a compiled form; as `outcome` and `arm`.

        Args:
            alpha: The policy's threshold; None takes the context's.
            watches: Whether the exits on the way are run for what they show.
            send_input: Whether sending the input is an arm too, −1, whose exit is never sure.
        """
        context, trace = self.context, self.trace
        arms, ones = context.arms, np.ones(trace.prediction.shape, np.bool_)
        if send_input:
            arms = (-1, *arms)
        heads = [self.heads(self.arm(k, watches=watches)) for k in arms]
        here, sent = (
            np.array([context.cost.paid(k, offloaded, h) for k, h in zip(arms, heads, strict=True)])
            for offloaded in (False, True)
        )
        sure = ones.copy()
        for column, exit_index in enumerate(context.exits):
            sure[:, column] = self._sure(exit_index, alpha)
        # Exits whose confidence nobody knows are taken at their word: at α = 0 they are sure whatever it is.
        confidence = (ones if trace.confidence is None else trace.confidence).astype(np.float64)
        prediction = trace.prediction
        if send_input:
            before = ((0, 0), (1, 0))
            prediction, confidence, sure = (
                np.pad(prediction, before),
                np.pad(confidence, before),
                np.pad(sure, before),
            )
        return Problem(arms, prediction, confidence, sure, here, sent)

    def sent_bytes(self, action: Action) -> int:
        """Bytes of an action's cut as floats; 0 where nobody measured."""
        sizes = self.trace.meta.cut_bytes.get("float", ())
        return (sizes[action.split + 1] or 0) if action.split + 1 < len(sizes) else 0

    def _sure(self, exit_index: int, alpha: float | None) -> NDArray[np.bool_]:
        threshold = self._alphas[exit_index] if alpha is None else alpha
        confidence = self.trace.confidence
        if confidence is None:
            if threshold == 0:
                return np.ones(len(self.trace), np.bool_)
            raise TraceError(f"exit {exit_index} cannot reach {threshold}: this trace has no confidences")
        return np.asarray(confidence[:, self._columns[exit_index]].astype(np.float64) >= threshold)

    def _simulated(self, action: Action, alpha: float | None) -> Outcome:
        context, n = self.context, len(self.trace)
        unknown = [e for e in (*action.exits, *action.watch) if e not in self._columns]
        unknown += [e for e in action.watch if e > action.split]
        if action.split not in context.splits or unknown:
            what = f"split {action.split}" + "".join(f", exit {e}," for e in unknown)
            splits, exits = (", ".join(map(str, some)) for some in (context.splits, self._columns))
            raise ActionError(f"{what} is none that this edge can do: splits {splits}; exits {exits}")
        stopped, column = np.full(n, action.split), np.full(n, self._columns[context.last])
        going = np.ones(n, np.bool_)
        here = [e for e in context.exits if e <= action.split and e in action.exits]
        for e in here:
            leaves = going & self._sure(e, alpha)
            stopped[leaves], column[leaves] = e, self._columns[e]
            going &= ~leaves
        offloaded = going if action.split < context.last else np.zeros(n, np.bool_)
        cost = np.empty(n)
        for stage in np.unique(stopped).tolist():
            heads = [e for e in self.heads(action) if e <= stage]
            for sent in (False, True):
                cost[(stopped == stage) & (offloaded == sent)] = context.cost.paid(stage, sent, heads)
        if any(e > action.split for e in action.exits):  # then the server's exits answer as they are tuned
            going = offloaded.copy()
            for e in (e for e in context.exits if e > action.split):
                leaves = going & self._sure(e, None)
                column[leaves] = self._columns[e]
                going &= ~leaves
        return Outcome(stopped, column, offloaded, cost)


def _own(trace: Trace) -> tuple[float, ...]:
    """The bundle's own thresholds; 0.5 where the trace tells none, 0 where there are no confidences."""
    early = len(trace.meta.exits) - 1
    if trace.confidence is None:
        return (0.0,) * early
    if not trace.meta.thresholds:
        return (0.5,) * early
    return tuple(CLOSED if threshold is None else threshold for threshold in trace.meta.thresholds[:early])


def _given(alpha: float | tuple[float, ...], early: tuple[int, ...]) -> tuple[float, ...]:
    alphas = (alpha,) * len(early) if isinstance(alpha, float | int) else tuple(alpha)
    if len(alphas) != len(early):
        raise ConfigError(f"expected a threshold for each of the exits {early}, got {len(alphas)}")
    if not all(0 <= a <= 1 for a in alphas):
        raise ConfigError(f"a threshold is a confidence between 0 and 1, not {alpha}")
    return alphas


class _Unknown(Mapping[int, float]):
    """The confidences of a trace that has none: whoever asks is told, rather than learning from nothing."""

    def __getitem__(self, exit_index: int) -> float:
        raise TraceError(
            f"the policy asks how sure exit {exit_index} is; this trace has predictions and no confidences"
        )

    def __iter__(self) -> Iterator[int]:
        raise TraceError("the policy asks which exits were sure; this trace has no confidences")

    def __len__(self) -> int:
        raise TraceError("the policy asks how many exits were sure; this trace has no confidences")


class _Witness:
    """Tells what was seen after one action, sample by sample."""

    def __init__(self, action: Action, outcome: Outcome, simulator: Simulator) -> None:
        self._row, self._bytes = simulator.row, simulator.sent_bytes(action)
        exits = simulator.trace.meta.exits
        self._exits, self._last = exits, len(exits) - 1
        self._seen = [(e, exits.index(e)) for e in simulator.heads(action)]
        # As Python's own numbers, with which policies are quicker.
        self._stopped, self._column = outcome.stopped.tolist(), outcome.column.tolist()
        self._offloaded, self._cost = outcome.offloaded.tolist(), outcome.cost.tolist()

    def tells(self, sample: int, reveals: bool) -> Observation:
        label, confidence = self._row(sample)
        stopped, column = self._stopped[sample], self._column[sample]
        offloaded = self._offloaded[sample]
        return Observation(
            confidences={e: confidence[c] for e, c in self._seen if e <= stopped} if confidence else _UNKNOWN,
            labels={e: label[c] for e, c in self._seen if e <= stopped},
            final_confidence=confidence[column] if confidence and column == self._last else None,
            exit=self._exits[column],
            confidence=confidence[column] if confidence else math.nan,
            offloaded=offloaded,
            cost=self._cost[sample],
            payload_bytes=self._bytes if offloaded else 0,
            hidden_final=confidence[-1] if confidence and reveals else None,
        )


_UNKNOWN = _Unknown()
