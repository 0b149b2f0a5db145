"""The losses of a multi-exit network: plain callables that fit any training loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from offramp.errors import ConfigError

__all__ = ["DistilledLoss", "JointLoss"]


class JointLoss:
    """The weighted sum of every exit's cross-entropy; all exits and the backbone learn together.

    Args:
        weights: One weight per exit, the last exit's last; all 1 if left out. I-SplitEE's own are
            1, 1, 1, .7, .7, .7, .5 (arXiv 2401.10541).

    Raises:
        ConfigError: Negative weights, or another number of weights than exits.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights = _checked(weights)

    def __call__(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of one batch: logits (N, classes) per exit against class indices (N,)."""
        return _total([F.cross_entropy(logits, target) for logits in outputs], self.weights)


class DistilledLoss:
    """As `JointLoss`, but the last exit teaches the early ones, beside the labels.

    An early exit's loss is (1 − mix)·CE(z, y) + mix·T²·KL(softmax(z_last/T) ‖ softmax(z/T)); the last exit
    learns from the labels alone, and no gradient reaches it as a teacher. The factor T² keeps the soft targets'
    share of the gradient when T changes (Hinton et al. 2015, arXiv 1503.02531, section 2).

    Args:
        weights: One weight per exit, the last exit's last; all 1 if left out.
        temperature: T; above 1 it shows more of how the teacher ranks wrong classes.
        mix: The teacher's share against the labels', from 0 to 1.

    Raises:
        ConfigError: Negative weights, a temperature that is not above 0, a mix outside [0, 1], or another
            number of weights than exits.
    """

    def __init__(
        self, weights: Sequence[float] | None = None, *, temperature: float = 4.0, mix: float = 0.5
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature must be above 0 and finite, not {temperature!r}")
        if not 0 <= mix <= 1:
            raise ConfigError(f"mix is the teacher's share between 0 and 1, not {mix!r}")
        self.weights = _checked(weights)
        self.temperature, self.mix = temperature, mix

    def __call__(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of one batch: logits (N, classes) per exit against class indices (N,)."""
        t = self.temperature
        *early, last = outputs
        teacher = F.log_softmax(last.detach() / t, dim=1)
        losses = []
        for logits in early:
            hard = F.cross_entropy(logits, target)
            soft = F.kl_div(F.log_softmax(logits / t, dim=1), teacher, reduction="batchmean", log_target=True)
            losses.append((1 - self.mix) * hard + self.mix * t * t * soft)
        return _total([*losses, F.cross_entropy(last, target)], self.weights)


def _checked(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    if weights is None:
        return None
    if not weights or not all(0 <= w < math.inf for w in weights):
        raise ConfigError(f"exit weights must be at least 0, not {list(weights)}")
    return tuple(weights)


def _total(losses: Sequence[Tensor], weights: tuple[float, ...] | None) -> Tensor:
    weights = weights or (1.0,) * len(losses)
    if len(weights) != len(losses):
        raise ConfigError(f"{len(weights)} exit weights for {len(losses)} exits")
    total = weights[0] * losses[0]
    for weight, loss in zip(weights[1:], losses[1:], strict=True):
        total = total + weight * loss
    return total
