"""What stages, exits and the way to the server are expected to take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from offramp.errors import ConfigError

__all__ = ["Forecast"]

#: Multiply-accumulates, and weights read.
Work = tuple[int, int]


@dataclass(frozen=True)
class Forecast:
    """What the next input is expected to take, by what was measured so far.

    Attributes:
        stage_ms: Of each stage on the edge.
        exit_ms: Of the head behind each stage on the edge; 0 where there is none.
        tail_ms: Of what follows each cut on the server, the input (cut −1) first.
        sent_bytes: Of each cut as it travels, the input first.
        round_trip_ms: What a byte less payload would take to the server and back.
        ms_per_byte: What every byte sent takes longer.
        doubt_ms: Of each cut by how much its transfer may well be quicker than expected, the input first; none if
            left out.
        stage_work: Per stage its multiply-accumulates and weights.
        exit_work: The same of the heads.

    Raises:
        ConfigError: Not one value per stage, or negative ones.
    """

    stage_ms: tuple[float, ...]
    exit_ms: tuple[float, ...]
    tail_ms: tuple[float, ...]
    sent_bytes: tuple[int, ...]
    round_trip_ms: float = 0.0
    ms_per_byte: float = 0.0
    doubt_ms: tuple[float, ...] = ()
    stage_work: tuple[Work, ...] = ()
    exit_work: tuple[Work, ...] = ()

    def __post_init__(self) -> None:
        usual = {"doubt_ms": 0.0, "stage_work": (0, 0), "exit_work": (0, 0)}
        for name in ("stage_ms", "exit_ms", "tail_ms", "sent_bytes", *usual):
            values = getattr(self, name)
            if not values and name in usual:
                object.__setattr__(self, name, (usual[name],) * len(self.stage_ms))
            elif len(values) != len(self.stage_ms):
                raise ConfigError(f"{name} holds {len(values)} values for {len(self.stage_ms)} stages")
        times = (*self.stage_ms, *self.exit_ms, *self.tail_ms, *self.sent_bytes, *self.doubt_ms)
        if not all(0 <= value < math.inf for value in (*times, self.round_trip_ms, self.ms_per_byte)):
            raise ConfigError(f"a forecast's times and bytes are finite and at least 0, unlike {self}")

    @property
    def last(self) -> int:
        """The last stage."""
        return len(self.stage_ms) - 1

    @property
    def rate_mbps(self) -> float:
        """The link's rate in Mbit/s."""
        return 8e-3 / self.ms_per_byte if self.ms_per_byte else math.inf

    def head_ms(self, split: int, exit_too: bool = False) -> float:
        """Milliseconds of the edge's stages up to a split, and of the head behind them."""
        return math.fsum(self.stage_ms[: split + 1]) + (self.exit_ms[split] if exit_too and split >= 0 else 0.0)

    def sending_ms(self, split: int) -> float:
        """Milliseconds from sending a cut to its answer: round trip, transfer, and the server's stages."""
        return self.round_trip_ms + self.ms_per_byte * self.sent_bytes[split + 1] + self.tail_ms[split + 1]

    def soonest_ms(self, split: int) -> float:
        """The same, as quick as it may well be: what is in doubt is worth a try."""
        transfer = self.round_trip_ms + self.ms_per_byte * self.sent_bytes[split + 1]
        return max(0.0, transfer - self.doubt_ms[split + 1]) + self.tail_ms[split + 1]

    def split_ms(self, split: int, sure: float = 0.0) -> float:
        """Milliseconds from input to answer, if a share `sure` of the inputs is answered at the split's exit.

        Without such a share it is T_l of dynamic split computing (Bakhtiarnia et al. 2022, arXiv 2205.11269).
        """
        if split == self.last:
            return self.head_ms(split)
        return self.head_ms(split, exit_too=sure > 0) + (1.0 - sure) * self.sending_ms(split)
