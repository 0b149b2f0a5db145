"""Policies by name, as the command line takes them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from offramp.errors import ConfigError
from offramp.policy.base import Policy
from offramp.policy.cascade import ThresholdCascade
from offramp.policy.drift import DetectorMaker, DriftReset
from offramp.policy.dynamic_split import DynamicSplit
from offramp.policy.fixed import EdgeOnly, FixedSplit, ServerOnly
from offramp.policy.i_splitee import ISplitEE
from offramp.policy.random import RandomArm
from offramp.policy.splitee import SplitEE
from offramp.policy.splitee_s import SplitEES
from offramp.policy.ucb import UpperConfidence
from offramp.policy.uee import UEEUCB

__all__ = ["POLICIES", "make_policy", "parse_policy"]

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


_WORDS = {"true": True, "false": False, "none": None}


def parse_policy(text: str) -> tuple[str, dict[str, Any]]:
    """A policy as it is typed, `NAME` or `NAME,OPTION=VALUE,…`: its name and its options for `make_policy`.

    Args:
        text: Such as `split-1`, `i-splitee,audit=0.05`, `splitee,window=500`, `i-splitee,drift=adwin`.

    Raises:
        ConfigError: Anything else, an option named twice, or the seed, which is every policy's of a run.
    """
    name, *parts = text.split(",")
    options: dict[str, Any] = {}
    for part in parts:
        option, sign, value = part.partition("=")
        if not option or not sign or not value:
            raise ConfigError(f"a policy is NAME or NAME,OPTION=VALUE,…; {part!r} in {text!r} is no OPTION=VALUE")
        if option in options:
            raise ConfigError(f"{text!r} names {option} twice")
        if option == "seed":
            raise ConfigError(f"the seed is given by --seed, not in {text!r}")
        options[option] = _value(value)
    return name, options


def make_policy(
    name: str,
    *,
    alpha: float | None = None,
    seed: int = 0,
    drift: str | DetectorMaker | None = None,
    **options: Any,
) -> Policy:
    """A policy by its name; `split-K` is split K with its gate, `split-K-all` the same without.

    Args:
        name: One of `POLICIES`, or `split-0`, `split-1-all`, ….
        alpha: The gates' threshold, of policies that have one; None takes the bundle's own.
        seed: For policies that draw.
        drift: A detector at whose alarm a learner starts anew, as `DriftReset` takes it.
        options: What else the policy's class takes, such as `audit`, `published`, `discount`, `window`, `mu`, `c`.

    Raises:
        ConfigError: An unknown name or option; the message gives the nearest one. A value that cannot be.
        MissingExtraError: What the detector needs is not installed.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a policy is named by a word, such as {next(iter(POLICIES))!r}, not {name!r}")
    kind, _, rest = name.partition("-")
    number, _, tail = rest.partition("-")
    if kind == "split" and number.isdecimal() and tail in ("", "all"):
        given = {**options, **({} if drift is None else {"drift": drift})}
        if given:
            raise ConfigError(f"{name} takes no option {next(iter(given))!r}")
        return FixedSplit(int(number), gated=tail != "all", **_checked(name, FixedSplit, {"alpha": alpha}))
    if name not in POLICIES:
        near = _nearest(name, [*POLICIES, "split-0", "split-1"])
        raise ConfigError(
            f"unknown policy {name!r}; did you mean {near!r}? Known: {', '.join(POLICIES)}, split-K, split-K-all"
        )
    policy = POLICIES[name]
    takes = list(inspect.signature(policy).parameters)
    learns = isinstance(policy, type) and issubclass(policy, UpperConfidence)
    offered = [*takes, "drift"] if learns else takes
    for option in [*options, *([] if drift is None else ["drift"])]:
        if option not in offered:
            near = f"did you mean {_nearest(option, offered)!r}? " if offered else ""
            raise ConfigError(f"{name} takes no option {option!r}; {near}It takes: {', '.join(offered) or 'none'}")
    usual = {key: value for key, value in {"alpha": alpha, "seed": seed}.items() if key in takes}
    made = policy(**_checked(name, policy, {**usual, **options}))
    return made if drift is None or not isinstance(made, UpperConfidence) else DriftReset(made, drift)


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _checked(name: str, policy: Callable[..., Policy], options: dict[str, Any]) -> dict[str, Any]:
    """The options, once each is of the type that the policy's class names; ranges are the class's own affair."""
    wanted = inspect.signature(policy, eval_str=True).parameters
    for option, value in options.items():
        try:
            TypeAdapter(wanted[option].annotation).validate_python(value, strict=True)
        except ValidationError:
            expected = inspect.signature(policy).parameters[option].annotation
            raise ConfigError(f"{name}: {option} is {expected}, not {value!r}") from None
    return options


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return (difflib.get_close_matches(name, names, n=1, cutoff=0.3) or names)[0]
