"""Policies by name, as the command line takes them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from offramp.errors import ConfigError
from offramp.policy.base import Policy
from offramp.policy.cascade import ThresholdCascade
from offramp.policy.dynamic_split import DynamicSplit
from offramp.policy.fixed import EdgeOnly, FixedSplit, ServerOnly
from offramp.policy.i_splitee import ISplitEE
from offramp.policy.random import RandomArm
from offramp.policy.splitee import SplitEE
from offramp.policy.splitee_s import SplitEES
from offramp.policy.uee import UEEUCB

__all__ = ["POLICIES", "make_policy"]

#: name → class. What is added here is offered by the command line, and tested against the contract.
POLICIES: dict[str, Callable[..., Policy]] = {
    "i-splitee": ISplitEE,
    "splitee": SplitEE,
    "splitee-s": SplitEES,
    "uee-ucb": UEEUCB,
    "dynamic-split": DynamicSplit,
    "cascade": ThresholdCascade,
    "random": RandomArm,
    "edge-only": EdgeOnly,
    "server-only": ServerOnly,
}


def make_policy(name: str, *, alpha: float | None = None, seed: int = 0, **options: Any) -> Policy:
    """A policy by its name; `split-K` is split K with its gate, `split-K-all` the same without.

    Args:
        name: One of `POLICIES`, or `split-0`, `split-1-all`, ….
        alpha: The gates' threshold, of policies that have one; None takes the bundle's own.
        seed: For policies that draw.
        options: What else the policy's class takes, such as `audit`, `published`, `discount`, `window`, `mu`, `c`.

    Raises:
        ConfigError: An unknown name or option; the message gives the nearest one.
    """
    kind, _, rest = name.partition("-")
    number, _, tail = rest.partition("-")
    if kind == "split" and number.isdecimal() and tail in ("", "all"):
        if options:
            raise ConfigError(f"{name} takes no option {next(iter(options))!r}")
        return FixedSplit(int(number), gated=tail != "all", alpha=alpha)
    if name not in POLICIES:
        near = _nearest(name, [*POLICIES, "split-0", "split-1"])
        raise ConfigError(
            f"unknown policy {name!r}; did you mean {near!r}? Known: {', '.join(POLICIES)}, split-K, split-K-all"
        )
    takes = inspect.signature(POLICIES[name]).parameters
    for option in options:
        if option not in takes:
            near = f"did you mean {_nearest(option, takes)!r}? " if takes else ""
            raise ConfigError(f"{name} takes no option {option!r}; {near}It takes: {', '.join(takes) or 'none'}")
    usual = {key: value for key, value in {"alpha": alpha, "seed": seed}.items() if key in takes}
    return POLICIES[name](**usual, **options)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return (difflib.get_close_matches(name, names, n=1, cutoff=0.3) or names)[0]
