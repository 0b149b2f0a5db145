"""Evaluation mode for a while, without forgetting which submodules were in it before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["eval_mode"]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode; afterwards every submodule is in its own mode again.

    `module.train()` would also wake what somebody froze, such as a backbone's batch normalisation.
    """
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
