"""The weights and multiply-accumulates of any network, its sparse layers' included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.evalmode import eval_mode
from offramp.sparse.layers import SparseLayer

__all__ = ["Counts", "count"]


@dataclass(frozen=True)
class Counts:
    """What a network holds and computes.

    Attributes:
        weights: Values in the weights of linear and convolution layers, heads included, biases not.
        macs: Multiply-accumulates of one sample.
    """

    weights: int
    macs: int


def count(net: nn.Module, example: Tensor) -> Counts:
    """The weights and multiply-accumulates of a network; `example` is one input with a batch of one."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, SparseLayer)
    weights = sum(m.weight.numel() for m in net.modules() if isinstance(m, kinds))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), eval_mode(net):
        net(example)
    return Counts(weights, int(counter.get_total_flops()) // 2)
