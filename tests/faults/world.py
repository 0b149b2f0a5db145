"""Where an edge is run under faults: a server's process, a liar, clocks that jump, and what is right."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from liar import Liar
from tiny_bundle import WIDTH, tiny_bundle

from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail

#: Seconds for what should take a fraction of one.
PATIENCE_S = 30.0


class Served:
    """`offramp serve` as a process that may be killed, frozen, and started again on another port."""

    def __init__(self, *arguments, **options):
        self._arguments, self._options = arguments, options
        self.process, self.port = None, 0
        self._lock = threading.Lock()
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        """Starts it, unless it runs; waits until it listens."""
        with self._lock:
            if self.process is not None:
                return
            self.process = subprocess.Popen(
                [sys.executable, "-m", "offramp", "serve", *map(str, self._arguments), "--grpc-port", "0"],
                stdout=subprocess.PIPE,
                text=True,
                **self._options,
            )
            said = self.process.stdout.readline()
            found = re.search(r"listening on \S+:(\d+)", said)
            assert found, said or "the server said nothing"
            self.port = int(found[1])

    def kill(self):
        """As by `kill -9`."""
        with self._lock:
            if self.process is not None:
                self.process.kill()
                self.process.wait()
                self.process.stdout.close()
                self.process = None

    def freeze(self):
        """It no longer runs, and its connections stay."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)


class WallClock:
    """`time.time` of everything in `offramp`, a jump away from the machine's.

    gRPC's Python reads it once per call and the machine's own right after, so a clock that jumps here and not
    there would be no clock at all; see `jumping.c`.
    """

    def __init__(self):
        self.jump = 0.0

    def __enter__(self):
        self._time, self._time_ns = time.time, time.time_ns
        time.time, time.time_ns = self._now, lambda: int(1e9 * self._now(2))
        return self

    def __exit__(self, *_):
        time.time, time.time_ns = self._time, self._time_ns

    def _now(self, depth=1):
        asking = sys._getframe(depth).f_globals.get("__name__", "").partition(".")[0]
        return self._time() + (self.jump if asking == "offramp" else 0.0)


class World:
    """Made once for many runs: the bundle, its edge copies, the servers, and the truth."""

    def __init__(self, folder, **options):
        self._folder, self._options = Path(folder), options

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.bundle = tiny_bundle(self._folder / "tiny.bundle")
            self.copies = {4: self.bundle}
            for held in (1, 2, 3):
                self.copies[held] = self.bundle.edge_copy(self._folder / f"{held}.bundle", held)
            self._stages = Stages(self.bundle)
            self.tail = Tail(self._stages)
            self.liar = stack.enter_context(Liar(self.tail))
            self.served = stack.enter_context(Served(self.bundle.path, "--workers", "2", **self._options))
            self.wall = stack.enter_context(WallClock())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def truth(self, x, exit_index, sent=None):
        """The probabilities of an exit, for an input that was sent at a cut in a mode, or was not."""
        values = x[None]
        if sent is not None:
            (values,), _ = self._stages.decode(*sent, self._stages.encode(*sent, [values])[0])
        logits = values[0, 2 * exit_index : 2 * exit_index + 2].astype(np.float64)
        odds = np.exp(logits - logits.max())
        return odds / odds.sum()


def inputs(draw):
    """Without end: what exits are sure of is drawn, and one in twenty cannot be run."""
    while True:
        if draw.random() < 0.05:
            yield draw.choice((np.full(WIDTH, np.nan, np.float32), np.zeros(7, np.float32), None, "text"))
        else:
            yield np.array([draw.uniform(-3, 3) for _ in range(WIDTH)], np.float32)


def wrong(world, bundle, x, result, *, alpha, deadline_ms):
    """What is wrong with the result of an input; None if nothing is."""
    if not isinstance(x, np.ndarray) or x.shape != (WIDTH,) or not np.isfinite(x).all():
        fine = result.status == "failed" and result.error and result.label is None
        return None if fine else f"an input that cannot be run gave {result}"
    if (result.error is None) != (result.status == "ok"):
        return f"{result.status} with the reason {result.error!r}"
    if result.status == "failed":  # the edge keeps back time to reach an exit, unless it is late already
        late = result.error.startswith("no time left") and result.label is None
        return None if late else f"failed: {result.error}"
    action, last = result.action, bundle.manifest.last
    here = result.where == "edge"
    if not here and result.status != "ok":
        return f"{result.status} on the server"
    expected = world.truth(x, result.exit, None if here else (action.split, action.mode))
    if not np.allclose(result.probabilities, expected, rtol=0, atol=1e-5):
        return f"exit {result.exit} says {expected}, the result {result.probabilities}"
    if result.label != int(np.argmax(expected)) or abs(result.confidence - expected.max()) > 1e-5:
        return f"label {result.label} at {result.confidence} for {expected}"
    if result.status == "ok" and here and result.exit != last:
        gate = bundle.tuning.thresholds[result.exit] if alpha is None else alpha
        if result.exit not in action.exits or result.confidence < gate - 1e-6:
            return f"exit {result.exit} answered, unsure or not asked: {result}"
    if result.latency_ms.total > deadline_ms + 1e3 * PATIENCE_S / 10:
        return f"{result.latency_ms.total:.0f} ms, the deadline is {deadline_ms}"
    return None


def open_files(pid="self"):
    """What a process has open, by descriptor."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found[number] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


class Leaks:
    """Threads and descriptors that are there after a block and were not before, here and at a server."""

    def __init__(self, server=None):
        self._server = server

    def __enter__(self):
        self._threads, self._files = set(threading.enumerate()), open_files()
        self._pid = self._server and self._server.pid
        self._theirs = open_files(self._pid) if self._pid else {}
        return self

    def __exit__(self, *_):
        pass

    def found(self):
        """In words, once nothing more goes away; None if there are none."""
        if self._server and self._server.process.poll() is not None:
            return f"the server ended by itself, with {self._server.process.returncode}"
        same = self._server and self._server.pid == self._pid  # and was not killed and started again
        end = time.monotonic() + PATIENCE_S / 3
        while True:
            threads = [t.name for t in set(threading.enumerate()) - self._threads if "ThreadPool" not in t.name]
            files, theirs = open_files(), open_files(self._pid) if same else {}
            if not threads and len(files) <= len(self._files) and len(theirs) <= len(self._theirs):
                return None
            if time.monotonic() > end:
                more = [name for number, name in files.items() if self._files.get(number) != name]
                more += [f"server's {name}" for number, name in theirs.items() if self._theirs.get(number) != name]
                return f"left behind: threads {threads}, files {more}"
            time.sleep(0.005)
