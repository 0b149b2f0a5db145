"""What a network takes: a tensor, several by place, or several by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from offramp.errors import ConfigError

__all__ = ["Inputs", "batch_size", "on_device", "pair", "run", "tensors"]

#: A tensor is the one argument, a tuple or list the arguments by place, a mapping the arguments by name.
Inputs: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]


def run(call: Callable[..., Any], inputs: Inputs) -> Any:
    """Calls a module, or a method of one, with its inputs, however they are given."""
    if isinstance(inputs, Tensor):
        return call(inputs)
    if isinstance(inputs, Mapping):
        return call(**inputs)
    return call(*inputs)


def tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors among the inputs, in order."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return tuple(value for value in values if isinstance(value, Tensor))


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs with their tensors on a device."""

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: moved(value) for name, value in inputs.items()}
    return tuple(moved(value) for value in inputs)


def batch_size(inputs: Inputs) -> int:
    """The samples in one batch: the length of the first tensor that has one, 1 if none has."""
    return next((len(tensor) for tensor in tensors(inputs) if tensor.dim() > 0), 1)


def pair(batch: Any) -> tuple[Inputs, Tensor]:
    """A batch of training data as inputs and class indices.

    Raises:
        ConfigError: A batch of another form.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
        if isinstance(inputs, (Tensor, Mapping, tuple, list)) and isinstance(labels, Tensor):
            return inputs, labels
    if isinstance(batch, (tuple, list)):
        came = f"{type(batch).__name__} of {', '.join(type(part).__name__ for part in batch)}"
    else:
        came = type(batch).__name__
    raise ConfigError(
        "a batch is a pair of inputs and class indices, where inputs are a tensor, a tuple of tensors or a dict "
        f"of tensors by argument name, not a {came}; bring it into this form in the loader, as ((a, b), labels) "
        'or ({"a": a, "b": b}, labels)'
    )
