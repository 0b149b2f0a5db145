"""Exit heads: small classifiers that hang off a feature of the network."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import ConfigError

__all__ = ["PooledHead"]


class PooledHead(nn.Module):
    """Average pooling to `pool`×`pool` places, then one linear layer.

    Takes a feature map (N, C, H, W), tokens (N, T, F), which are averaged, or features (N, F); gives logits
    (N, classes). The number of input features is found at the first forward pass.

    Args:
        classes: Number of classes.
        pool: Places per side that a feature map is pooled to; kept as it is where it is smaller.

    Raises:
        ConfigError: Fewer than one class or place.
    """

    def __init__(self, classes: int, pool: int = 1) -> None:
        super().__init__()
        if classes < 1 or pool < 1:
            raise ConfigError(f"a head needs at least one class and one place, not {classes} and {pool}")
        self.pool = pool
        with warnings.catch_warnings():  # torch calls every lazy module new
            warnings.filterwarnings("ignore", message="Lazy modules are a new feature")
            self.linear = nn.LazyLinear(classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Maps a feature to logits (N, classes)."""
        if feature.dim() == 4:
            # One window size for all places (adaptive pooling's differ), so that it exports as one operator.
            (kh, sh), (kw, sw) = (_window(size, self.pool) for size in feature.shape[-2:])
            feature = F.avg_pool2d(feature, (kh, kw), (sh, sw))
        elif feature.dim() == 3:
            feature = feature.mean(dim=1)
        elif feature.dim() != 2:
            raise ConfigError(
                f"PooledHead takes features of rank 2, 3 or 4, not {feature.dim()}; give a head of your own"
            )
        logits: Tensor = self.linear(feature.flatten(1))
        return logits


def _window(size: int, places: int) -> tuple[int, int]:
    """Kernel and stride that average `size` values into `places` windows covering all of them."""
    places = min(size, places)
    stride = size // places
    return size - (places - 1) * stride, stride
