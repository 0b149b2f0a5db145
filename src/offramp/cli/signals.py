"""Signals that a long-running command takes in its own time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

__all__ = ["asked_to"]


@contextmanager
def asked_to(*numbers: signal.Signals, queue: SimpleQueue[int] | None = None) -> Iterator[SimpleQueue[int]]:
    """Signals as a queue, until the block ends; then they mean again what they meant before.

    Args:
        *numbers: Which.
        queue: Where others come already; a new one if left out.
    """
    received: SimpleQueue[int] = SimpleQueue() if queue is None else queue
    before = {number: signal.signal(number, lambda number, frame: received.put(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
