"""Policies that adapt, live: a real server behind emulated links, every fixed split beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from offramp.bundle.bundle import Bundle
from offramp.connect import Edge, connect
from offramp.errors import ConfigError, OfframpError
from offramp.policy.base import Policy
from offramp.policy.cost import MeasuredCost
from offramp.policy.dynamic_split import DynamicSplit
from offramp.policy.fixed import EdgeOnly, FixedSplit, ServerOnly
from offramp.policy.i_splitee import ISplitEE
from offramp.runtime.labelled import Labelled
from offramp.runtime.result import Result
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Channel, TailReply, TailRequest
from offramp.serving.link import LinkSettings
from offramp.serving.process import served

__all__ = ["ADAPTIVE", "LINKS", "LiveRow", "LiveRun", "LiveSettings", "policies", "run_from", "run_live"]

#: Rate, and delay one way: half of the round trip.
LINKS = (LinkSettings(1e6, 0.025), LinkSettings(10e6, 0.010), LinkSettings(100e6, 0.0025))
#: What an input may take, so that the slowest split over the slowest link is answered by the server.
_DEADLINE_MS = 60_000.0
#: Inputs that a policy runs before the next one does: all rows see what disturbs the machine.
_TURN = 20
#: All that differs between splits is latency, so it weighs five times what confidence does; and c = .25.
_MU, _C, _DISCOUNT = 5.0, 0.25, 0.99
ADAPTIVE = ("I-SplitEE", "I-SplitEE, discounted", "dynamic split")


@dataclass(frozen=True)
class LiveSettings:
    """How a live study runs.

    Attributes:
        images: Per link.
        changing: On the link that changes, half before and half after.
        slowdown: How many times slower than this machine the emulated edge is.
        links: The links, slowest first; the change is from the last to the first.
        seed: For the images' order, and for policies that draw.

    Raises:
        ConfigError: Numbers that cannot be.
    """

    images: int = 1000
    changing: int = 600
    slowdown: float = 30.0
    links: tuple[LinkSettings, ...] = LINKS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1 or self.changing < 2 or self.seed < 0:
            raise ConfigError(
                "a live study needs at least 1 image, 2 where the link changes, and a seed from 0 on"
            )
        if not 1 <= self.slowdown < float("inf"):
            raise ConfigError(f"--edge-slowdown must be at least 1 and finite, not {self.slowdown}")


@dataclass(frozen=True)
class LiveRow:
    """What one policy did.

    Attributes:
        name: The policy.
        latency_ms: Of every input, in order.
        right: Of every input, whether its answer was.
        splits: Of every input, the split chosen.
        cost: Mean measured cost.
    """

    name: str
    latency_ms: tuple[float, ...]
    right: tuple[bool, ...]
    splits: tuple[int, ...]
    cost: float

    @property
    def mean_ms(self) -> float:
        """Milliseconds per input."""
        return float(np.mean(self.latency_ms))

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(np.mean(self.right))


@dataclass(frozen=True)
class LiveRun:
    """Every policy over one link, or over one that changes.

    Attributes:
        link: The link in words.
        change_at: From which input on the link is another; None if it stays.
        rows: One per policy.
    """

    link: str
    change_at: int | None
    rows: tuple[LiveRow, ...]

    @property
    def fixed(self) -> tuple[LiveRow, ...]:
        """The fixed splits."""
        return tuple(row for row in self.rows if row.name not in ADAPTIVE)

    @property
    def best(self) -> LiveRow:
        """The fixed split with the lowest mean latency."""
        return min(self.fixed, key=lambda row: row.mean_ms)

    def row(self, name: str) -> LiveRow:
        """A policy's row."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def policies(bundle: Bundle, seed: int = 0) -> dict[str, Callable[[], Policy]]:
    """By name: sending the input, every split with its gate, the whole network on the edge; those that adapt.

    All gates are the bundle's own.
    """
    manifest = bundle.manifest
    learner = partial(ISplitEE, alpha=None, send_input=True, mu=_MU, c=_C, seed=seed)
    early = [k for k in range(manifest.last) if manifest.exits[k] is not None]
    return {
        "send the input": ServerOnly,
        **{f"split {k}": partial(FixedSplit, k) for k in early},
        "edge only": EdgeOnly,
        "I-SplitEE": learner,
        "I-SplitEE, discounted": partial(learner, discount=_DISCOUNT),
        "dynamic split": DynamicSplit,
    }


class _Switched:
    """The way to a server that leads over one link, and later over another."""

    def __init__(self, ways: Sequence[Channel]) -> None:
        self.ways, self.way = ways, 0

    def infer(self, request: TailRequest, timeout_s: float | None = None) -> TailReply:
        return self.ways[self.way].infer(request, timeout_s)

    def close(self) -> None:
        for way in self.ways:
            way.close()


def run_live(
    bundle: str | Path,
    test: Labelled,
    links: Sequence[LinkSettings],
    settings: LiveSettings,
    console: Console,
) -> LiveRun:
    """Runs the same images under every policy, by turns, over a link; or over two, half of them each.

    Args:
        bundle: The bundle's path.
        test: Images and labels.
        links: One link, or the one before and the one after the change.
        settings: How.
        console: Gets the progress.

    Raises:
        OfframpError: An input that was not answered as wanted.
    """
    if len(links) == 2:
        with served(bundle, links[0]) as first, served(bundle, links[1]) as second:
            return _run(bundle, test, links, [first, second], settings, console)
    with served(bundle, links[0]) as address:
        return _run(bundle, test, links, [address], settings, console)


def _run(
    path: str | Path,
    test: Labelled,
    links: Sequence[LinkSettings],
    addresses: Sequence[str],
    settings: LiveSettings,
    console: Console,
) -> LiveRun:
    bundle = Bundle.load(path)
    wanted = settings.images if len(links) == 1 else settings.changing
    images, labels = _drawn(test, wanted, settings.seed)
    change_at = None if len(links) == 1 else len(labels) // 2
    words = ", then ".join(link.words for link in links)
    stages = Stages(bundle, slowdown=settings.slowdown)
    found: dict[str, list[Result]] = {}
    edges: dict[str, tuple[Edge, _Switched]] = {}
    try:
        for name, make in policies(bundle, settings.seed).items():
            way = _Switched([connect(address, bundle) for address in addresses])
            edges[name] = _edge(stages, way, make()), way
            found[name] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(words, total=len(labels) * len(edges))
            for begin, end in _turns(len(labels), change_at):
                for name, (edge, way) in edges.items():
                    way.way = int(change_at is not None and begin >= change_at)
                    for i in range(begin, end):
                        found[name].append(edge.infer(images[i], index=i))
                    progress.advance(task, end - begin)
    finally:
        for edge, _ in edges.values():
            edge.close()
    return LiveRun(words, change_at, tuple(_row(name, results, labels) for name, results in found.items()))


def _edge(stages: Stages, way: Channel, policy: Policy) -> Edge:
    """An edge on sessions that all share: each would measure a pace of its own, which differ by a fifth."""
    try:
        return Edge(stages.bundle, way, policy, stages=stages, deadline_ms=_DEADLINE_MS, cost=MeasuredCost())
    except Exception:
        way.close()
        raise


def _turns(inputs: int, change_at: int | None) -> list[tuple[int, int]]:
    """Begin and end of each turn; none goes over the change."""
    borders = sorted({*range(0, inputs, _TURN), inputs, *(() if change_at is None else (change_at,))})
    return list(itertools.pairwise(borders))


def _drawn(test: Labelled, count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The first images, in an order of their own."""
    if isinstance(test.inputs, dict):
        raise ConfigError("a live study takes images: one input")
    first = test.first(count)
    assert not isinstance(first.inputs, dict)
    order = np.random.default_rng(seed).permutation(len(first.labels))
    return first.inputs[order], first.labels[order]


def _row(name: str, results: Sequence[Result], labels: np.ndarray[Any, Any]) -> LiveRow:
    for result in results:
        if result.status != "ok":
            raise OfframpError(f"{name}: input {result.index} is {result.status}: {result.error}")
    return LiveRow(
        name=name,
        latency_ms=tuple(round(r.latency_ms.total, 3) for r in results),
        right=tuple(bool(r.label == y) for r, y in zip(results, labels, strict=True)),
        splits=tuple(-2 if r.action is None else r.action.split for r in results),
        cost=float(np.mean([r.cost for r in results])),
    )


def run_from(values: Mapping[str, Any]) -> LiveRun:
    """A run from its JSON values."""
    rows = tuple(
        LiveRow(r["name"], tuple(r["latency_ms"]), tuple(r["right"]), tuple(r["splits"]), r["cost"])
        for r in values["rows"]
    )
    return LiveRun(values["link"], values["change_at"], rows)
