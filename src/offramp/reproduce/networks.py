"""The studies' networks: dense, predefined-sparse, and narrow."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from offramp.errors import ConfigError
from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit
from offramp.sparse.layers import SparseLayer

__all__ = ["he_normal_", "mlp", "narrowed", "small_conv", "wide_conv", "with_exit"]


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Fully connected layers with ReLU in between; `widths` from the inputs to the classes."""
    layers: list[nn.Module] = []
    for n_left, n_right in itertools.pairwise(widths):
        layers += [nn.Linear(n_left, n_right), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_conv(widths: Sequence[int], classes: int = 10) -> nn.Sequential:
    """For 28×28 grey images: three convolutions of stride 2, two linear layers. `widths` are four numbers."""
    a, b, c, hidden = widths
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, a, 5, stride=2, padding=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(b, c, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(c * 16, hidden), nn.ReLU(), nn.Linear(hidden, classes)),
    )


def wide_conv(widths: Sequence[int], classes: int = 10) -> nn.Sequential:
    """For 32×32 colour images: four 3×3 convolutions with batch normalisation, pooled to one place at the end."""
    a, b, c, d = widths

    def stage(n_left: int, n_right: int, *, stride: int = 1, pool: bool = False) -> nn.Sequential:
        convolution = nn.Conv2d(n_left, n_right, 3, stride=stride, padding=1, bias=False)
        layers = [convolution, nn.BatchNorm2d(n_right), nn.ReLU()]
        return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))

    return nn.Sequential(
        stage(3, a, stride=2),
        stage(a, b, pool=True),
        stage(b, c, pool=True),
        stage(c, d),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(d, classes)),
    )


def with_exit(model: nn.Module, tap: str, example: Tensor, classes: int = 10) -> MultiExit:
    """A network with one early exit behind the submodule `tap`."""
    return MultiExit(model, {tap: PooledHead(classes)}, example_input=example)


def narrowed(
    widths: Sequence[int],
    build: Callable[[Sequence[int]], nn.Module],
    cost: Callable[[nn.Module], int],
    target: int,
) -> tuple[int, ...]:
    """The largest widths, in the proportions of `widths`, whose network does not cost more than `target`.

    Args:
        widths: Those of the full network.
        build: Makes a network from widths.
        cost: What is compared.
        target: The cost to come near to.

    Raises:
        ConfigError: Even one neuron per layer costs more.
    """
    widest = max(widths)

    def scaled(n: int) -> tuple[int, ...]:
        return tuple(max(1, round(w * n / widest)) for w in widths)

    n = bisect.bisect_right(range(1, widest + 1), target, key=lambda n: cost(build(scaled(n))))
    if n == 0:
        raise ConfigError(f"even the narrowest network costs more than {target:,}")
    return scaled(n)


def he_normal_(net: nn.Module, fan_ins: Sequence[int], bias: float) -> None:
    """Draws every layer's weights from N(0, 2/fan_in) and sets its bias, layer by layer in order.

    Args:
        net: The network.
        fan_ins: One per linear layer.
        bias: Every bias's value.
    """
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, SparseLayer))]
    with torch.no_grad():
        for layer, fan_in in zip(layers, fan_ins, strict=True):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
            if layer.bias is not None:
                layer.bias.fill_(bias)
