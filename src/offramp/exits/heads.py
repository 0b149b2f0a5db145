"""Exit heads: small classifiers that hang off a feature of the network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import ConfigError

__all__ = ["ConvHead", "DeepHead", "PooledHead", "TokenHead", "head_for", "inputs_of", "reduced", "taken"]

Layout = Literal["channels_first", "channels_last"]


class PooledHead(nn.Module):
    """Average pooling to `pool`×`pool` places, then one linear layer.

    Takes a feature map (N, C, H, W), tokens (N, T, F), which are averaged, or features (N, F); gives logits
    (N, classes). The number of input features is found at the first forward pass.

    Args:
        classes: Number of classes.
        pool: Places per side that a feature map is pooled to; kept as it is where it is smaller.
        norm: Whether batch normalisation over the channels comes before pooling. `PooledHead(classes, norm=True)`
            is I-SplitEE's exit (arXiv 2401.10541).
        channels_first: Whether features of rank 3 are (N, C, L), as 1-D convolutions give them; then L is
            averaged, all of it.

    Raises:
        ConfigError: Fewer than one class or place; a feature of another rank.
    """

    def __init__(self, classes: int, pool: int = 1, *, norm: bool = False, channels_first: bool = False) -> None:
        super().__init__()
        _check(classes, pool, "place")
        self.pool, self.channels_first = pool, channels_first
        with _lazily():
            # Over (N, C, places), whatever the feature's rank is.
            self.norm = nn.LazyBatchNorm1d() if norm else None
            self.linear = nn.LazyLinear(classes)

    def reduce(self, feature: Tensor) -> Tensor:
        """The pooled feature: (N, C, pool, pool) of a map, (N, F) of tokens.

        Normalisation comes before pooling, and its statistics are of all places. So with it each channel keeps two
        places, of the mean and the deviation that all its places have: logits and gradients are the same, and the
        running variance differs by the correction for a batch of so few places. Itself where `pool` is above 1.
        """
        if self.norm is None:
            return self._pooled(feature)
        places = 1 if feature.dim() == 3 and not self.channels_first else tuple(range(2, feature.dim()))
        if self.pool > 1 or not places:
            return feature
        deviation, mean = torch.std_mean(feature, places, correction=0, keepdim=True)
        return torch.cat([mean - deviation, mean + deviation], dim=1 if places == 1 else -1)

    def forward(self, feature: Tensor) -> Tensor:
        """Maps a feature to logits (N, classes)."""
        if self.norm is not None:
            feature = self._normalised(feature)
        logits: Tensor = self.linear(self._pooled(feature).flatten(1))
        return logits

    def _pooled(self, feature: Tensor) -> Tensor:
        if feature.dim() == 4:
            return _averaged(feature, self.pool)
        if feature.dim() == 3:
            return feature.mean(dim=2 if self.channels_first else 1)
        if feature.dim() != 2:
            raise ConfigError(
                f"PooledHead takes features of rank 2, 3 or 4, not {feature.dim()}; give a head of your own"
            )
        return feature

    def _normalised(self, feature: Tensor) -> Tensor:
        assert self.norm is not None
        if feature.dim() == 3 and not self.channels_first:
            tokens: Tensor = self.norm(feature.transpose(1, 2)).transpose(1, 2)
            return tokens
        if feature.dim() == 4:
            found: Tensor = self.norm(feature.flatten(2)).unflatten(2, feature.shape[2:])
            return found
        plain: Tensor = self.norm(feature) if feature.dim() in (2, 3) else feature
        return plain


class _MapHead(nn.Module):
    """A head that averages a map to at most `places`×`places` before anything is learnt."""

    def __init__(self, classes: int, channels: int, places: int) -> None:
        super().__init__()
        _check(classes, channels, "channel")
        _check(classes, places, "place")
        self.places = places

    def reduce(self, feature: Tensor) -> Tensor:
        """The map averaged to at most `places`×`places`."""
        if feature.dim() != 4:
            raise ConfigError(
                f"{type(self).__name__} takes feature maps (N, C, H, W), not features of rank {feature.dim()}; "
                "PooledHead and TokenHead take others"
            )
        return _averaged(feature, self.places)


class ConvHead(_MapHead):
    """A separable 3×3 convolution, batch normalisation, ReLU, global average pooling, one linear layer.

    For early features, which are large but not yet mixed over places. The map is first averaged to at most
    `places`×`places`, so that the head costs little beside a stage of any size: about
    places²·channels·(C + 9) multiply-accumulates. The convolution is pointwise, then depthwise, which mixes
    channels better than the other order (Haase and Amthor 2020, arXiv 2003.13549, BSConv-U). The number of
    input channels is found at the first forward pass.

    Args:
        classes: Number of classes.
        channels: Channels of the convolution.
        places: The most places per side that the convolution sees.

    Raises:
        ConfigError: Fewer than one class, channel or place; a feature that is no map (N, C, H, W).
    """

    def __init__(self, classes: int, channels: int = 64, *, places: int = 4) -> None:
        super().__init__(classes, channels, places)
        with _lazily():
            self.pointwise = nn.LazyConv2d(channels, 1, bias=False)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Maps a feature map to logits (N, classes)."""
        mixed = F.relu(self.norm(self.depthwise(self.pointwise(self.reduce(feature)))))
        logits: Tensor = self.linear(mixed.mean(dim=(2, 3)))
        return logits


class DeepHead(_MapHead):
    """Two 3×3 convolutions, each with batch normalisation and ReLU, global average pooling, one linear layer.

    For early features of large networks: far surer than a `ConvHead`, for ten to twenty times its cost. The
    map is first averaged to at most `places`×`places`; the first convolution halves that, so the head costs
    about 9·(places/2)²·channels·(C + channels) multiply-accumulates. The number of input channels is found at
    the first forward pass.

    Args:
        classes: Number of classes.
        channels: Channels of both convolutions.
        places: The most places per side that the first convolution sees.

    Raises:
        ConfigError: Fewer than one class, channel or place; a feature that is no map (N, C, H, W).
    """

    def __init__(self, classes: int, channels: int = 64, *, places: int = 8) -> None:
        super().__init__(classes, channels, places)
        with _lazily():
            self.first = nn.LazyConv2d(channels, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Maps a feature map to logits (N, classes)."""
        mixed = F.relu(self.first_norm(self.first(self.reduce(feature))))
        mixed = F.relu(self.second_norm(self.second(mixed)))
        logits: Tensor = self.linear(mixed.mean(dim=(2, 3)))
        return logits


class TokenHead(nn.Module):
    """One token of the mean or the first, layer normalisation, one linear layer.

    Takes tokens with their features last: (N, T, F), or (N, H, W, F) of windowed transformers; gives logits
    (N, classes). Inside a transformer features are often not normalised yet, hence the layer normalisation.
    Where tokens are padded, name the mask or take the first one. The number of features is found at the first
    forward pass.

    Args:
        classes: Number of classes.
        take: "mean" for the mean of all tokens, "first" for the first one, which is often the class token.
        mask: For "mean", the argument of the network that says which tokens count: (N, T), 1 or True where one
            does. It crosses the exit's cut.

    Raises:
        ConfigError: Fewer than one class, another word for `take`, a mask beside "first" or of another shape, or
            a feature without an axis of tokens.
    """

    def __init__(self, classes: int, take: Literal["mean", "first"] = "mean", *, mask: str | None = None) -> None:
        super().__init__()
        _check(classes, 1, "token")
        if take not in ("mean", "first"):
            raise ConfigError(f'take is "mean" or "first", not {take!r}')
        if mask is not None and take == "first":
            raise ConfigError('a mask says which tokens are averaged; with take="first" none are')
        self.take = take
        self.takes: tuple[str, ...] = () if mask is None else (mask,)
        with _lazily():
            # Normalisation without weights of its own: the linear layer's would make them redundant.
            self.linear = nn.LazyLinear(classes)

    def reduce(self, feature: Tensor, mask: Tensor | None = None) -> Tensor:
        """The one token (N, 1, F) that the head classifies."""
        if feature.dim() < 3:
            raise ConfigError(
                f"TokenHead takes tokens (N, T, F), not features of rank {feature.dim()}; PooledHead takes (N, F)"
            )
        tokens = feature.flatten(1, -2)
        if mask is None:
            return tokens[:, :1] if self.take == "first" else tokens.mean(dim=1, keepdim=True)
        if mask.shape != tokens.shape[:2]:
            came, needed = tuple(mask.shape), tuple(tokens.shape[:2])
            raise ConfigError(f"the mask {self.takes[0]!r} has shape {came}; these tokens need {needed}")
        counts = mask.to(tokens.dtype).unsqueeze(2)
        return (tokens * counts).sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True).clamp(min=1)

    def forward(self, feature: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps tokens to logits (N, classes); the mask is the one that was named."""
        token = self.reduce(feature, mask).flatten(1)
        logits: Tensor = self.linear(F.layer_norm(token, token.shape[1:]))
        return logits


def inputs_of(head: nn.Module) -> tuple[str, ...]:
    """The network's inputs that a head takes besides its feature, by argument name."""
    names = getattr(head, "takes", ())
    return (names,) if isinstance(names, str) else tuple(names)


def taken(head: nn.Module, given: Mapping[str, Any]) -> list[Any]:
    """What a head takes besides its feature.

    Args:
        head: The head.
        given: The network's inputs by argument name.

    Raises:
        ConfigError: An input that the network was not given.
    """
    names = inputs_of(head)
    if missing := [name for name in names if name not in given]:
        raise ConfigError(
            f"a head takes the input {missing[0]!r}, but the network is called with {', '.join(given) or 'none'}; "
            "name one of its arguments"
        )
    return [given[name] for name in names]


def reduced(head: nn.Module, feature: Tensor, *others: Any) -> Tensor:
    """What of a feature a head has to see: `head(reduced(head, feature, *others))` is `head(feature, *others)`,
    to rounding.

    The heads of this module begin with pooling, which has no parameters; so training on a frozen backbone may
    keep the pooled feature, which is far smaller. Any other head sees the whole feature.

    Args:
        head: The head.
        feature: Its feature.
        *others: As `taken` gives them.

    Raises:
        ConfigError: A head of another kind that takes inputs as well: of those nothing is kept.
    """
    # Subclasses may do something else with a feature.
    if isinstance(head, (ConvHead, DeepHead, PooledHead, TokenHead)) and type(head).__module__ == __name__:
        return head.reduce(feature, *others)
    if others:
        raise ConfigError(
            f"a {type(head).__name__} takes {', '.join(inputs_of(head))} besides its feature, and only features "
            "are kept; train with cache=False"
        )
    return feature


def head_for(feature: Tensor, classes: int, layout: Layout | None = None) -> nn.Module:
    """The head that suits a feature's rank and size.

    Features (N, F) and 1-D signals (N, C, L) get a `PooledHead`, tokens a `TokenHead`, maps a `ConvHead`, or a
    `PooledHead` with normalisation where fewer than 4 places a side leave nothing to convolve.

    Args:
        feature: One batch of it.
        classes: Number of classes.
        layout: Which axis holds the channels; if left out, the last one at rank 3 and the second at rank 4.

    Raises:
        ConfigError: A feature of a rank or element type that no head takes.
    """
    rank = feature.dim()
    if not feature.is_floating_point() or rank not in (2, 3, 4):
        raise ConfigError(
            f"no head is made for a feature {tuple(feature.shape)} of {feature.dtype}; heads take floating-point "
            "features of rank 2, 3 or 4. Tap another submodule, or give a head of your own"
        )
    if rank == 2:
        return PooledHead(classes)
    if (layout or ("channels_last" if rank == 3 else "channels_first")) == "channels_last":
        return TokenHead(classes)
    if rank == 3:
        return PooledHead(classes, channels_first=True)
    return ConvHead(classes) if min(feature.shape[2:]) >= 4 else PooledHead(classes, norm=True)


def _averaged(feature: Tensor, places: int) -> Tensor:
    """A map (N, C, H, W) averaged to at most `places`×`places`."""
    # One window size for all places (adaptive pooling's differ), so that it exports as one operator.
    (kh, sh), (kw, sw) = (_window(size, places) for size in feature.shape[-2:])
    return F.avg_pool2d(feature, (kh, kw), (sh, sw))


def _window(size: int, places: int) -> tuple[int, int]:
    """Kernel and stride that average `size` values into `places` windows covering all of them."""
    places = min(size, places)
    stride = size // places
    return size - (places - 1) * stride, stride


def _check(classes: int, count: int, what: str) -> None:
    if classes < 1 or count < 1:
        raise ConfigError(f"a head needs at least one class and one {what}, not {classes} and {count}")


@contextmanager
def _lazily() -> Iterator[None]:
    """Without torch's remark that lazy modules are new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Lazy modules are a new feature")
        yield
