"""What latency the rules of batching allow: a simulation without threads, noise or an operating system.

Stages cost what ResNet-56's do, alone and in a batch; reading a request and sending its answer take the same
cores, as gRPC, Python and clients on the server's machine do, and go first. Simulated are the rules of `Batcher`
and, for what another scheduler could do, rules that may put a batch aside after each stage for somebody more
urgent. It answers what a busy machine cannot: whether a bar is within reach of any rule, from how many cores on,
and which rule is the best at part load.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.serving.batching import LOADS, P99_BAR
from benchmarks.timing import parser, write_json
from offramp.runtime.batching import MAX_BATCH
from offramp.tables import table_text

#: Milliseconds of a sample in each stage of ResNet-56 cut at six exits, alone and in a batch, on one EPYC core.
ALONE = (0.292, 0.376, 0.377, 0.354, 0.346, 0.345, 0.345)
TOGETHER = (0.275, 0.357, 0.350, 0.334, 0.318, 0.309, 0.308)
#: A call of a stage; reading a request and sending its answer, by the server and the clients on its machine.
CALL_MS, PROTOCOL_MS = 0.03, 0.4
#: Cores, one worker each, and clients to a core.
CORES, CLIENTS, LOADED = (1, 2, 4, 8, 16), 32, LOADS[-1]
HERE = 2
STAGES = len(ALONE)
LEFT = [sum(ALONE[stage:]) for stage in range(STAGES)]
WORK_MS = float(np.mean([sum(TOGETHER[entry:]) for entry in range(STAGES)])) + 2 * PROTOCOL_MS
UNLOADED_MS = float(np.median([sum(ms + CALL_MS for ms in ALONE[entry:]) for entry in range(STAGES)]))
UNLOADED_MS += 2 * PROTOCOL_MS


@dataclass(frozen=True)
class Rule:
    """Who runs with whom.

    Attributes:
        name: Of the row.
        largest: The largest batch at a number of requests in line, on a number of cores.
        max_wait_ms: How long others may go first, so that they can join.
        urgency: Of a request by its arrival and its next stage, the least goes first. With it a batch stays
            together for one stage only; without it, to the end.
    """

    name: str
    largest: Callable[[int, int], int]
    max_wait_ms: float = 2.0
    urgency: Callable[[float, int], float] | None = None


def _half_a_share(line: int, cores: int) -> int:
    return min(MAX_BATCH, max(2, line // (2 * cores)))


CHOSEN = Rule("half a share of the line, at least 2", _half_a_share)
RULES = (
    Rule("alone", lambda line, cores: 1),
    Rule("full batches", lambda line, cores: MAX_BATCH),
    Rule("at most 2", lambda line, cores: 2),
    CHOSEN,
    Rule("the same, by arrival", _half_a_share, 0.0),
    Rule("the same, 5 ms", _half_a_share, 5.0),
    Rule("stage by stage: first come", lambda line, cores: 1, urgency=lambda since, stage: since),
    Rule("stage by stage: first come, 2", lambda line, cores: 2, urgency=lambda since, stage: since),
    Rule(
        "stage by stage: least slack, 2", lambda line, cores: 2, urgency=lambda since, stage: since - LEFT[stage]
    ),
    Rule("stage by stage: shortest left, 2", lambda line, cores: 2, urgency=lambda since, stage: LEFT[stage]),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the simulation."""
    arguments = parser(__doc__, "serving-queueing").parse_args(argv)
    draws, last_ms = (2, 1_000.0) if arguments.quick else (20, 4_000.0)

    def case(rule: Rule, cores: int) -> dict[str, Any]:
        found: dict[str, Any] = {"rule": rule.name, "cores": cores}
        for kind in ("steady", "poisson"):
            rows = []
            for seed in range(draws):
                arrivals = _arrivals(LOADED * cores / WORK_MS, last_ms, cores, kind == "steady", seed)
                rows.append(np.percentile(_latencies(arrivals, rule, cores), (50, 99)).tolist())
            found[kind] = {"p50_ms": [row[0] for row in rows], "p99_ms": [row[1] for row in rows]}
        return found

    rules, cores = [case(rule, HERE) for rule in RULES], [case(CHOSEN, number) for number in CORES]
    heads = ["p50 ms", "p99 ms", "p99 over one client's p50 (draws)", "Poisson arrivals (draws)"]
    title = f"{LOADED:.0%} of the peak, an equal mix of splits, steady clients"
    print(table_text(f"{title}, {HERE} cores", ["rule", *heads], [_row("rule", found) for found in rules]))
    caption = (
        f"One client's p50: {UNLOADED_MS:.1f} ms. Bar: {P99_BAR:g}. Medians of {draws} draws of phases and stages."
    )
    rows = [_row("cores", found) for found in cores]
    print(table_text(f"{title}, {CHOSEN.name}", ["cores", *heads], rows, caption=caption))
    print(f"written: {write_json(arguments, {'unloaded_p50_ms': UNLOADED_MS, 'rules': rules, 'cores': cores})}")


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    steady, poisson = found["steady"], found["poisson"]
    over = [np.array(kind["p99_ms"]) / UNLOADED_MS for kind in (steady, poisson)]
    return [
        str(found[name]),
        *(f"{np.median(steady[key]):.1f}" for key in ("p50_ms", "p99_ms")),
        *(f"{np.median(ratios):.1f} ({ratios.min():.1f}-{ratios.max():.1f})" for ratios in over),
    ]


def _arrivals(per_ms: float, last_ms: float, cores: int, steady: bool, seed: int) -> list[tuple[float, int]]:
    """When requests come, and the stage that each enters at."""
    draw = random.Random(seed)

    def times() -> Iterator[float]:
        if not steady:
            now = draw.expovariate(per_ms)
            while now < last_ms:
                yield now
                now += draw.expovariate(per_ms)
            return
        pace = CLIENTS * cores / per_ms
        for _ in range(CLIENTS * cores):
            now = draw.random() * pace
            while now < last_ms:
                yield now + draw.gauss(0, 0.2)
                now += pace

    return sorted((now, draw.randrange(STAGES)) for now in times())


#: What has a core: reading (`stage` -1), a stage, or sending (`STAGES`), and for whom.
_Task = tuple[int, list[int]]


def _latencies(arrivals: Sequence[tuple[float, int]], rule: Rule, cores: int) -> list[float]:
    """Milliseconds from arrival to answer."""
    # Time, a number that settles ties, and what ends then; nothing for an arrival.
    events: list[tuple[float, int, _Task | None]] = [(t, i, None) for i, (t, _) in enumerate(arrivals)]
    heapq.heapify(events)
    protocol: list[_Task] = []
    aside: list[_Task] = []
    waiting: dict[int, list[int]] = {}
    free, number, found = cores, len(events), []

    def since(i: int) -> float:
        return arrivals[i][0]

    def first(now: float) -> int:
        """The stage whose line goes first."""
        if (urgency := rule.urgency) is not None:
            return min(waiting, key=lambda stage: min(urgency(since(i), stage) for i in waiting[stage]))
        oldest = min(waiting, key=lambda stage: since(waiting[stage][0]))
        return min(waiting) if now - since(waiting[oldest][0]) < rule.max_wait_ms else oldest

    def task(now: float) -> _Task | None:
        """What a free core does next."""
        if protocol:
            return protocol.pop(0)
        if not aside and not waiting:
            return None
        stage, batch = aside.pop(0) if aside else (first(now), [])
        line = waiting.get(stage, [])
        largest = max(1, rule.largest(len(batch) + sum(map(len, waiting.values())), cores))
        joining = sorted(line, key=since)[: max(0, largest - len(batch))]
        if joining and len(joining) == len(line):
            del waiting[stage]
        elif joining:
            waiting[stage] = [i for i in line if i not in joining]
        return stage, batch + joining

    while events:
        now, which, ended = heapq.heappop(events)
        if ended is None:
            protocol.append((-1, [which]))
        else:
            free += 1
            stage, batch = ended
            if stage == STAGES:
                found += [now - since(i) for i in batch]
            elif stage == STAGES - 1:
                protocol += [(STAGES, [i]) for i in batch]
            elif stage == -1 or rule.urgency is not None:
                for i in batch:
                    waiting.setdefault(arrivals[i][1] if stage == -1 else stage + 1, []).append(i)
            else:
                aside.append((stage + 1, batch))
        while free and (begun := task(now)) is not None:
            stage, batch = begun
            ms = PROTOCOL_MS
            if 0 <= stage < STAGES:
                ms = CALL_MS + ALONE[stage] + (len(batch) - 1) * TOGETHER[stage]
            free, number = free - 1, number + 1
            heapq.heappush(events, (now + ms, number, begun))
    return found


if __name__ == "__main__":
    main()
