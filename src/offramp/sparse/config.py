"""`SparsityConfig`: what `sparsify_` is told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from offramp.config import Config
from offramp.sparse.registry import PatternName

__all__ = ["SparsityConfig"]


class SparsityConfig(Config):
    """What `sparsify_` does; survives a JSON round trip.

    How dense the layers become is said in one of four ways; density=1/4 if nothing is said.

    Attributes:
        density: The kept fraction ρ of every sparsified layer.
        d_out: The paper's way, always met exactly: connections per left neuron, one entry for every linear and
            convolution layer in the model's order, depthwise ones left out; None keeps a layer dense.
        max_weights: A budget for the weights of all linear and convolution layers, those kept dense included;
            shared by the rule of `share_budget`, which keeps later layers denser, and never exceeded.
        max_macs: The same for the multiply-accumulates of one sample; needs an example input.
        overrides: Densities by layer name; names may hold `*` and `?`, later entries win, None keeps the
            layer dense. A name that is given here also sparsifies a layer that would stay dense otherwise.
        pattern: "block", "structured" or "clash_free"; the last two save memory and files, not time.
        blocks: For "block": take exactly this many blocks everywhere.
        max_blocks: For "block" without `blocks`: the most blocks allowed.
        layout: For "block": "alternate" lets neighbouring layers mix.
        keep_first: Leave the first convolution dense.
        keep_last: Leave the final classifier dense.
        seed: The first pattern's seed; the following layers take the following numbers.
    """

    density: float | None = Field(default=None, gt=0, le=1)
    d_out: tuple[int | None, ...] | None = None
    max_weights: int | None = Field(default=None, ge=1)
    max_macs: int | None = Field(default=None, ge=1)
    overrides: dict[str, float | None] = Field(default_factory=dict)
    pattern: PatternName = "block"
    blocks: int | None = Field(default=None, ge=1)
    max_blocks: int = Field(default=16, ge=1)
    layout: Literal["alternate", "contiguous", "strided"] = "alternate"
    keep_first: bool = True
    keep_last: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _one_way(self) -> SparsityConfig:
        ways = ("density", "d_out", "max_weights", "max_macs")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of {', '.join(ways)}")
        if self.d_out is not None and self.overrides:
            raise ValueError("d_out names every layer, so overrides have nothing to say; give one of them")
        if self.blocks is not None and self.pattern != "block":
            raise ValueError(f"blocks={self.blocks} is for block patterns; a {self.pattern} pattern has none")
        return self
