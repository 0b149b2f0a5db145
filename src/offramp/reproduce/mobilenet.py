"""MobileNetV2 1.0 (Sandler et al. 2018, arXiv 1801.04381) as TensorFlow trained it, with ImageNet weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp.datasets.arrays import read_arrays
from offramp.errors import DatasetError
from offramp.reproduce.weights import MOBILENETV2

__all__ = ["FEATURES", "MobileNetV2", "mobilenetv2"]

#: Features before the classifier.
FEATURES = 1280
#: Table 2 of the paper: expansion, channels, blocks, stride of the first one.
_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """Nineteen layers, `features[0]` to `features[18]`, global average pooling, a classifier if wanted.

    Takes images (N, 3, H, W), gives logits (N, classes), or the 1,280 pooled features. Every batch normalisation
    is folded into the convolution before it, so there are no statistics to keep.

    Args:
        classes: Number of classes; None gives the pooled features instead of logits.
        side: The side in pixels that images are enlarged to first, bilinearly; left as they are if None.
    """

    def __init__(self, classes: int | None = 1000, *, side: int | None = None) -> None:
        super().__init__()
        self.enlarge = nn.Identity() if side is None else nn.Upsample((side, side), mode="bilinear")
        layers: list[nn.Module] = [_convolution(3, 32, 3, stride=2)]
        channels = 32
        for expansion, out, blocks, stride in _BLOCKS:
            for i in range(blocks):
                layers.append(_Block(channels, out, expansion, stride if i == 0 else 1))
                channels = out
        self.features = nn.Sequential(*layers, _convolution(channels, FEATURES, 1))
        self.classifier = nn.Identity() if classes is None else nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to logits, or to pooled features."""
        out: Tensor = self.classifier(self.features(self.enlarge(x)).mean(dim=(2, 3)))
        return out


class _SamePadded(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" does: what is odd goes below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        above, below = _padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = _padding(x.shape[3], self.kernel_size[1], self.stride[1])
        if (above, left) == (below, right):
            return F.conv2d(x, self.weight, self.bias, self.stride, (above, left), groups=self.groups)
        x = F.pad(x, (left, right, above, below))
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _convolution(channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(_SamePadded(channels, out, kernel, stride, groups=groups), nn.ReLU6())


class _Block(nn.Module):
    """An inverted residual: expand, convolve each channel alone, project; no activation behind the projection."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        widened = [_convolution(channels, inner, 1)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widened, _convolution(inner, inner, 3, stride=stride, groups=inner), _SamePadded(inner, out, 1)
        )
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenetv2(classes: int | None = 1000, *, side: int | None = None) -> MobileNetV2:
    """MobileNetV2 with ImageNet weights, dequantised from 8 bits; in evaluation mode.

    Inputs are pixels in [−1, 1]. Trained at 224×224.

    Args:
        classes: 1000 keeps ImageNet's classifier, any other number gives an untrained one, None none.
        side: As `MobileNetV2` takes it.

    Raises:
        DatasetError: The weights are not at hand, altered, or of another network.
    """
    path = MOBILENETV2.find()
    net = MobileNetV2(classes, side=side)
    try:
        kept = read_arrays(path)
        assert isinstance(kept, dict)  # of the sum that it has
        weights = _dequantised(kept)
        with torch.no_grad():
            for layer in net.modules():
                if isinstance(layer, nn.Conv2d):
                    _set(layer, *next(weights))
            if classes == 1000:
                weight, bias = next(weights)
                # The first of 1,001 outputs is TensorFlow's background class.
                _set(net.classifier, weight[1:, :, 0, 0], bias[1:])
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise DatasetError(f"{path} holds the weights of another network: {error}") from error
    return net.eval()


def _dequantised(arrays: dict[str, NDArray[np.generic]]) -> Iterator[tuple[Tensor, Tensor]]:
    for i in itertools.count():
        if f"{i:02d}.q" not in arrays:
            return
        q, scale, bias = (np.asarray(arrays[f"{i:02d}.{part}"], np.float32) for part in "qsb")
        yield torch.from_numpy(q * scale[:, None, None, None]), torch.from_numpy(bias)


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    if weight.shape != layer.weight.shape:
        raise ValueError(f"{tuple(weight.shape)} where {tuple(layer.weight.shape)} is expected")
    assert layer.bias is not None  # batch normalisation is folded into it
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
