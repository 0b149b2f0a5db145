"""The same split for every input."""

from __future__ import annotations

from offramp.errors import ConfigError
from offramp.policy.base import Action, Context, Policy, checked_alpha

__all__ = ["EdgeOnly", "FixedSplit", "ServerOnly"]


class FixedSplit(Policy):
    """Always split k, with its gate.

    Args:
        split: The split.
        gated: Whether the split's exit may answer; without, everything is offloaded.
        alpha: The gate's threshold; the bundle's own if left out.

    Raises:
        ConfigError: A split below −1, or α outside [0, 1].
    """

    constant = True

    def __init__(self, split: int, *, gated: bool = True, alpha: float | None = None) -> None:
        if split < -1:
            raise ConfigError(f"a split is −1 (send the input) or more, not {split}")
        self.split, self.gated, self.alpha = split, gated, checked_alpha(alpha)
        self.name = f"split {split}" if gated else f"split {split}, no gate"

    def choose(self, context: Context) -> Action:
        """The same action every time."""
        exits = context.gate(self.split) if self.gated else ()
        return context.action(self.split, exits)


class ServerOnly(FixedSplit):
    """Sends the input, always."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.name = "server only"


class EdgeOnly(Policy):
    """Runs the whole network on the edge, always; the deepest stage where it does not hold the last."""

    name = "edge only"
    constant = True

    def choose(self, context: Context) -> Action:
        """The deepest split."""
        return Action(context.splits[-1])
