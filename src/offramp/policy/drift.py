"""Learners that start anew when a drift detector says that the world has changed."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from offramp.errors import ConfigError, MissingExtraError
from offramp.policy.base import Action, Context, Observation, Policy
from offramp.policy.ucb import UpperConfidence

__all__ = ["Detector", "DetectorMaker", "DriftReset"]


class Detector(Protocol):
    """What is told numbers one by one, and says when they have changed: any drift detector of river's."""

    @property
    def drift_detected(self) -> bool:
        """Whether the last number showed a change."""

    def update(self, x: float) -> Any:
        """Takes the next number."""


#: A fresh detector, such as `river.drift.ADWIN` itself.
DetectorMaker: TypeAlias = Callable[[], Detector]


class DriftReset(Policy):
    """A learner that forgets everything when the exits' confidences change.

    What is watched has to move when the world does, and must not move because the policy does. Rewards fail at
    the latter, since their mean follows the arms played; the played arm's residual against the learner's own
    mean hides what other exits say, and follows what a gate hides from the learner. An exit's confidence does
    neither: an arm is chosen before its input is seen, so exit i's confidences over all plays that go at least as
    deep are a fair sample of the inputs, whatever arm is played. Each exit up to the split has a detector of its
    own. Exits beyond it are left out: an edge runs those only where a server failed on an input that was unsure.
    Costs need no watch: a learner takes them from the context, which is renewed when they change.

    At an alarm the learner and every detector start anew, and the input that brought it is the first that is
    learned from. A change of exits that are never evaluated is not seen; `splitee`, which runs one head, sees
    the exits that it plays.

    Its state is the learner's, with or without a detector: what was watched is not kept, and detectors start
    anew after `restore`.

    Args:
        learner: The learner; discount, window and audits may be added to taste.
        detector: "adwin", or a function that makes a detector. ADWIN (Bifet and Gavaldà, SDM 2007, "Learning
            from time-changing data with adaptive windowing") is the one of river with its usual settings: it
            compares every older with every newer part of what it remembers, and needs no scale.

    Attributes:
        alarms: How often it has started anew.

    Raises:
        ConfigError: A policy that is no such learner, an unknown name, or what makes no detector.
        MissingExtraError: river is not installed.
    """

    def __init__(self, learner: UpperConfidence, detector: str | DetectorMaker = "adwin") -> None:
        if not isinstance(learner, UpperConfidence):
            what = getattr(learner, "name", learner)
            raise ConfigError(f"{what!r} learns nothing that it could forget; drift resets UCB learners")
        self.learner = learner
        self.name, self.alpha, self.replay_only = f"{learner.name}, drift", learner.alpha, learner.replay_only
        self.alarms = 0
        make = _maker(detector)
        made = make()
        if not callable(getattr(made, "update", None)) or not hasattr(made, "drift_detected"):
            raise ConfigError(f"a detector has update(x) and drift_detected, as river's have; got {made!r}")
        #: By exit, made when it is first seen.
        self._watched: defaultdict[int, Detector] = defaultdict(make)

    def choose(self, context: Context) -> Action:
        """What the learner chooses."""
        return self.learner.choose(context)

    def update(self, action: Action, observation: Observation) -> None:
        """Lets the learner forget if the confidences seen say so, then learn."""
        if self._alarmed(action, observation.confidences):
            self.alarms += 1
            self._watched.clear()
            self.learner.forget()
        self.learner.update(action, observation)

    def state(self) -> dict[str, Any]:
        """What the learner knows, as JSON values."""
        return self.learner.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Lets the learner go on from what `state` gave; detectors start anew.

        Raises:
            PolicyStateError: No state, another policy's, or of other settings.
        """
        self.learner.restore(state)
        self._watched.clear()

    def _alarmed(self, action: Action, confidences: Mapping[int, float]) -> bool:
        alarmed, watched, split = False, self._watched, action.split
        for exit_index, confidence in confidences.items():
            if exit_index <= split:
                detector = watched[exit_index]
                detector.update(confidence)
                if detector.drift_detected:
                    alarmed = True
        return alarmed


def _maker(detector: str | DetectorMaker) -> DetectorMaker:
    if callable(detector):
        return detector
    if detector != "adwin":
        near = isinstance(detector, str) and difflib.get_close_matches(detector.lower(), ["adwin"], cutoff=0.3)
        raise ConfigError(
            f"a drift detector is 'adwin', or in Python a function that makes one, not {detector!r}"
            + ("; did you mean 'adwin'?" if near else "")
        )
    try:
        from river.drift import ADWIN
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "drift='adwin' needs river, which is not installed: pip install 'offramp[drift]'"
        ) from error
    made: DetectorMaker = ADWIN
    return made
