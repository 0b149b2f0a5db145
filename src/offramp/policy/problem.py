"""What a replay plays on, in the arrays that compiled policies read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.errors import ConfigError, TraceError

__all__ = ["Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    """What a replay plays on: per sample and arm what there is to see, per arm what it costs.

    Attributes:
        arms: The exits by number, ascending, the last exit last; −1 before them if sending the input is an arm.
        prediction: (samples, arms) class indices.
        confidence: (samples, arms) C, in [0, 1].
        sure: (samples, arms) whether C reaches the arm's threshold; the last arm is always sure.
        local_cost: (arms,) paid when the arm answers at the edge.
        offload_cost: (arms,) paid when it offloads; the last arm never does.

    Raises:
        TraceError: Arrays that do not agree, or hold what they cannot; fewer samples than arms.
    """

    arms: tuple[int, ...]
    prediction: NDArray[np.int32]
    confidence: NDArray[np.float64]
    sure: NDArray[np.bool_]
    local_cost: NDArray[np.float64]
    offload_cost: NDArray[np.float64]

    def __post_init__(self) -> None:
        columns = len(self.arms)
        if not columns or list(self.arms) != sorted(set(self.arms)) or self.arms[0] < -1:
            raise TraceError(f"arms are exits by number, ascending, not {self.arms}")
        samples = len(self.confidence)
        wanted = {
            "prediction": (np.int32, (samples, columns)),
            "confidence": (np.float64, (samples, columns)),
            "sure": (np.bool_, (samples, columns)),
            "local_cost": (np.float64, (columns,)),
            "offload_cost": (np.float64, (columns,)),
        }
        for name, (dtype, shape) in wanted.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise TraceError(
                    f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {array.dtype} of {array.shape}"
                )
        if samples < columns:
            raise TraceError(f"a replay plays every arm once first: {samples} samples are too few for {columns}")
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise TraceError("confidence: values outside [0, 1], or not finite")
        if not self.sure[:, -1].all():
            raise TraceError("sure: the last arm always answers")
        for name in ("local_cost", "offload_cost"):
            cost = getattr(self, name)
            if not (np.isfinite(cost).all() and (cost >= 0).all()):
                raise TraceError(f"{name}: costs are finite and at least 0, not {cost.tolist()}")

    def __len__(self) -> int:
        return len(self.confidence)

    def checked(self, orders: NDArray[np.int64]) -> NDArray[np.int64]:
        """The orders of a replay, as compiled loops need them: they would read past an array's end.

        Args:
            orders: (runs, plays) indices of samples.

        Raises:
            ConfigError: Anything else.
        """
        array = np.asarray(orders)
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise ConfigError(
                f"orders are (runs, plays) indices of samples, not {array.dtype} of shape {array.shape}"
            )
        if array.size and not 0 <= array.min() <= array.max() < len(self):
            raise ConfigError(
                f"orders name samples {array.min()} to {array.max()}; there are 0 to {len(self) - 1}"
            )
        return np.ascontiguousarray(array, np.int64)
