"""One small layer of every kind under every pattern, for tests that must hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.sparse.convolution import SparseConv1d, SparseConv2d
from offramp.sparse.layers import SparseLayer, SparseLinear

PATTERNS: dict[str, dict[str, Any]] = {
    "diagonal": {"density": 0.25},
    "strided": {"density": 0.25, "layout": "strided"},
    "joined": {"density": 0.5, "blocks": 4, "seed": 1},
    "joined-strided": {"density": 0.5, "blocks": 4, "layout": "strided", "seed": 1},
    "structured": {"density": 0.25, "pattern": "structured"},
    "clash_free": {"density": 0.25, "pattern": "clash_free"},
}
KINDS: dict[str, tuple[Callable[..., SparseLayer], tuple[int, ...]]] = {
    "linear": (lambda **k: SparseLinear(32, 16, **k), (32,)),
    "conv1d": (lambda **k: SparseConv1d(32, 16, 3, **k), (32, 7)),
    "conv2d": (lambda **k: SparseConv2d(32, 16, 3, **k), (32, 5, 6)),
}


@dataclass(frozen=True)
class Case:
    """How to make a layer, and inputs for it."""

    make: Callable[..., SparseLayer]
    shape: tuple[int, ...]

    def inputs(self, n: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch of n samples, always the same."""
        return torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(n)).to(dtype)


@pytest.fixture(params=list(PATTERNS))
def pattern_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a layer's constructor is told of its pattern."""
    return PATTERNS[request.param]


@pytest.fixture(params=list(KINDS))
def case(request: pytest.FixtureRequest, pattern_settings: dict[str, Any]) -> Case:
    """A kind of layer under a pattern."""
    make, shape = KINDS[request.param]
    return Case(lambda **changes: make(**{**pattern_settings, **changes}), shape)
