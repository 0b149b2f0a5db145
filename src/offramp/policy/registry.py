"""Policies by name, as the command line takes them."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from offramp.errors import ConfigError
from offramp.policy.base import Policy
from offramp.policy.cascade import ThresholdCascade
from offramp.policy.fixed import EdgeOnly, FixedSplit, ServerOnly
from offramp.policy.random import RandomArm
from offramp.policy.splitee import ISplitEE

__all__ = ["POLICIES", "make_policy"]

#: name → maker from the gates' threshold (None: the bundle's) and a seed
POLICIES: dict[str, Callable[[float | None, int], Policy]] = {
    "i-splitee": lambda alpha, seed: ISplitEE(alpha=alpha),
    "cascade": lambda alpha, seed: ThresholdCascade(alpha=alpha),
    "random": lambda alpha, seed: RandomArm(alpha=alpha, seed=seed),
    "edge-only": lambda alpha, seed: EdgeOnly(),
    "server-only": lambda alpha, seed: ServerOnly(),
}


def make_policy(name: str, *, alpha: float | None = None, seed: int = 0) -> Policy:
    """A policy by its name; `split-K` is split K with its gate, `split-K-all` the same without.

    Args:
        name: One of `POLICIES`, or `split-0`, `split-1-all`, ….
        alpha: The gates' threshold; None takes the bundle's own.
        seed: For policies that draw.

    Raises:
        ConfigError: An unknown name; the message gives the nearest one.
    """
    if name in POLICIES:
        return POLICIES[name](alpha, seed)
    kind, _, rest = name.partition("-")
    number, _, tail = rest.partition("-")
    if kind == "split" and number.isdecimal() and tail in ("", "all"):
        return FixedSplit(int(number), gated=tail != "all", alpha=alpha)
    known = [*POLICIES, "split-0", "split-1"]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3) or known[:1]
    raise ConfigError(
        f"unknown policy {name!r}; did you mean {near[0]!r}? Known: {', '.join(POLICIES)}, split-K, split-K-all"
    )
