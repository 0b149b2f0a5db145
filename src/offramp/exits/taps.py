"""What a network's submodules give while it runs: hooks that keep it, and what can be read from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from offramp.errors import ConfigError
from offramp.exits.heads import Layout

__all__ = ["Tap", "Taps", "feature_of", "layouts_of", "logits_of"]

#: What layers with weights call their number of output features.
_SIZES = (
    "out_channels",
    "out_features",
    "num_features",
    "num_channels",
    "normalized_shape",
    "embed_dim",
    "embedding_dim",
)


class Taps:
    """The features of one forward pass, by submodule name, in the order in which they came."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}
        #: Only while the network that owns the taps runs: the model may also be used alone, or by another one.
        self.recording = False


class Tap:
    """A forward hook that keeps a submodule's output.

    A class, not a closure, and one shared `Taps`: so `deepcopy` and `pickle` carry it over whole.
    """

    def __init__(self, name: str, taps: Taps) -> None:
        self.name, self.taps = name, taps

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.taps.recording:
            return
        feature = feature_of(output)
        if feature is None:
            raise ConfigError(
                f"submodule {self.name!r} gives a {type(output).__name__} whose first item is no tensor; an exit "
                "needs one tensor. Tap a submodule inside it or behind it"
            )
        if self.name in self.taps.features:
            raise ConfigError(
                f"submodule {self.name!r} runs more than once in a forward pass, so it is no one place for an "
                "exit. Tap what stands around it, or put an nn.Identity() where the exit should be"
            )
        self.taps.features[self.name] = feature


def feature_of(output: Any) -> Tensor | None:
    """The one tensor that a submodule's output stands for: itself, or the first item of a tuple, list or dict."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def logits_of(output: Any) -> Tensor:
    """The logits in a model's own output: itself, or what a dict holds under `logits`.

    Raises:
        ConfigError: Anything else.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else output
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"the model gives a {type(output).__name__}; the last exit must be one tensor of logits (N, classes), "
            'or a dict that holds it as "logits". Wrap the model in a module that returns it'
        )
    return logits


@contextmanager
def layouts_of(model: nn.Module, taps: Taps) -> Iterator[dict[str, Layout]]:
    """While it is open, learns which axis of every tapped feature holds the channels.

    Ranks do not tell: (N, T, F) and (N, C, L) both have 3. So the axis is sought whose size is the number of
    features of the layer with weights that ran last.
    """
    layouts: dict[str, Layout] = {}
    last: nn.Module | None = None

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal last
        if _size(module) is not None:
            last = module
        # Taps were hooked first, so the newest feature is there by now.
        for name, feature in taps.features.items():
            if name not in layouts and last is not None and feature.dim() in (3, 4):
                layouts[name] = _layout(feature, last)

    hooks = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        yield layouts
    finally:
        for hook in hooks:
            hook.remove()


def _size(module: nn.Module) -> int | None:
    for name in _SIZES:
        size = getattr(module, name, None)
        if isinstance(size, (tuple, list)):
            size = size[-1]
        if isinstance(size, int):
            return size
    return None


def _layout(feature: Tensor, layer: nn.Module) -> Layout:
    size = _size(layer)
    if (feature.shape[1] == size) != (feature.shape[-1] == size):
        return "channels_first" if feature.shape[1] == size else "channels_last"
    convolves = hasattr(layer, "out_channels") or isinstance(
        layer, (nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    )
    return "channels_first" if convolves or feature.dim() == 4 else "channels_last"
