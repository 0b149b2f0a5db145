"""The most bytes that a pass holds besides parameters and their gradients: outputs, gathered copies, temporaries.

Counted by following every storage that an operation gives until it is freed, so the figure is the same at every
run. What a kernel allocates and frees inside one operation is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["inference_bytes", "training_bytes"]


#: torch's reference to a storage that does not keep it alive; it has no annotations.
_reference: Callable[[Any], Any] = StorageWeakRef


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """After every operation, the storages that live: address to bytes.

    Args:
        known: Tensors that live anyway and do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moments: list[dict[int, int]] = []
        self._known = [_reference(t.untyped_storage()) for t in known]
        self._seen: list[Any] = []  # kept, or a new storage could get an old one's address
        self._live: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        known = {reference.cdata for reference in self._known}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = _reference(storage)
                self._seen.append(reference)
                if reference.cdata not in known:
                    self._live[reference.cdata] = (reference, storage.nbytes())
        self.moments.append({key: size for key, (_, size) in self._live.items()})
        return out

    def peak(self, left_out: Iterable[Tensor] = ()) -> int:
        """The most bytes at any moment, without these tensors."""
        without = {_reference(t.untyped_storage()).cdata for t in left_out}
        return max(sum(size for key, size in moment.items() if key not in without) for moment in self.moments)


def inference_bytes(layer: nn.Module, x: Tensor) -> int:
    """The peak of one forward pass; the output counts, the input does not.

    Args:
        layer: Any module.
        x: Its input.
    """
    with torch.no_grad():  # inference_mode would hide the operations inside composite ones
        return _measured(layer, x, lambda: layer(x))


def training_bytes(layer: nn.Module, x: Tensor) -> int:
    """The peak of one forward and backward pass, input gradient included.

    Args:
        layer: Any module; its gradients are replaced.
        x: Its input.
    """
    x = x.detach().requires_grad_()
    for parameter in layer.parameters():
        parameter.grad = None
    # The output's gradient comes from the layer behind, and counts there.
    seed = torch.ones_like(layer(x).detach())
    return _measured(layer, x, lambda: layer(x).backward(seed), seed)


def _measured(layer: nn.Module, x: Tensor, call: Callable[[], object], *known: Tensor) -> int:
    live = _Live([x, *known, *layer.parameters(), *layer.buffers()])
    with live:
        call()
    return live.peak([p.grad for p in layer.parameters() if p.grad is not None])
