"""Policies for a replay by what a user types, and the simple ones that every learner is compared with."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from offramp.policy.base import Policy
from offramp.policy.registry import POLICIES, make_policy, parse_policy
from offramp.replay.play import Maker
from offramp.replay.trace import Trace

__all__ = ["asked", "comparisons"]


def comparisons(trace: Trace, *, offload: bool = True) -> dict[str, Maker]:
    """By name, every fixed arm, the final exit, a random arm, and those that offload.

    Every fixed arm has its gate, and the best of them in hindsight is among them. `edge-only` is the final exit,
    always. `split-K-all` offloads everything after the first arm K, `server-only` sends the input. The cascade
    leaves at the first exit that is sure; without confidences there is none.

    Args:
        trace: Says which exits there are.
        offload: Whether there is a server to send to without being unsure.
    """
    early = trace.meta.exits[:-1]
    names = [*(f"split-{k}" for k in early), "edge-only", "random"]
    if offload:
        names += [f"split-{early[0]}-all", "server-only"]
    if trace.confidence is not None:
        names.append("cascade")
    return {name: partial(_made, name, {}) for name in names}


def asked(wanted: str) -> dict[str, Maker]:
    """A policy as typed, `NAME` or `NAME,OPTION=VALUE,…`, and its published form beside it if it has one.

    The published form learns from what no edge can see (`Policy.replay_only`); audits make up for that, so a
    policy asked for with both is refused.

    Args:
        wanted: As `parse_policy` takes it, such as `i-splitee,audit=0.05`.

    Raises:
        ConfigError: An unknown name or option, for which the nearest is given, or a value that cannot be.
        MissingExtraError: What a drift detector needs is not installed.
    """
    name, options = parse_policy(wanted)
    make_policy(name, **options)
    found: dict[str, Maker] = {wanted: partial(_made, name, options)}
    kind = POLICIES.get(name)
    if kind is not None and "published" in inspect.signature(kind).parameters and "published" not in options:
        plain = {key: value for key, value in options.items() if key != "audit"}
        kept = [part for part in wanted.split(",")[1:] if not part.startswith("audit=")]
        typed = ",".join([name, *kept, "published=true"])
        found[typed] = partial(_made, name, {**plain, "published": True})
    return found


def _made(name: str, options: dict[str, Any], seed: int) -> Policy:
    return make_policy(name, seed=seed, **options)
