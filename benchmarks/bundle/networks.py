"""Networks with random weights and exits, for the benchmarks of cuts: MobileNetV2 and ResNet-56."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit

__all__ = ["mobilenetv2", "resnet56"]

#: MobileNetV2 (arXiv 1801.04381, table 2): expansion, channels, repetitions, first stride.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
#: I-SplitEE (arXiv 2401.10541) puts exits after layers 3, 6, 9, 12, 15 and 18 of 19, counted from 1.
MOBILENET_EXITS = tuple(f"layers.{n - 1}" for n in (3, 6, 9, 12, 15, 18))
RESNET_EXITS = ("layer1.2", "layer1.6", "layer2.1", "layer2.5", "layer3.0", "layer3.4")


def mobilenetv2(side: int) -> tuple[MultiExit, Tensor]:
    """MobileNetV2 at the paper's exits, for images of this many pixels a side; an example too."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Sequential(*_normed(nn.Conv2d(3, 32, 3, 2, 1, bias=False)), nn.ReLU6())]
    given = 32
    for expansion, channels, repetitions, stride in BLOCKS:
        for i in range(repetitions):
            layers.append(_Inverted(given, channels, expansion, stride if i == 0 else 1))
            given = channels
    layers.append(nn.Sequential(*_normed(nn.Conv2d(given, 1280, 1, bias=False)), nn.ReLU6()))
    net = nn.Sequential()
    net.add_module("layers", nn.Sequential(*layers))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 10)))
    return _with_exits(net, MOBILENET_EXITS, side)


def resnet56() -> tuple[MultiExit, Tensor]:
    """CIFAR-10's ResNet-56 (arXiv 1512.03385, section 4.2) with six exits; an example too."""
    torch.manual_seed(0)
    net, given = nn.Sequential(nn.Sequential(*_normed(nn.Conv2d(3, 16, 3, 1, 1, bias=False)), nn.ReLU())), 16
    for i, channels in enumerate((16, 32, 64), start=1):
        blocks = []
        for _ in range(9):
            blocks.append(_Basic(given, channels))
            given = channels
        net.add_module(f"layer{i}", nn.Sequential(*blocks))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)))
    return _with_exits(net, RESNET_EXITS, 32)


def _with_exits(net: nn.Module, exits: tuple[str, ...], side: int) -> tuple[MultiExit, Tensor]:
    example = torch.zeros(1, 3, side, side)
    return MultiExit(net, {tap: PooledHead(10) for tap in exits}, example_input=example), example


class _Inverted(nn.Module):
    """An inverted residual block: wide inside, depthwise in the middle."""

    def __init__(self, given: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = given * expansion
        widened = [] if expansion == 1 else [*_normed(nn.Conv2d(given, wide, 1, bias=False)), nn.ReLU6()]
        depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        narrowed = nn.Conv2d(wide, channels, 1, bias=False)
        self.body = nn.Sequential(*widened, *_normed(depthwise), nn.ReLU6(), *_normed(narrowed))
        self.adds = stride == 1 and given == channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, given, H, W) to (N, channels, H/stride, W/stride)."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class _Basic(nn.Module):
    """Two 3×3 convolutions and a shortcut without weights: every other place, missing channels zero."""

    def __init__(self, given: int, channels: int) -> None:
        super().__init__()
        self.stride, self.added = (1, 0) if given == channels else (2, channels - given)
        first = nn.Conv2d(given, channels, 3, self.stride, 1, bias=False)
        second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.body = nn.Sequential(*_normed(first), nn.ReLU(), *_normed(second))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, given, H, W) to (N, channels, H/stride, W/stride)."""
        short = x
        if self.added:
            half = self.added // 2
            short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added - half))
        return F.relu(self.body(x) + short)


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, nn.Module]:
    return convolution, nn.BatchNorm2d(convolution.out_channels)
