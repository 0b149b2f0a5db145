"""Networks with random weights and exits, for the benchmarks of cuts: MobileNetV2 and ResNet-56."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit
from offramp.reproduce.mobilenet import MobileNetV2
from offramp.reproduce.resnet import CifarResNet

__all__ = ["RESNET_EXITS", "mobilenetv2", "resnet56"]

#: I-SplitEE (arXiv 2401.10541) puts exits after layers 3, 6, 9, 12, 15 and 18 of 19, counted from 1.
MOBILENET_EXITS = tuple(f"features.{n - 1}" for n in (3, 6, 9, 12, 15, 18))
RESNET_EXITS = ("layer1.2", "layer1.6", "layer2.1", "layer2.5", "layer3.0", "layer3.4")


def mobilenetv2(side: int) -> tuple[MultiExit, Tensor]:
    """MobileNetV2 at the paper's exits, for images of this many pixels a side; an example too."""
    torch.manual_seed(0)
    return _with_exits(MobileNetV2(10), MOBILENET_EXITS, side)


def resnet56() -> tuple[MultiExit, Tensor]:
    """CIFAR-10's ResNet-56 with six exits; an example too."""
    torch.manual_seed(0)
    return _with_exits(CifarResNet(56), RESNET_EXITS, 32)


def _with_exits(net: nn.Module, exits: tuple[str, ...], side: int) -> tuple[MultiExit, Tensor]:
    example = torch.zeros(1, 3, side, side)
    return MultiExit(net, {name: PooledHead(10) for name in exits}, example_input=example), example
