"""How late this machine wakes a thread while others compute: what no server on it can be faster than.

One process for each core computes in bursts as long as a request's stages, and pauses, so that the core is busy
for a given share of the time; a thread beside them sleeps for a millisecond, and sees how late it is. A request is
handed from thread to thread five or six times on its way from client to answer and back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from benchmarks.timing import parser, write_json
from offramp.tables import table_text

#: A request's stages, and the shares of the time for which the cores are kept busy.
BURST_MS, SHARES = 1.4, (0.0, 0.25, 0.5, 0.75, 1.0)
PERCENTILES = (50, 90, 99)
_BURSTS = """
import sys, time
burst, pause = float(sys.argv[1]), float(sys.argv[2])
while True:
    until = time.perf_counter() + burst
    while time.perf_counter() < until:
        pass
    if pause:
        time.sleep(pause)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__, "serving-wakeups").parse_args(argv)
    wakes, rounds = (100, 1) if arguments.quick else (1000, 5)
    late: dict[float, list[list[float]]] = {share: [] for share in SHARES}
    for _ in range(rounds):
        for share in SHARES:
            late[share].append(np.percentile(_late_ms(share, wakes), PERCENTILES).tolist())
    rows = [[f"{share:.0%}", *(f"{ms:.2f}" for ms in np.median(late[share], axis=0))] for share in SHARES]
    title = f"A thread wakes late, {len(os.sched_getaffinity(0))} cores"
    heads = ["busy, each", *(f"p{percent} ms" for percent in PERCENTILES)]
    print(table_text(title, heads, rows, caption=f"Bursts of {BURST_MS} ms; medians of {rounds} rounds."))
    print(f"written: {write_json(arguments, {'percentiles': PERCENTILES, 'late_ms': late})}")


def _late_ms(share: float, wakes: int) -> list[float]:
    """How late a sleeping thread woke, each time, while every core computes for a share of the time."""
    with ExitStack() as stack:
        for _ in range(len(os.sched_getaffinity(0)) if share else 0):
            pause_s = BURST_MS / 1e3 * (1 / share - 1)
            command = [sys.executable, "-c", _BURSTS, str(BURST_MS / 1e3), str(pause_s)]
            stack.callback(_end, subprocess.Popen(command))
        time.sleep(0.3)
        found = []
        for _ in range(wakes):
            due = time.perf_counter() + 1e-3
            time.sleep(1e-3)
            found.append((time.perf_counter() - due) * 1e3)
        return found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


if __name__ == "__main__":
    main()
