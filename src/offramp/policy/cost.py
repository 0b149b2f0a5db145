"""The single definition of cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from offramp.errors import ConfigError

__all__ = ["CostModel"]


@dataclass(frozen=True)
class CostModel:
    """Cost in the abstract units of I-SplitEE (Bajpai et al. 2024, arXiv 2401.10541).

    Running the network up to the exit of depth ℓ costs γ·ℓ, each exit head evaluated on the way `head` more,
    offloading o more. Sending the input alone costs o. I-SplitEE's heads are free. SplitEE (arXiv 2309.09195)
    counts λ(.8(i−1)+1) with one head and λ·i with all of them, at layer i from 1: γ = .8λ and head = .2λ.

    Attributes:
        depths: ℓ at the end of every stage, which is that of its exit.
        gamma: γ, the cost per layer.
        offload: o, the cost of offloading.
        head: The cost of an exit head evaluated on the edge, the last one's included.

    Raises:
        ConfigError: Costs that are negative or not finite.
    """

    depths: tuple[int, ...]
    gamma: float = 0.1
    offload: float = 0.5
    head: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= value < math.inf for value in (self.gamma, self.offload, self.head)):
            raise ConfigError(
                f"costs must be at least 0 and finite, not gamma={self.gamma}, offload={self.offload} and "
                f"head={self.head}"
            )

    def paid(self, stage: int, offloaded: bool, heads: int = 0) -> float:
        """The cost of running stages 0 to `stage` (−1: none) and `heads` exit heads, and of offloading or not."""
        edge = self.gamma * self.depths[stage] + self.head * heads if stage >= 0 else 0.0
        return edge + self.offload if offloaded else edge
