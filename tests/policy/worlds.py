"""Recorded samples, and what an edge would show of them: what is not seen raises when it is read."""

import numpy as np

from offramp.policy.base import Context
from offramp.policy.cost import CostModel
from offramp.policy.forecast import Forecast
from offramp.policy.problem import Problem

ALPHA = 0.5
COST = CostModel.in_layers((3, 6, 9, 12), gamma=0.05, offload=0.4)


class Startled:
    """A drift detector without a memory: every small number is an alarm."""

    drift_detected = False

    def update(self, x):
        self.drift_detected = x < 0.12


class HiddenError(AssertionError):
    """What nobody saw was read."""


class Evaluated(dict):
    """By exit, of the exits that were evaluated; asking for another one's value raises."""

    def __missing__(self, key):
        raise HiddenError(f"exit {key} was not evaluated")

    def get(self, key, default=None):
        return self[key]


class Seen:
    """An observation that raises where nothing was seen."""

    latency_ms, payload_bytes = 1.0, 0

    def __init__(
        self, *, confidences, labels, final, exit_index, confidence, offloaded, failed, cost, hidden=None
    ):
        self.confidences, self.labels = Evaluated(confidences), Evaluated(labels)
        self.exit, self.confidence, self.offloaded, self.failed = exit_index, confidence, offloaded, failed
        self.cost, self._final, self._hidden = cost, final, hidden

    @property
    def final_confidence(self):
        if self._final is None:
            raise HiddenError("the last exit was not seen")
        return self._final

    @property
    def hidden_final(self):
        if self._hidden is None:
            raise HiddenError("nobody can see the last exit's confidence")
        return self._hidden


def context(arms=4, *, cost=COST, splits=None):
    last = arms - 1
    return Context(
        splits=tuple(range(-1, arms)) if splits is None else splits,
        exits=tuple(range(last)),
        last=last,
        thresholds=(ALPHA,) * last + (None,),
        modes={},
        mode="float",
        cost=cost,
        forecast=forecast(arms),
    )


def forecast(arms=4, **options):
    """A slow edge, a fast server."""
    return Forecast(
        **{
            "stage_ms": (10.0,) * arms,
            "exit_ms": (0.5,) * (arms - 1) + (0.0,),
            "tail_ms": tuple(1.0 * (arms - i) for i in range(arms)),
            "sent_bytes": (4000, *(8000 >> i for i in range(arms - 1))),
            "round_trip_ms": 5.0,
            "ms_per_byte": 1e-3,
            **options,
        }
    )


def problem(confidence, *, cost=COST, prediction=None, heads=True):
    """Samples whose costs are an edge's: `heads` says whether those on the way are evaluated."""
    confidence = np.asarray(confidence, np.float64)
    samples, arms = confidence.shape
    sure = confidence >= ALPHA
    sure[:, -1] = True
    evaluated = [range(k + 1) if heads else (k,) for k in range(arms)]
    return Problem(
        arms=tuple(range(arms)),
        prediction=np.zeros((samples, arms), np.int32) if prediction is None else prediction,
        confidence=confidence,
        sure=sure,
        local_cost=np.array([cost.paid(k, False, n) for k, n in enumerate(evaluated)]),
        offload_cost=np.array([cost.paid(k, True, n) for k, n in enumerate(evaluated)]),
    )


def drawn(seed, samples=300, arms=4):
    """Samples at random; deeper exits are surer, and agree more."""
    rng = np.random.default_rng(seed)
    confidence = np.clip(rng.uniform(0.1, 0.8, (samples, arms)) + np.linspace(0, 0.2, arms), 0, 1)
    return confidence, rng.integers(0, 2, (samples, arms)).astype(np.int32)


def observe(policy, ctx, action, confidence, prediction, *, failed=False):
    """What an edge would tell the policy."""
    evaluated, answer, stage = [], None, -1
    for i in range(action.split + 1):
        stage = i
        if i == ctx.last or i in action.exits or i in action.watch:
            evaluated.append(i)
        if i == ctx.last or (i in action.exits and confidence[i] >= policy.threshold(ctx, i)):
            answer = i
            break
    offloaded = answer is None
    failed = failed and offloaded
    if failed:
        answer = evaluated[-1] if evaluated else None
    elif offloaded:
        answer = ctx.last
    return Seen(
        confidences={i: float(confidence[i]) for i in evaluated},
        labels={i: int(prediction[i]) for i in evaluated},
        final=float(confidence[-1]) if answer == ctx.last else None,
        exit_index=answer,
        confidence=0.0 if answer is None else float(confidence[answer]),
        offloaded=offloaded,
        failed=failed,
        cost=ctx.cost.paid(stage, offloaded, evaluated),
        hidden=float(confidence[-1]) if policy.replay_only else None,
    )


def play(policy, ctx, confidence, prediction, *, failing=()):
    """The actions of a policy that sees the samples in order; offloads of those in `failing` bring no answer."""
    actions = []
    for t in range(len(confidence)):
        action = policy.choose(ctx)
        actions.append(action)
        policy.update(action, observe(policy, ctx, action, confidence[t], prediction[t], failed=t in failing))
    return actions
