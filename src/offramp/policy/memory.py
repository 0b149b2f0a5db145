"""What a policy has learned, outside it: as JSON values, and in a file that belongs to one bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from offramp.bundle.bundle import write_whole
from offramp.config import Config
from offramp.errors import PolicyStateError
from offramp.policy.base import Policy

__all__ = ["FORMAT", "DrawMemory", "LearnerMemory", "ShareMemory", "load_state", "recalled", "save_state"]

FORMAT: Literal[1] = 1

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Setting = bool | int | float | None


class DrawMemory(Config):
    """Where a policy that draws has come to.

    Attributes:
        policy: The policy's name.
        settings: What it was made with.
        seed: Its seed.
        step: How often it has chosen.
    """

    policy: str
    settings: dict[str, _Setting] = Field(default_factory=dict)
    seed: int = 0
    step: Annotated[int, Field(ge=0)] = 0


class LearnerMemory(DrawMemory):
    """What a learner by upper confidence bound knows.

    Attributes:
        arms: The arms that it has learned about; none before its first choice.
        plays: t, the plays that still count.
        weight: What the latest play counts; more than 1 under a discount, where later plays weigh more.
        counts: Per arm the sum of the weights of what was learned about it.
        sums: Per arm the weighted sum of its rewards.
        recent: With a window, per play that still counts the rewards that it showed, arms 0, 1, … to the one
            played; null where nothing was shown.
    """

    arms: tuple[Annotated[int, Field(ge=-1)], ...]
    plays: _Count
    weight: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    counts: tuple[_Count, ...]
    sums: tuple[_Finite, ...]
    recent: tuple[tuple[_Finite | None, ...], ...] = ()

    @model_validator(mode="after")
    def _agree(self) -> LearnerMemory:
        if list(self.arms) != sorted(set(self.arms)):
            raise ValueError(f"arms ascend, unlike {self.arms}")
        for name in ("counts", "sums"):
            if len(getattr(self, name)) != len(self.arms):
                raise ValueError(f"{name} holds {len(getattr(self, name))} values for {len(self.arms)} arms")
        window = self.settings.get("window")
        if window is None and self.recent:
            raise ValueError("recent plays without a window")
        if window is not None and (len(self.recent) > window or len(self.recent) != self.plays):
            raise ValueError(f"{len(self.recent)} recent plays, {self.plays:g} counted, in a window of {window}")
        if any(len(values) > len(self.arms) for values in self.recent):
            raise ValueError(f"a recent play of more than {len(self.arms)} arms")
        return self


class ShareMemory(DrawMemory):
    """How often exits were sure.

    Attributes:
        exits: The exits that were seen, ascending.
        sure: Per exit how often it was sure, older inputs counting less.
        seen: Per exit how often it was seen, the same.
        kept_ms: Milliseconds since the last transfer.
        lost: Offloads in a row that brought no answer.
    """

    exits: tuple[Annotated[int, Field(ge=0)], ...] = ()
    sure: tuple[_Count, ...] = ()
    seen: tuple[_Count, ...] = ()
    kept_ms: _Count = 0.0
    lost: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _agree(self) -> ShareMemory:
        if list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits ascend, unlike {self.exits}")
        if not len(self.exits) == len(self.sure) == len(self.seen):
            raise ValueError(f"{len(self.sure)} and {len(self.seen)} values for {len(self.exits)} exits")
        if any(sure > seen for sure, seen in zip(self.sure, self.seen, strict=True)):
            raise ValueError("an exit was sure more often than it was seen")
        return self


_Memory = TypeVar("_Memory", bound=DrawMemory)


def recalled(
    kind: type[_Memory], state: Mapping[str, Any], name: str, settings: Mapping[str, _Setting]
) -> _Memory:
    """A state, checked.

    Args:
        kind: What it has to be.
        state: JSON values, as the policy's `state` gave them.
        name: Of the policy that is to go on from it.
        settings: The settings of that policy.

    Raises:
        PolicyStateError: No state, another policy's, or of other settings.
    """
    whose = state.get("policy") if isinstance(state, Mapping) else None
    if whose != name:
        raise PolicyStateError(f"expected a state of {name}, got " + (f"{whose}'s" if whose else "none"))
    try:
        memory = kind.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PolicyStateError(
            f"the state of {name} is damaged: {where or 'as a whole'}: {first['msg']}"
        ) from error
    theirs = memory.settings
    other = [key for key in {**settings, **theirs} if settings.get(key) != theirs.get(key)]
    if other:
        told = ", ".join(f"{key}={theirs.get(key)} (here {settings.get(key)})" for key in sorted(other))
        raise PolicyStateError(f"this state of {name} was learned with {told}; make the policy so, or start anew")
    return memory


def save_state(policy: Policy, path: str | Path, digest: str) -> None:
    """Writes what a policy has learned; a file there is replaced whole.

    Args:
        policy: The policy.
        path: The file.
        digest: Of the bundle that it was learned on.

    Raises:
        PolicyStateError: The file cannot be written.
    """
    text = json.dumps({"format": FORMAT, "digest": digest, "state": policy.state()}, allow_nan=False)
    try:
        write_whole(Path(path), (text + "\n").encode())
    except OSError as error:
        raise PolicyStateError(f"cannot write to {path}: {error.strerror}") from error


def load_state(policy: Policy, path: str | Path, digest: str) -> None:
    """Lets a policy go on from what `save_state` wrote.

    Args:
        policy: The policy, made with the settings of the one that was saved.
        path: The file.
        digest: Of the bundle that it is to run on.

    Raises:
        PolicyStateError: A file that is missing, torn or foreign, of another bundle, or another policy's.
    """
    if Path(path).exists() and not Path(path).is_file():  # a device may have no end
        raise PolicyStateError(f"cannot read {path}: it is no file")
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyStateError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PolicyStateError(f"{path} is no policy's state, or torn: {error}") from error
    if not isinstance(held, dict) or set(held) != {"format", "digest", "state"}:
        raise PolicyStateError(f"{path} is no policy's state: expected an object of format, digest and state")
    if held["format"] != FORMAT:
        raise PolicyStateError(f"{path} has state format {held['format']!r}; this offramp reads {FORMAT}")
    if held["digest"] != digest:
        raise PolicyStateError(
            f"{path} was learned on another bundle (digest {str(held['digest'])[:12]}…, not {digest[:12]}…): "
            "its confidences and costs say nothing about this one; start anew"
        )
    try:
        policy.restore(held["state"])
    except PolicyStateError as error:
        raise PolicyStateError(f"{path}: {error}") from error
