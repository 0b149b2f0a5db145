"""Whoever watches is told, and cannot break what it watches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["Teller"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = logging.getLogger("offramp.observe")

#: Seconds from one line about a method that fails to the next: it may fail at every request.
_QUIET_S = 60.0


class Teller:
    """Tells observers and tracers; safe to use from several threads.

    Answers, workers and locks hang on what follows: somebody else's span processor, say, must not reach them.
    What a method raises is logged with its traceback, at most once a minute; then with how often it failed since.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        #: By a method's name: when it was last logged, and how often it has failed since.
        self._failures: dict[str, tuple[float, int]] = {}

    def __call__(self, watcher: Callable[_P, _T], *about: _P.args, **more: _P.kwargs) -> _T | None:
        """What a method of an observer or tracer gives; None if it broke."""
        try:
            return watcher(*about, **more)
        except Exception:
            name = getattr(watcher, "__qualname__", type(watcher).__name__)
            unsaid = self._count(name)
            if unsaid is not None:
                about_it = {"watcher": name, "unsaid": unsaid or None}
                _log.exception("what watches has failed; answers go on", extra=about_it)
            return None

    def _count(self, name: str) -> int | None:
        """Counts a failure; gives how many were not logged before it if it is to be, otherwise None."""
        now = self._clock()
        with self._lock:
            logged_at, unsaid = self._failures.get(name, (None, 0))
            if logged_at is not None and now - logged_at < _QUIET_S:
                self._failures[name] = logged_at, unsaid + 1
                return None
            self._failures[name] = now, 0
            return unsaid
