"""ResNets for CIFAR-10 (He et al. 2016, arXiv 1512.03385, section 4.2), laid out as their published weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import ConfigError, DatasetError
from offramp.reproduce.weights import RESNET56

__all__ = ["CifarResNet", "resnet56"]


class CifarResNet(nn.Module):
    """Three groups of residual blocks at 32², 16² and 8² places with 16, 32 and 64 channels, and one linear layer.

    Takes images (N, 3, 32, 32), gives logits (N, classes). Where a group begins with a stride, the shortcut takes
    every second place and fills the new channels with zeros (option A): it has no weights.

    Args:
        depth: Layers with weights on the path: 6n + 2, with n blocks in each group.
        classes: Number of classes.

    Raises:
        ConfigError: Another depth.
    """

    def __init__(self, depth: int = 56, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ConfigError(f"a ResNet for CIFAR has 6n + 2 layers, such as 20, 32 or 56, not {depth}")
        n = depth // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _group(16, 16, n, stride=1)
        self.layer2 = _group(16, 32, n, stride=2)
        self.layer3 = _group(32, 64, n, stride=2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.added = stride, (out - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(x + y)


def _group(channels: int, out: int, blocks: int, *, stride: int) -> nn.Sequential:
    rest = [_Block(out, out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(channels, out, stride), *rest)


def resnet56() -> CifarResNet:
    """ResNet-56 with its published weights; 93.39 % of CIFAR-10's test images right. In evaluation mode.

    Inputs are pixels in [0, 1], less the mean (.485, .456, .406), over the deviation (.229, .224, .225).

    Raises:
        DatasetError: The weights are not at hand, altered, or of another network.
    """
    path = RESNET56.find()
    kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net = CifarResNet(56)
    try:
        net.load_state_dict({name.removeprefix("module."): tensor for name, tensor in kept.items()})
    except RuntimeError as error:
        raise DatasetError(f"{path} holds the weights of another network") from error
    return net.eval()
