"""How often a model uses each layer's weights for one sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from offramp.errors import ConfigError
from offramp.evalmode import eval_mode
from offramp.inputs import batch_size, run

__all__ = ["uses_of"]


def uses_of(model: nn.Module, layers: Mapping[str, nn.Module], example_input: Any) -> dict[str, int]:
    """How often each layer's weights are used for one sample: its output places, 1 for a plain linear.

    Args:
        model: The model; it runs once, in evaluation mode.
        layers: Linear, convolution and attention layers by name.
        example_input: One batch, samples first: a tensor, a tuple of arguments, a dict of keyword arguments.

    Raises:
        ConfigError: A batch without samples.
    """
    samples = batch_size(example_input)  # windows or tokens that a model folds into the batch belong to one sample
    if samples == 0:
        raise ConfigError("example_input holds no sample; multiply-accumulates need at least one")
    uses: dict[str, int] = dict.fromkeys(layers, 0)
    hooks = []
    for name, layer in layers.items():

        def hook(m: nn.Module, _: Any, out: Any, name: str = name) -> None:
            uses[name] += _places(m, out)

        hooks.append(layer.register_forward_hook(hook))
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it goes past the layers, and leaves padding out
    try:
        with eval_mode(model), torch.no_grad():
            run(model, example_input)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in hooks:
            handle.remove()
    return {name: -(-used // samples) for name, used in uses.items()}  # a table read once per batch counts too


def _places(layer: nn.Module, out: Any) -> int:
    if isinstance(layer, nn.MultiheadAttention):
        return int(out[0].numel()) // int(layer.embed_dim)
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return int(out.numel()) // int(outputs)  # type: ignore[arg-type]
