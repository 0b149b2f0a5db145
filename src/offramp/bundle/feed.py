"""What a network is fed: its inputs by place or by name, as arrays in the manifest's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import TensorSpec
from offramp.errors import InputError

__all__ = ["by_name", "example", "signature"]

Array = NDArray[np.generic]


def by_name(given: Any, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """A network's inputs as arrays by name, in the manifest's order; shapes and element types are not looked at.

    Args:
        given: A mapping by input name. Or, where there is one input, that array, or a mapping that holds nothing
            else; where there are several, a tuple or list of arrays by place.
        specs: The network's inputs.

    Raises:
        InputError: A missing or unknown name, another number of arrays, or what is no array.
    """
    if isinstance(given, Mapping) and len(specs) == len(given) == 1:
        (given,) = given.values()  # the only one, whatever it is called outside
    if isinstance(given, Mapping):
        names = [spec.name for spec in specs]
        if unknown := [str(name) for name in given if name not in names]:
            raise InputError(f"there is no input {', '.join(unknown)}; the network takes {signature(specs)}")
        if missing := [name for name in names if name not in given]:
            raise InputError(f"the input {', '.join(missing)} is missing; the network takes {signature(specs)}")
        return {name: _array(given[name], name) for name in names}
    if len(specs) == 1:
        return {specs[0].name: _array(given, specs[0].name)}
    if not isinstance(given, (tuple, list)) or len(given) != len(specs):
        came = str(len(given)) if isinstance(given, (tuple, list)) else f"one {type(given).__name__}"
        raise InputError(
            f"the network takes {len(specs)} inputs, not {came}: give a dict by name or a tuple by place, of "
            f"{signature(specs)}"
        )
    return {spec.name: _array(value, spec.name) for spec, value in zip(specs, given, strict=True)}


def example(specs: Sequence[TensorSpec]) -> list[Array]:
    """One sample of every tensor: 0 and 1 in turn, which an index, a mask and a pixel may be.

    A mask of nothing but zeros, or of nothing but ones, may leave attention nothing to look at.
    """
    return [(np.arange(np.prod(s.shape, dtype=np.int64)) % 2).reshape(1, *s.shape).astype(s.dtype) for s in specs]


def signature(specs: Sequence[TensorSpec]) -> str:
    """The tensors in words: `ids int64 (N, 16), mask bool (N, 16)`."""
    return ", ".join(f"{s.name} {s.dtype} ({', '.join(map(str, ('N', *s.shape)))})" for s in specs)


def _array(value: Any, name: str) -> Array:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors with gradients or on a GPU
        raise InputError(f"the input {name!r} is no array: {error}") from error
