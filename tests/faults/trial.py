"""One run of an edge by a schedule, and whether what must hold does."""

import contextlib
import random
import threading
import time

from breakable import Breakable
from schedules import OFFLOADING, lie_of
from world import PATIENCE_S, Leaks, inputs, wrong

from offramp.bundle.bundle import Bundle
from offramp.policy.cost import MeasuredCost
from offramp.policy.registry import make_policy, parse_policy
from offramp.runtime.breaker import CircuitBreaker
from offramp.runtime.edge import Edge
from offramp.serving.channel import GrpcChannel


def trial(world, schedule):
    """Runs a schedule; gives what was seen of it, and what is wrong, in words."""
    bundle = Bundle.load(world.copies[schedule.held].path)
    bundle.tuning = bundle.tuning.model_copy(update={"mode": schedule.mode})
    name, options = parse_policy(schedule.policy)
    policy = make_policy(name, seed=schedule.seed, **options)
    server = world.served if schedule.server == "process" else world.liar
    found, sent, results = [], [], []
    draw = random.Random(schedule.seed)
    with Leaks(world.served) as leaks:
        with (
            Breakable(("127.0.0.1", server.port)) as proxy,
            Edge(
                bundle,
                GrpcChannel(proxy.address),
                policy,
                deadline_ms=schedule.deadline_ms,
                cost=MeasuredCost() if schedule.measured else None,
                slowdown=schedule.slowdown,
                breaker=CircuitBreaker(failures=schedule.failures, reset_s=schedule.reset_ms / 1e3),
            ) as edge,
            faults(world, proxy, schedule) as mended,
        ):
            begun = time.monotonic()

            def source():
                for x in inputs(draw):
                    now = time.monotonic() - begun
                    if now > schedule.for_ms / 1e3 and mended(results):
                        return
                    if now > PATIENCE_S:
                        found.append("the server is there, and was never asked again")
                        return
                    sent.append(x)
                    yield x
                    time.sleep(schedule.pace_ms / 1e3)

            for result in edge.run(source(), under_way=schedule.under_way):
                results.append(result)  # the source looks at what came of those before
        if left := leaks.found():
            found.append(left)
    if [r.index for r in results] != list(range(len(sent))):
        found.append(f"{len(sent)} inputs gave {[r.index for r in results]}")
    for x, result in zip(sent, results, strict=False):
        if problem := wrong(world, bundle, x, result, alpha=policy.alpha, deadline_ms=schedule.deadline_ms):
            found.append(f"input {result.index}: {problem}")
    return results, found


@contextlib.contextmanager
def faults(world, proxy, schedule):
    """Lets a schedule's faults happen; gives what mends everything, and says whether all is as before."""
    helpers, marks = [], []
    over, one_at_a_time = threading.Event(), threading.Lock()

    def restart():
        world.served.start()
        proxy.to = ("127.0.0.1", world.served.port)

    def happen(fault):
        with one_at_a_time:
            if not over.is_set():
                begin(fault)

    def begin(fault):
        seconds = fault.for_ms / 1e3
        match fault.kind:
            case "cut":
                proxy.cut(seconds)
            case "stall":
                proxy.stall(seconds)
            case "slow":
                proxy.slow(fault.what, seconds)
            case "half":
                proxy.half(fault.what)
            case "lose":
                proxy.lose()
            case "clock":
                world.wall.jump += fault.what
            case "lie" | "odd" | "refuse":
                world.liar.lie = lie_of(fault)
                proxy.later(seconds, setattr, world.liar, "lie", None)
            case "late":
                world.liar.wait_s = fault.what / 1e3
                proxy.later(seconds, setattr, world.liar, "wait_s", 0.0)
            case "freeze":
                if world.served.process is not None:
                    world.served.freeze()
                    proxy.later(seconds, thaw)
            case "kill":
                world.served.kill()
                helpers.append(threading.Thread(target=restart))
                helpers[-1].start()

    def thaw():
        if world.served.process is not None:
            world.served.thaw()

    def calm():
        with one_at_a_time:
            over.set()
            thaw()
            world.liar.lie, world.liar.wait_s = None, 0.0
        for helper in helpers:
            helper.join(PATIENCE_S)

    def mended(results):
        if not marks:
            calm()
            proxy.mend()
            marks.append(len(results))
        if schedule.policy not in OFFLOADING:
            return True
        return any(r.where == "server" for r in results[marks[0] :])

    for fault in schedule.faults:
        proxy.later(fault.at_ms / 1e3, happen, fault)
    try:
        yield mended
    finally:
        calm()
        world.wall.jump = 0.0
