"""Whoever watches is told, and cannot break what it watches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["tell"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = logging.getLogger("offramp.observe")


def tell(watcher: Callable[_P, _T], *about: _P.args, **more: _P.kwargs) -> _T | None:
    """What a method of an observer or tracer gives; None if it broke, which is logged.

    Answers, workers and locks hang on what follows: somebody else's span processor, say, must not reach them.
    """
    try:
        return watcher(*about, **more)
    except Exception:
        _log.exception("what watches has failed; answers go on")
        return None
