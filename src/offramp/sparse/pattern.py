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

from offramp.errors import ConfigError, DensityError
from offramp.sparse.density import Junction, is_whole

__all__ = ["Pattern"]

#: Layers keep the joined neurons as 32-bit numbers.
MOST_NEURONS = 2**31 - 1


@dataclass(frozen=True)
class Pattern(Junction, ABC):
    """Joins with exact degrees on both sides; a frozen dataclass whose fields are its recipe."""

    #: What recipes call this kind of pattern.
    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Checks the fields' types, for a recipe may come from anywhere, and makes NumPy's numbers Python's own.

        Raises:
            ConfigError: A field that is not of its type.
            DensityError: A side without neurons, or with too many.
        """
        for f in fields(self):
            if not f.init:
                continue
            value = getattr(self, f.name)
            if f.type == "int":
                if not is_whole(value):
                    raise ConfigError(f"{f.name} of a {self.name} pattern is a whole number, not {value!r}")
                object.__setattr__(self, f.name, int(value))
            elif f.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"{f.name} of a {self.name} pattern is True or False, not {value!r}")
        for n in (self.n_left, self.n_right):
            if not 1 <= n <= MOST_NEURONS:
                raise DensityError(
                    f"a pattern joins 1 to {MOST_NEURONS:,} neurons on either side, not "
                    f"{self.n_left}→{self.n_right}"
                )

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
