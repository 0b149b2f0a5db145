"""The value of `--cost`: the papers' units, or weights of what is measured."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offramp.errors import ConfigError

if TYPE_CHECKING:
    from offramp.policy.cost import CostModel, MeasuredCost

__all__ = ["COST_HELP", "number", "parse_cost"]

COST_HELP = (
    "What things cost. In the papers' units: `gamma` per layer of depth (0.1), `offload` per cut sent (0.5), "
    "`head` per exit evaluated on the edge (0). Or weights of what is measured: `latency` in ms, `payload` in "
    "bytes, `energy` in modelled mJ, each as a part of what the dearest split takes."
)
_UNITS, _WEIGHTS = ("gamma", "offload", "head"), ("latency", "payload", "energy")


def parse_cost(text: str, depths: Sequence[int]) -> CostModel | MeasuredCost:
    """A cost model, or what is weighed where cost is measured.

    Args:
        text: Such as "gamma=0.1,offload=0.3", or "latency=1,energy=0.5"; empty for the papers' units.
        depths: Per stage, for the papers' units.

    Raises:
        ConfigError: Names that are none, values that cannot be, or units and weights mixed.
    """
    from offramp.policy.cost import CostModel, MeasuredCost

    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        known = (*_UNITS, *_WEIGHTS)
        if name not in known:
            near = (difflib.get_close_matches(name, known, n=1, cutoff=0.3) or known)[0]
            raise ConfigError(f"--cost has no {name!r}; did you mean {near!r}? Known: {', '.join(known)}")
        if name in given:
            raise ConfigError(f"--cost {text!r} names {name} twice")
        given[name] = number("--cost " + name, value)
    if not set(given) & set(_WEIGHTS):
        return CostModel.in_layers(depths, **given)
    if set(given) & set(_UNITS):
        raise ConfigError(
            f"--cost takes either the papers' units ({', '.join(_UNITS)}) or weights of what is measured "
            f"({', '.join(_WEIGHTS)}), not {text!r}"
        )
    latency, payload, energy = (given.get(name, 0.0) for name in _WEIGHTS)
    return MeasuredCost(latency, payload, energy)


def number(what: str, text: str) -> float:
    """A finite number.

    Raises:
        ConfigError: Anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{what} is a number, not {text!r}")
    return value
