"""What the edge itself computes for one input: stages, exits on the way, codecs, and falling back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.feed import by_name
from offramp.bundle.manifest import TensorSpec
from offramp.bundle.preprocessing import preprocess
from offramp.errors import InputError, StageError
from offramp.policy.base import Action
from offramp.runtime.conditions import Conditions
from offramp.runtime.gate import Belief, Gate
from offramp.runtime.sources import Broken
from offramp.runtime.stages import Stages, check_tensor
from offramp.runtime.trip import Trip

__all__ = ["Head"]

Array = NDArray[np.generic]


class Head:
    """Runs the stages that an edge holds; what it measures goes to the edge's conditions.

    One thread runs it: the edge computes one thing at a time.

    Args:
        stages: The sessions.
        gate: Temperatures and thresholds.
        conditions: Told what stages and exits took.
        exits: The early exits that the edge can evaluate, ascending.
    """

    def __init__(self, stages: Stages, gate: Gate, conditions: Conditions, exits: Sequence[int]) -> None:
        self._stages, self._gate, self._conditions = stages, gate, conditions
        self._manifest, self._held = stages.bundle.manifest, stages.bundle.held
        self._exits, self._last = tuple(exits), stages.bundle.manifest.last

    def prepared(self, x: Any) -> list[Array]:
        """An input as the first stage takes it: checked, a batch of one.

        Raises:
            InputError: An input of wrong name, shape or dtype, or not finite.
        """
        if isinstance(x, Broken):
            raise InputError(x.reason)
        specs, images = self._manifest.inputs, self._manifest.preprocessing
        arrays = by_name(x, specs)
        first = arrays[specs[0].name]
        if images is not None and first.dtype == np.uint8 and specs[0].dtype != "uint8":
            return [preprocess(first[None].view(np.uint8), images)]
        return [_one_sample(arrays[spec.name], spec) for spec in specs]

    def along(self, trip: Trip, action: Action, alpha: float | None) -> int | None:
        """Stages up to the split; gives the exit that answers, if one does.

        Raises:
            StageError: ONNX Runtime failed.
        """
        for i in range(action.split + 1):
            self._step(trip)
            if i == self._last:
                return i
            if i in action.exits or i in action.watch:
                belief = self._evaluate(trip, i, trip.tensors)
                if i in action.exits and self._gate.passes(i, belief.confidence, alpha):
                    return i
        return None

    def packed(self, trip: Trip, mode: str) -> dict[str, Array]:
        """The cut reached, by name, as it travels in a mode.

        Raises:
            ActionError: The cut has no such mode.
            StageError: ONNX Runtime failed.
        """
        packed, spent = self._stages.encode(trip.stage, mode, trip.tensors)
        trip.edge_ms += spent
        trip.encode_ms = spent
        specs = self._stages.wire(trip.stage, mode)
        return {spec.name: tensor for spec, tensor in zip(specs, packed, strict=True)}

    def reserve_ms(self, trip: Trip) -> float:
        """The time to keep back for reaching an exit here, should the server bring no answer."""
        if trip.beliefs or trip.kept is not None:
            return 0.0
        ahead = [i for i in (*self._exits, self._last) if trip.stage < i < self._held]
        if not ahead:
            return 0.0
        trip.reserved = ahead[0]
        return sum(self._conditions.stage_ms[trip.stage + 1 : ahead[0] + 1])

    def fall_back(self, trip: Trip, left_ms: Callable[[], float]) -> int | None:
        """Goes on through the stages held while time allows; gives the deepest exit reached.

        A stage that fails ends the way, and the trip's error says so too; an exit passed before still answers.

        Args:
            trip: Where the input has come to.
            left_ms: What is left of its deadline now.
        """
        while trip.stage + 1 < self._held:
            following, left = trip.stage + 1, left_ms()
            in_time = self._conditions.stage_ms[following] <= left
            if not in_time and following > trip.reserved:  # a timer that was a little late costs no answer
                if left > 0 and not trip.beliefs and trip.kept is None:
                    self._conditions.gave_up(following)
                break
            if not self._tried(trip, lambda: self._step(trip)):
                break
        kept = trip.kept
        if self._last not in trip.beliefs and kept is not None and kept[0] not in trip.beliefs:
            self._tried(trip, lambda: self._evaluate(trip, *kept))
        return max(trip.beliefs, default=None)

    def _tried(self, trip: Trip, run: Callable[[], object]) -> bool:
        """Whether something could be run; if not, the trip's error has the reason."""
        try:
            run()
        except StageError as error:
            trip.error = f"{trip.error}; and here: {error}"
            return False
        return True

    def _step(self, trip: Trip) -> None:
        trip.tensors, spent = self._stages.stage(trip.stage + 1, trip.tensors)
        trip.stage += 1
        trip.edge_ms += spent
        self._conditions.ran_stage(trip.stage, spent)
        if trip.stage == self._last:
            trip.beliefs[trip.stage] = self._gate.belief(trip.stage, trip.tensors[0][0])
        elif trip.stage in self._exits:
            trip.kept = (trip.stage, trip.tensors)

    def _evaluate(self, trip: Trip, index: int, tensors: list[Array]) -> Belief:
        logits, spent = self._stages.exit(index, tensors)
        trip.edge_ms += spent
        self._conditions.ran_exit(index, spent)
        trip.beliefs[index] = self._gate.belief(index, logits[0])
        return trip.beliefs[index]


def _one_sample(array: Array, spec: TensorSpec) -> Array:
    batch = array if array.shape[:1] == (1,) and array.ndim == len(spec.shape) + 1 else array[None]
    check_tensor(batch, spec)
    return batch
