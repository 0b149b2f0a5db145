"""Our own servers as processes of their own, ended by their own id whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty, Queue

from offramp.errors import ServerUnavailableError
from offramp.serving.access import TOKEN_VARIABLE
from offramp.serving.link import LinkSettings

__all__ = ["listening", "running", "served"]

_ADDRESS = re.compile(r"listening on (\S+:\d+)")


def listening(address: str) -> str:
    """The line by which a server of ours says that it is ready."""
    return f"listening on {address}"


@contextlib.contextmanager
def running(arguments: Sequence[str], *, start_s: float = 30.0, stop_s: float = 5.0) -> Iterator[str]:
    """Runs `offramp ARGUMENTS` until the block ends; gives the address on which it listens.

    Args:
        arguments: The command line, such as `["serve", "digits.bundle", "--grpc-port", "0"]`.
        start_s: Seconds until it must listen.
        stop_s: Seconds that it has to end when asked, before it is killed.

    Raises:
        ServerUnavailableError: It ended, or did not listen in time; with what it said.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "offramp", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a Ctrl-C is ours to pass on
        # The token is for servers elsewhere; whoever starts one here shows it none.
        env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
    )
    try:
        yield _address(process, arguments, start_s)
    finally:
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextlib.contextmanager
def served(bundle: str | Path, link: LinkSettings) -> Iterator[str]:
    """A bundle's server behind an emulated link, a process each, until the block ends; gives the link's address.

    Raises:
        ServerUnavailableError: As `running` says.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(["serve", str(bundle), "--grpc-port", "0"]))
        arguments = ["link", "--listen", "0", "--to", server, "--seed", str(link.seed)]
        arguments += ["--rate", f"{link.rate_bps:.0f}bit" if link.rate_bps else "unlimited"]
        arguments += ["--delay", f"{1e3 * link.delay_s:f}ms", "--jitter", f"{1e3 * link.jitter_s:f}ms"]
        for start, duration in link.outages:
            arguments += ["--outage", f"{start:f}s+{duration:f}s"]
        yield stack.enter_context(running(arguments))


def _address(process: subprocess.Popen[str], arguments: Sequence[str], start_s: float) -> str:
    lines: Queue[str] = Queue()
    said: list[str] = []

    def read() -> None:  # goes on to the end, so that a full pipe never stops the server
        assert process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in process.stdout:
                lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    until = time.monotonic() + start_s
    while (left := until - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=min(left, 0.1))
        except Empty:
            if process.poll() is not None and lines.empty():
                break
            continue
        if found := _ADDRESS.search(line):
            return found[1]
        said.append(line.strip())
    raise ServerUnavailableError(
        f"`offramp {' '.join(arguments)}` does not listen: {' '.join(said) or 'it said nothing'}"
    )
