"""Random fault schedules, as many as there is time for: `make soak`.

`python tests/faults/soak.py --seed 17 --schedules 1` runs one again that went wrong. Every input must have one
result, in order: what the exit that it names would have said here, or marked; nothing may hang, and no thread and
no descriptor be left.
"""

import argparse
import faulthandler
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from schedules import drawn
from trial import trial
from world import World

#: Seconds after which a schedule hangs: it is thrown out with the stacks of all threads.
HANGS_S = 120.0


def main(argv=None):
    """Runs the command; gives 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the others follow")
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=15.0, help="no schedule begins after so many")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    asked = parser.parse_args(argv)
    seeds = range(asked.seed, asked.seed + asked.schedules)
    begun = time.monotonic()
    counts, done, wrong, latest_ms = Counter(), 0, 0, 0.0
    for seed, seen, late_ms, problems in ran(seeds, asked.jobs, begun + 60 * asked.minutes):
        counts.update(seen)
        done, latest_ms = done + 1, max(latest_ms, late_ms)
        if problems:
            wrong += 1
            print(f"{drawn(seed)}\n" + "".join(f"  {problem}\n" for problem in problems[:5]), end="")
            print(f"  again: python {Path(__file__).name} --seed {seed} --schedules 1", flush=True)
    took = time.monotonic() - begun
    print(f"{done} of {len(seeds)} fault schedules from seed {asked.seed}, {asked.jobs} at a time, {took:.0f} s")
    for what in ("inputs", "ok", "degraded", "failed"):
        print(f"  {counts[what]:7,} {what}")
    for kind, count in sorted(counts.items()):
        if kind.startswith("fault "):
            print(f"  {count:7,} times {kind.removeprefix('fault ')}")
    print(f"  {latest_ms:7,.0f} ms after its deadline: the latest of all results")
    print(f"{wrong} went wrong")
    return 1 if wrong or done < min(len(seeds), 1) else 0


def ran(seeds, jobs, until):
    """Of each schedule what `outcome` says, its seed first, as they are done."""
    context = multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    workers = [context.Process(target=work, args=(seeds[i::jobs], said, until)) for i in range(jobs)]
    for worker in workers:
        worker.start()
    for _ in workers:
        while (outcome := said.get()) is not None:
            yield outcome
    for worker in workers:
        worker.join()


def work(seeds, said, until):
    """One process's share."""
    seed = None
    try:
        with tempfile.TemporaryDirectory() as folder, World(folder) as world:
            trial(world, drawn(-1, kill=0))  # what is made once is there before anything is counted
            for seed in seeds:
                if time.monotonic() > until:
                    break
                faulthandler.dump_traceback_later(HANGS_S, exit=True)
                said.put((seed, *outcome(world, drawn(seed))))
                faulthandler.cancel_dump_traceback_later()
    except BaseException as error:
        said.put((seed, {}, 0.0, [f"{type(error).__name__}: {error}"]))
        raise
    finally:
        said.put(None)


def outcome(world, schedule):
    """What a schedule brought, counted; by how much its latest result was late; what is wrong."""
    results, problems = trial(world, schedule)
    counts = Counter(f"fault {fault.kind}" for fault in schedule.faults)
    counts.update(result.status for result in results)
    counts["inputs"] = len(results)
    late_ms = max((r.latency_ms.total for r in results), default=0.0) - schedule.deadline_ms
    return counts, late_ms, problems


if __name__ == "__main__":
    sys.exit(main())
