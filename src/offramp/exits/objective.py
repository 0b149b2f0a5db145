"""The loss of a multi-exit network: a plain callable that fits any training loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from offramp.errors import ConfigError

__all__ = ["JointLoss"]


class JointLoss:
    """The weighted sum of every exit's cross-entropy; all exits and the backbone learn together.

    Args:
        weights: One weight per exit, the last exit's last; all 1 if left out. I-SplitEE's own are
            1, 1, 1, .7, .7, .7, .5 (arXiv 2401.10541).

    Raises:
        ConfigError: Negative weights, or another number of weights than exits.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        if weights is not None and (not weights or min(weights) < 0):
            raise ConfigError(f"exit weights must be at least 0, not {list(weights)}")
        self.weights = None if weights is None else tuple(weights)

    def __call__(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of one batch: logits (N, classes) per exit against class indices (N,)."""
        weights = self.weights or (1.0,) * len(outputs)
        if len(weights) != len(outputs):
            raise ConfigError(f"{len(weights)} exit weights for {len(outputs)} exits")
        losses = [w * F.cross_entropy(logits, target) for w, logits in zip(weights, outputs, strict=True)]
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total
