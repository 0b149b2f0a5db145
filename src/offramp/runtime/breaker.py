"""A circuit breaker: after some failures in a row a server is left alone, then probed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from offramp.errors import ConfigError

__all__ = ["CircuitBreaker"]

_log = logging.getLogger("offramp.edge")


class CircuitBreaker:
    """Closed lets calls through; open refuses them; after a while one call is let through as a probe.

    Args:
        failures: Failures in a row that open it.
        reset_s: Seconds from opening, or from a failed probe, to the next probe.
        clock: Gives seconds; must not jump.

    Raises:
        ConfigError: Fewer than one failure, or a negative time.
    """

    def __init__(
        self, *, failures: int = 3, reset_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if failures < 1 or not reset_s >= 0:
            raise ConfigError(f"failures must be at least 1 and reset_s at least 0, not {failures}, {reset_s}")
        self._limit, self._reset_s, self._clock = failures, reset_s, clock
        self._failures = 0
        self._probe_at = 0.0

    @property
    def open(self) -> bool:
        """Whether the server counts as down."""
        return self._failures >= self._limit

    def allows(self) -> bool:
        """Whether a call may be made now."""
        return not self.open or self._clock() >= self._probe_at

    def begun(self) -> None:
        """A call goes out; if it is a probe, no other one does until it is back, or `reset_s` is over."""
        if self.open:
            self._probe_at = self._clock() + self._reset_s

    def succeeded(self) -> None:
        """A call was answered: closed."""
        if self.open:
            _log.info("the server answers again")
        self._failures = 0

    def failed(self) -> None:
        """A call was not answered."""
        self._failures += 1
        if self._failures == self._limit:
            _log.warning("the server counts as down", extra={"failures": self._failures})
        self._probe_at = self._clock() + self._reset_s
