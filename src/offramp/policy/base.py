"""What policies share: actions, what they may see before choosing, what they are told afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from offramp.bundle.manifest import travel_key
from offramp.errors import ActionError, ConfigError, PolicyStateError
from offramp.policy.cost import CostModel
from offramp.policy.forecast import Forecast

__all__ = ["Action", "Context", "Observation", "Policy", "checked_alpha"]


@dataclass(frozen=True, slots=True)
class Action:
    """What a policy chooses for one input. The papers' arm k is `Action(k, exits=(k,))`.

    Attributes:
        split: The edge runs stages 0 to `split` and may send that cut; −1 sends the input.
        exits: Exits that may answer. Those beyond the split let the server leave early; without any, the
            server is told to go to the last exit.
        mode: How the cut travels.
        watch: Exits up to the split whose heads are run to see their confidence, without answering.
        gzip: Whether the transport compresses the cut on top.
    """

    split: int
    exits: tuple[int, ...] = ()
    mode: str = "float"
    watch: tuple[int, ...] = ()
    gzip: bool = False


@dataclass(frozen=True)
class Context:
    """What a policy may know before it chooses.

    The same object for every input of a run, or until what was measured has changed: whoever keeps what follows
    from a context makes it anew when another one comes.

    Attributes:
        splits: What this edge can do, ascending. −1 and splits before the last need a server.
        exits: Early exits that this edge can evaluate, ascending.
        last: The number of the last split and exit.
        thresholds: The bundle's threshold per exit; None where there is none.
        modes: The modes in which each cut may travel.
        mode: The bundle's usual mode.
        cost: What things cost.
        gzip_below_mbps: As the bundle's tuning says.
        link_mbps: The link's rate in Mbit/s; None if nobody has said.
        forecast: What stages, exits, link and server are expected to take; None if nobody has measured.
    """

    splits: tuple[int, ...]
    exits: tuple[int, ...]
    last: int
    thresholds: tuple[float | None, ...]
    modes: Mapping[int, tuple[str, ...]]
    mode: str
    cost: CostModel
    gzip_below_mbps: Mapping[str, float] = field(default_factory=dict)
    link_mbps: float | None = None
    forecast: Forecast | None = None

    def action(self, split: int, exits: tuple[int, ...] = (), watch: tuple[int, ...] = ()) -> Action:
        """An action whose cut travels in the usual mode, compressed where that pays at the link's rate."""
        mode = self.mode_at(split)
        pays_below = self.gzip_below_mbps.get(travel_key(split, mode), 0.0)
        return Action(split, exits, mode, watch, gzip=self.link_mbps is not None and self.link_mbps < pays_below)

    def mode_at(self, split: int) -> str:
        """The bundle's usual mode where the cut has it, else "float"."""
        return self.mode if self.mode in self.modes.get(split, ()) else "float"

    def gate(self, split: int) -> tuple[int, ...]:
        """The exit at a split, as an action's `exits`; empty where there is none."""
        return (split,) if split in self.exits else ()

    @property
    def arms(self) -> tuple[int, ...]:
        """The papers' arms that this edge can play: splits with an exit, the last one included."""
        return tuple(k for k in self.splits if k in self.exits or k == self.last)


@dataclass(frozen=True, slots=True)
class Observation:
    """What was really seen after an action; nothing else may be learned from.

    Attributes:
        confidences: By exit, the confidence of every exit that was evaluated on the edge.
        labels: By exit, the class that it named, of the same exits.
        final_confidence: The last exit's, where it was run, here or on the server; None if not seen.
        exit: The exit that answered; None if nothing did.
        confidence: The answer's confidence, 0 if nothing answered.
        offloaded: Whether a cut was sent.
        failed: Whether an offload was wanted and brought no answer.
        cost: What was paid, by the edge's `CostModel`.
        latency_ms: From input to answer.
        payload_bytes: Bytes of the tensors that were sent, before the transport compressed them.
        hidden_final: The last exit's confidence although nobody saw it; only a replay knows it, and only
            policies that are `replay_only` may read it.
    """

    confidences: Mapping[int, float] = field(default_factory=dict)
    labels: Mapping[int, int] = field(default_factory=dict)
    final_confidence: float | None = None
    exit: int | None = None
    confidence: float = 0.0
    offloaded: bool = False
    failed: bool = False
    cost: float = 0.0
    latency_ms: float = 0.0
    payload_bytes: int = 0
    hidden_final: float | None = None


class Policy(ABC):
    """Chooses an action for each input, and learns from what was seen.

    Attributes:
        name: As the command line and the results call it.
        alpha: The gates' threshold; None takes the bundle's own.
        replay_only: Whether it learns from what nobody can see, and so plays on recorded traces only.
        constant: Whether the same context always brings the same action; a replay then asks once.
        wants_forecast: Whether it chooses by `Context.forecast`, which is then kept up to date.
    """

    name: str = "policy"
    alpha: float | None = None
    replay_only: bool = False
    constant: bool = False
    wants_forecast: bool = False

    @abstractmethod
    def choose(self, context: Context) -> Action:
        """The action for the next input."""

    def update(self, action: Action, observation: Observation) -> None:  # noqa: B027
        """Learns from what was seen; policies that do not learn leave it out."""

    def state(self) -> dict[str, Any]:
        """What was learned, as JSON values; of a policy that does not learn, its name."""
        return {"policy": self.name}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave.

        Raises:
            PolicyStateError: No state, another policy's, or of other settings.
        """
        if state != self.state():
            raise PolicyStateError(f"expected the state of {self.name}, {self.state()}, got {state!r:.200}")

    def threshold(self, context: Context, exit_index: int) -> float:
        """What an exit's confidence must reach to answer."""
        if self.alpha is not None:
            return self.alpha
        value = context.thresholds[exit_index]
        if value is None:
            raise ActionError(f"exit {exit_index} has no threshold in the bundle; give the policy an alpha")
        return value


def checked_alpha(alpha: float | None) -> float | None:
    """A gate's threshold, once it is what it can be.

    Raises:
        ConfigError: Outside [0, 1], or not a number.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is a confidence between 0 and 1, not {alpha}")
    return alpha
