"""`Pattern`: which neurons a predefined-sparse junction joins, fixed before training."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.sparse.density import Junction

__all__ = ["Pattern"]


@dataclass(frozen=True)
class Pattern(Junction, ABC):
    """Joins with exact degrees on both sides; a frozen dataclass whose fields are its recipe."""

    #: What recipes call this kind of pattern.
    name: ClassVar[str]

    @property
    @abstractmethod
    def left_of(self) -> NDArray[np.int64]:
        """The left neurons that each right neuron joins, (n_right, d_in); rows as in `right_order`."""

    @property
    def right_order(self) -> NDArray[np.int64]:
        """The right neurons in the order in which a layer stores their weights, (n_right,)."""
        return np.arange(self.n_right)

    @property
    def drawn(self) -> NDArray[np.int64]:
        """What the seed decided; the digest is taken over it."""
        return self.left_of

    def mask(self) -> NDArray[np.bool_]:
        """The pattern as a dense matrix, for checks and pictures; shape (n_right, n_left)."""
        mask = np.zeros((self.n_right, self.n_left), dtype=np.bool_)
        mask[self.right_order[:, None], self.left_of] = True
        return mask

    def recipe(self) -> dict[str, Any]:
        """What rebuilds this pattern, as JSON values."""
        return {"pattern": self.name, **{f.name: getattr(self, f.name) for f in fields(self) if f.init}}

    @cached_property
    def digest(self) -> str:
        """sha256 over the recipe and the joins that it leads to (so that a changed draw shows)."""
        head = json.dumps({**self.recipe(), "seed": None}, sort_keys=True).encode()
        return hashlib.sha256(head + self.drawn.astype("<i8").tobytes()).hexdigest()
