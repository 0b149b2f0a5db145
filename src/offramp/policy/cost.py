"""The single definition of cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from offramp.errors import ConfigError
from offramp.policy.energy import EnergyModel
from offramp.policy.forecast import Forecast

__all__ = ["CostModel", "MeasuredCost", "Prices"]


@dataclass(frozen=True)
class CostModel:
    """What it costs to run stages, to evaluate exits on the edge, and to send cuts.

    Attributes:
        stages: Of running each stage on the edge.
        exits: Of evaluating the exit behind each stage on the edge.
        sends: Of sending each cut and waiting for its answer, the input (cut −1) first.
        words: What costs what, for tables.

    Raises:
        ConfigError: Costs that are negative or not finite, or not one per stage.
    """

    stages: tuple[float, ...]
    exits: tuple[float, ...]
    sends: tuple[float, ...]
    words: str = ""

    def __post_init__(self) -> None:
        if not len(self.stages) == len(self.exits) == len(self.sends):
            raise ConfigError(
                f"{len(self.stages)} costs of stages, {len(self.exits)} of exits and {len(self.sends)} of sending"
            )
        for name in ("stages", "exits", "sends"):
            if not all(0 <= value < math.inf for value in getattr(self, name)):
                raise ConfigError(f"costs must be at least 0 and finite, not {name}={getattr(self, name)}")

    @classmethod
    def in_layers(
        cls, depths: Sequence[int], gamma: float = 0.1, offload: float = 0.5, head: float = 0.0
    ) -> CostModel:
        """The abstract units of I-SplitEE (Bajpai et al. 2024, arXiv 2401.10541).

        Running the network up to the exit of depth ℓ costs γ·ℓ, each exit head evaluated on the way `head` more,
        offloading o more. Sending the input alone costs o. I-SplitEE's heads are free. SplitEE (arXiv 2309.09195)
        counts λ(.8(i−1)+1) with one head and λ·i with all of them, at layer i from 1: γ = .8λ and head = .2λ.

        Args:
            depths: ℓ at the end of every stage, which is that of its exit; ascending.
            gamma: γ, the cost per layer.
            offload: o, the cost of offloading.
            head: The cost of an exit head evaluated on the edge, the last one's included.

        Raises:
            ConfigError: Costs that are negative or not finite, or depths that fall.
        """
        if not all(0 <= value < math.inf for value in (gamma, offload, head)):
            raise ConfigError(
                f"costs must be at least 0 and finite, not gamma={gamma}, offload={offload} and head={head}"
            )
        if list(depths) != sorted(depths) or (depths and depths[0] < 0):
            raise ConfigError(f"depths are layers on the path to each stage's end, ascending, not {tuple(depths)}")
        also = (f" + {head:g}·heads" if head else "") + (f" + {offload:g} if offloaded" if offload else "")
        return cls(
            stages=tuple(gamma * (b - a) for a, b in zip((0, *depths[:-1]), depths, strict=True)),
            exits=(head,) * len(depths),
            sends=(offload,) * len(depths),
            words=f"{gamma:.4g}·depth{also}, depths {', '.join(map(str, depths))}",
        )

    def paid(self, stage: int, offloaded: bool, exits: Iterable[int] = ()) -> float:
        """The cost of stages 0 to `stage` (−1: none), of these exits' heads, and of offloading or not.

        The last stage sends nothing, and so nothing is paid for it.
        """
        edge = math.fsum(self.stages[: stage + 1]) + sum(self.exits[e] for e in exits)
        return edge + self.sends[stage + 1] if offloaded and stage + 1 < len(self.sends) else edge


@dataclass(frozen=True)
class Prices:
    """What a millisecond, a byte and a modelled millijoule cost.

    Attributes:
        per_ms: A millisecond from input to answer.
        per_byte: A byte sent.
        per_mj: A modelled millijoule of the edge.
        energy: The model of energy; its rate is that of the forecast, where there is one.
        words: What a cost of 1 is.
    """

    per_ms: float
    per_byte: float
    per_mj: float
    energy: EnergyModel
    words: str

    def model(self, forecast: Forecast) -> CostModel:
        """What things are expected to cost under a forecast."""
        energy, stages = _at_rate(self.energy, forecast), range(len(forecast.stage_ms))
        sent = forecast.sent_bytes
        return CostModel(
            stages=tuple(
                self.per_ms * forecast.stage_ms[i] + self.per_mj * energy.compute_mj(*forecast.stage_work[i])
                for i in stages
            ),
            exits=tuple(
                self.per_ms * forecast.exit_ms[i] + self.per_mj * energy.compute_mj(*forecast.exit_work[i])
                for i in stages
            ),
            sends=tuple(
                self.per_ms * forecast.sending_ms(i - 1)
                + self.per_byte * sent[i]
                + self.per_mj * energy.upload_mj(sent[i])
                for i in stages
            ),
            words=self.words,
        )

    def paid(
        self, forecast: Forecast, stage: int, exits: Iterable[int], latency_ms: float, payload_bytes: int
    ) -> float:
        """What one input did cost: its own latency and bytes, and the energy modelled for what it ran and sent.

        Args:
            forecast: Says what stages and exits compute, and the link's rate.
            stage: The last stage that the edge ran; −1 for none.
            exits: The exits that it evaluated.
            latency_ms: From input to answer.
            payload_bytes: Bytes sent.
        """
        energy = _at_rate(self.energy, forecast)
        work = [*forecast.stage_work[: stage + 1], *(forecast.exit_work[e] for e in exits)]
        millijoules = sum(energy.compute_mj(*w) for w in work) + energy.upload_mj(payload_bytes)
        return self.per_ms * latency_ms + self.per_byte * payload_bytes + self.per_mj * millijoules


@dataclass(frozen=True)
class MeasuredCost:
    """Cost from measured milliseconds, bytes sent, and modelled energy, weighed as the user says.

    Each of the three is divided by what the dearest split takes of it as forecast when the edge starts, and the
    weights are made to add up to 1. So costs begin between 0 and 1, like the confidences that they are taken
    from, and a learner's constant of exploration means what it means in the papers' units. The divisors then
    stay: on a link that became ten times slower, offloading costs more than 1. So it may from the start where
    nobody has said what the link takes: it then counts as free in that first forecast.

    Attributes:
        latency: The weight of milliseconds from input to answer.
        payload: The weight of bytes sent.
        energy: The weight of modelled energy on the edge.
        model: The model of energy.

    Raises:
        ConfigError: Weights that are negative or not finite, or all 0.
    """

    latency: float = 1.0
    payload: float = 0.0
    energy: float = 0.0
    model: EnergyModel = field(default_factory=EnergyModel)

    def __post_init__(self) -> None:
        weights = (self.latency, self.payload, self.energy)
        if not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < math.inf:
            raise ConfigError(
                "weights must be at least 0 and finite, one of them above 0, not "
                f"latency={self.latency}, payload={self.payload} and energy={self.energy}"
            )

    def prices(self, forecast: Forecast) -> Prices:
        """What a millisecond, a byte and a millijoule cost if the dearest split's count as 1 in this forecast.

        Raises:
            ConfigError: A weight on what no split takes any of.
        """
        energy, splits = _at_rate(self.model, forecast), range(-1, len(forecast.stage_ms))
        sent = [forecast.sent_bytes[k + 1] if k < forecast.last else 0 for k in splits]
        computed = [sum(energy.compute_mj(*work) for work in forecast.stage_work[: k + 1]) for k in splits]
        dearest = {
            "latency": max(forecast.split_ms(k) for k in splits),
            "payload": float(max(sent)),
            "energy": max(mj + energy.upload_mj(size) for mj, size in zip(computed, sent, strict=True)),
        }
        total = self.latency + self.payload + self.energy
        found = {}
        for name, most in dearest.items():
            weight = getattr(self, name) / total
            if weight and not most > 0:
                raise ConfigError(f"{name} cannot be weighed: no split of this bundle takes any of it")
            found[name] = weight / most if weight else 0.0
        units = {"latency": "ms", "payload": "bytes", "energy": "modelled mJ"}
        words = " + ".join(
            f"{getattr(self, name) / total:.3g}·{units[name]}/{dearest[name]:.4g}" for name in found if found[name]
        )
        return Prices(found["latency"], found["payload"], found["energy"], self.model, words)


def _at_rate(energy: EnergyModel, forecast: Forecast) -> EnergyModel:
    return replace(energy, rate_mbps=forecast.rate_mbps) if forecast.rate_mbps < math.inf else energy
