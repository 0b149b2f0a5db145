"""Random fault schedules: all of one follows from its seed."""

import random
from dataclasses import dataclass
from typing import NamedTuple

import grpc
from liar import CODES, LIES, ODDITIES

POLICIES = (
    "server-only",
    "server-only",
    "split-0",
    "split-0-all",
    "split-1-all",
    "cascade",
    "i-splitee",
    "i-splitee,audit=0.2",
    "splitee-s,send_input=true",
    "dynamic-split",
    "random",
)
#: Those that ask the server whatever they have seen, so that a server which is back is asked again.
OFFLOADING = ("server-only", "split-0-all", "split-1-all")


class Fault(NamedTuple):
    """What happens so many milliseconds after the first input, for how long; `what` says more of it."""

    at_ms: int
    kind: str
    for_ms: int = 0
    what: object = None


@dataclass(frozen=True)
class Schedule:
    """A run and what happens meanwhile.

    Attributes:
        server: "process" is `offramp serve`; "liar" a server that lies.
        held: Stages that the edge holds, of four.
        measured: Whether costs are measured.
        pace_ms: Between two inputs.
        for_ms: So long inputs come; then all is mended, and they come until the server is asked again.
    """

    seed: int
    server: str
    policy: str
    under_way: int
    mode: str
    deadline_ms: int
    held: int
    measured: bool
    slowdown: int
    pace_ms: int
    for_ms: int
    failures: int
    reset_ms: int
    faults: tuple[Fault, ...]


def drawn(seed, *, kill=0.05):
    """The schedule of a seed.

    Args:
        seed: Says everything.
        kill: The probability that the server's process is killed, which takes a second to start again.
    """
    draw = random.Random(seed)
    server = draw.choice(("process", "process", "liar"))
    for_ms = draw.choice((150, 250, 400))
    held = draw.choice((4, 4, 4, 3, 2, 1))
    faults = [_fault(draw, server, for_ms) for _ in range(draw.choice((1, 2, 3, 5)))]
    if server == "process" and draw.random() < kill:
        faults.append(Fault(draw.randrange(for_ms), "kill"))
    return Schedule(
        seed=seed,
        server=server,
        policy=draw.choice([name for name in POLICIES if held > 1 or not name.startswith("split-1")]),
        under_way=draw.choice((1, 1, 4, 8)),
        mode=draw.choice(("float", "uint8")),
        deadline_ms=draw.choice((30, 60, 150, 400)),
        held=held,
        measured=draw.random() < 0.5,
        slowdown=draw.choice((1, 1, 200)),
        pace_ms=draw.choice((0, 3, 10)),
        for_ms=for_ms,
        failures=draw.choice((1, 3)),
        reset_ms=draw.choice((30, 100)),
        faults=tuple(sorted(faults, key=lambda fault: fault.at_ms)),
    )


def _fault(draw, server, for_ms):
    own = ("freeze",) if server == "process" else ("lie", "lie", "odd", "refuse", "late")
    kind = draw.choice(("cut", "stall", "slow", "half", "clock", *own))
    what = {
        "slow": lambda: draw.choice((1_000, 20_000, 300_000)),
        "half": lambda: draw.choice((0, 1, 9, 40, 100, 200)),
        "clock": lambda: draw.choice((-86_400, -1, 1, 86_400)),
        "lie": lambda: draw.choice(list(LIES)),
        "odd": lambda: draw.choice(list(ODDITIES)),
        "refuse": lambda: draw.choice(CODES).name,
        "late": lambda: draw.choice((5, 40, 200)),
    }.get(kind, lambda: None)()
    return Fault(draw.randrange(for_ms), kind, draw.choice((0, 20, 100, 300)), what)


def lie_of(fault):
    """What the liar is to answer with from a fault on."""
    return grpc.StatusCode[fault.what] if fault.kind == "refuse" else fault.what
