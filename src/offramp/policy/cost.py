"""The single definition of cost."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.errors import ConfigError

__all__ = ["CostModel"]


@dataclass(frozen=True)
class CostModel:
    """Cost in the abstract units of I-SplitEE (Bajpai et al. 2024, arXiv 2401.10541).

    Running the network up to the exit of depth ℓ costs γ·ℓ, offloading costs o more. Sending the input
    alone costs o.

    Attributes:
        depths: ℓ at the end of every stage, which is that of its exit.
        gamma: γ, the cost per layer.
        offload: o, the cost of offloading.

    Raises:
        ConfigError: Negative costs.
    """

    depths: tuple[int, ...]
    gamma: float = 0.1
    offload: float = 0.5

    def __post_init__(self) -> None:
        if not self.gamma >= 0 or not self.offload >= 0:
            raise ConfigError(f"costs must be at least 0, not gamma={self.gamma} and offload={self.offload}")

    def paid(self, stage: int, offloaded: bool) -> float:
        """The cost of running stages 0 to `stage` (−1: none) and of offloading or not."""
        edge = self.gamma * self.depths[stage] if stage >= 0 else 0.0
        return edge + self.offload if offloaded else edge
