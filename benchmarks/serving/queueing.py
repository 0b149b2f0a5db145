"""What latency the rules of batching allow: a simulation of two workers, without threads, noise or gRPC.

Stages cost what ResNet-56's do, alone and in a batch. It answers what a busy machine cannot: whether a bar is
within reach of any rule, and which rule is the best at part load.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.timing import parser, write_json
from offramp.tables import table_text

#: Milliseconds of a sample in each stage of ResNet-56 cut at six exits, alone and in a batch, on one EPYC core.
ALONE = (0.292, 0.376, 0.377, 0.354, 0.346, 0.345, 0.345)
TOGETHER = (0.275, 0.357, 0.350, 0.334, 0.318, 0.309, 0.308)
#: A call of a stage, and what the round trip takes beside the stages, at any load.
CALL_MS, TRIP_MS = 0.03, 0.6
WORKERS, CLIENTS, LOADED, MOST = 2, 64, 0.7, 16
PEAK_PER_MS = WORKERS / float(np.mean([sum(TOGETHER[entry:]) for entry in range(len(TOGETHER))]))
UNLOADED_MS = float(np.median([sum(ms + CALL_MS for ms in ALONE[entry:]) for entry in range(len(ALONE))]))


@dataclass(frozen=True)
class Rule:
    """Who runs with whom: the largest batch at a number of requests in line, and how long others may go first."""

    name: str
    largest: Callable[[int], int]
    max_wait_ms: float = 2.0


RULES = (
    Rule("alone", lambda line: 1),
    Rule("full batches", lambda line: MOST),
    Rule("at most 2", lambda line: 2),
    Rule("half a share of the line, at least 2", lambda line: min(MOST, max(2, line // (2 * WORKERS)))),
    Rule("the same, by arrival", lambda line: min(MOST, max(2, line // (2 * WORKERS))), 0.0),
    Rule("the same, 5 ms", lambda line: min(MOST, max(2, line // (2 * WORKERS))), 5.0),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the simulation."""
    arguments = parser(__doc__, "serving-queueing").parse_args(argv)
    draws, last_ms = (2, 2_000.0) if arguments.quick else (20, 10_000.0)
    cases: list[dict[str, Any]] = []
    for steady in (True, False):
        for rule in RULES:
            found: list[float] = []
            for seed in range(draws):
                found += _latencies(_arrivals(LOADED * PEAK_PER_MS, last_ms, steady, seed), rule)
            p50, p99 = np.percentile(found, (50, 99))
            over = (p99 + TRIP_MS) / (UNLOADED_MS + TRIP_MS)
            cases.append({"steady": steady, "rule": rule.name, "p50_ms": p50, "p99_ms": p99, "p99_over_p50": over})
    rows = [
        [
            "steady clients" if case["steady"] else "Poisson",
            case["rule"],
            *(f"{case[key]:.2f}" for key in ("p50_ms", "p99_ms", "p99_over_p50")),
        ]
        for case in cases
    ]
    heads = ["arrivals", "batches", "p50 ms", "p99 ms", "p99 over the unloaded p50, with the round trip"]
    print(table_text(f"{LOADED:.0%} of the peak, {WORKERS} workers, an equal mix of splits", heads, rows))
    print(f"written: {write_json(arguments, {'cases': cases})}")


def _arrivals(per_ms: float, last_ms: float, steady: bool, seed: int) -> list[tuple[float, int]]:
    """When requests come, and the stage that each enters at."""
    draw = random.Random(seed)

    def times() -> Iterator[float]:
        if not steady:
            now = draw.expovariate(per_ms)
            while now < last_ms:
                yield now
                now += draw.expovariate(per_ms)
            return
        pace = CLIENTS / per_ms
        for _ in range(CLIENTS):
            now = draw.random() * pace
            while now < last_ms:
                yield now + draw.gauss(0, 0.2)
                now += pace

    return sorted((now, draw.randrange(len(ALONE))) for now in times())


def _latencies(arrivals: Sequence[tuple[float, int]], rule: Rule) -> list[float]:
    """Milliseconds from arrival to answer, by the rules of `Batcher`."""
    # Time, a number that settles ties, the stage that ends, and who was in it: nobody for an arrival.
    events: list[tuple[float, int, int, list[int]]] = [(t, i, entry, []) for i, (t, entry) in enumerate(arrivals)]
    heapq.heapify(events)
    waiting: dict[int, list[int]] = {}
    free, number, found = WORKERS, len(events), []

    def begin(now: float, stage: int, batch: list[int]) -> None:
        nonlocal number
        line = waiting.get(stage, [])
        largest = rule.largest(len(batch) + sum(map(len, waiting.values())))
        while line and len(batch) < max(1, largest):
            batch.append(line.pop(0))
        if not line:
            waiting.pop(stage, None)
        ms = CALL_MS + ALONE[stage] + (len(batch) - 1) * TOGETHER[stage]
        number += 1
        heapq.heappush(events, (now + ms, number, stage, batch))

    def next_stage(now: float) -> int:
        stage = min(waiting, key=lambda s: arrivals[waiting[s][0]][0])
        return min(waiting) if now - arrivals[waiting[stage][0]][0] < rule.max_wait_ms else stage

    while events:
        now, which, stage, batch = heapq.heappop(events)
        if not batch:
            waiting.setdefault(stage, []).append(which)
            if free:
                free -= 1
                begin(now, stage, [])
        elif stage + 1 < len(ALONE):
            begin(now, stage + 1, batch)
        else:
            found += [now - arrivals[i][0] for i in batch]
            if waiting:
                begin(now, next_stage(now), [])
            else:
                free += 1
    return found


if __name__ == "__main__":
    main()
