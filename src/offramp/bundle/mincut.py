"""The cut through a graph of operations that sends the fewest bytes, within limits on its head's work.

Without limits this is a minimum cut: an operation is a vertex, and so is a tensor, between its maker and its
readers, so that its bytes are paid once however many read it. Nothing may flow from tail to head, so the way
back from a reader to a maker has infinite capacity. A limit on work makes the problem a knapsack, so the limits
are kept by branching: the minimum cut without them bounds what any cut can save; where it breaks a limit, one
operation is put into the head, and in another branch into the tail.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx

__all__ = ["Found", "Operations", "smallest_cut"]


@dataclass(frozen=True)
class Operations:
    """A graph of operations in topological order; the last one makes the output, and belongs to the tail.

    Attributes:
        macs: Per operation.
        reads: Per operation, the tensors that it reads.
        makers: Per tensor, the operation that makes it; None for an input.
        bytes: Per tensor; None where it cannot cross.
    """

    macs: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    makers: tuple[int | None, ...]
    bytes: tuple[int | None, ...]

    def crossing(self, head: int) -> list[int]:
        """The tensors that cross from a head, a set of operations as bits, to the rest."""
        needed = {t for op, reads in enumerate(self.reads) if not head >> op & 1 for t in reads}
        return [t for t in sorted(needed) if (maker := self.makers[t]) is None or head >> maker & 1]

    def sent(self, head: int) -> int | None:
        """The bytes that cross; None if something cannot."""
        sizes = [self.bytes[t] for t in self.crossing(head)]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def work(self, head: int) -> int:
        """The multiply-accumulates of a set of operations."""
        return sum(self.macs[op] for op in self.heavy if head >> op & 1)

    @functools.cached_property
    def heavy(self) -> tuple[int, ...]:
        """The operations that multiply anything."""
        return tuple(op for op, macs in enumerate(self.macs) if macs)


class Found(NamedTuple):
    """A head as bits, and whether it is proven that no other sends less, or as much with less work."""

    head: int
    proven: bool


def smallest_cut(
    ops: Operations, *, inside: int = 0, more_than: int, at_most: int, searches: int = 500
) -> Found | None:
    """The head that sends the fewest bytes; of several, the one with the least work.

    Branch and bound, best bound first, over minimum cuts (networkx). What is found is optimal, unless it takes
    more than `searches` minimum cuts: then it is the best seen, and not worse than any prefix of the order.

    Args:
        ops: The graph.
        inside: Operations that the head must hold, as bits; closed: what they read is made inside.
        more_than: The head's work is more than this.
        at_most: And at most this.
        searches: The most minimum cuts.

    Returns:
        None if there is no such head.
    """
    search = _Search(ops, more_than, at_most)
    best = search.best_prefix(inside)
    waiting: list[tuple[int, int, int, int, int]] = []
    order = itertools.count()
    states = [(inside, 0)]
    while True:
        for head, tail in states:
            bound = search.bound(head, tail)
            if bound is None or (best is not None and bound[0] >= best[0]):
                continue
            if more_than < ops.work(bound[1]) <= at_most:
                best = bound
            else:
                heapq.heappush(waiting, (bound[0], next(order), bound[1], head, tail))
        if not waiting or (best is not None and waiting[0][0] >= best[0]):
            return None if best is None else Found(best[1], True)
        if search.count >= searches:
            return None if best is None else Found(best[1], False)
        _, _, found, head, tail = heapq.heappop(waiting)
        pivot = search.pivot(found, head, tail)
        states = []
        if pivot is not None:
            states = [(head | search.before[pivot], tail), (head, tail | search.after[pivot])]


class _Search:
    def __init__(self, ops: Operations, more_than: int, at_most: int) -> None:
        self.ops, self.more_than, self.at_most = ops, more_than, at_most
        self.count = 0
        n = len(ops.macs)
        #: Per operation as bits: it and all that it needs; it and all that need it.
        self.before, self.after = [1 << op for op in range(n)], [1 << op for op in range(n)]
        for op in range(n):
            for maker in self._makers(op):
                self.before[op] |= self.before[maker]
        for op in reversed(range(n)):
            for maker in self._makers(op):
                self.after[maker] |= self.after[op]
        # Bytes come first, work decides between equals; whole numbers keep both exact.
        self._unit = sum(ops.macs) + 1

    def best_prefix(self, inside: int) -> tuple[int, int] | None:
        """The best head that ends somewhere in the given order."""
        best, head = None, inside
        for op in range(len(self.ops.macs) - 1):
            head |= 1 << op
            work, sent = self.ops.work(head), None
            if self.more_than < work <= self.at_most:
                sent = self.ops.sent(head)
            if sent is not None and (best is None or sent * self._unit + work <= best[0]):
                best = sent * self._unit + work, head
        return best

    def bound(self, head: int, tail: int) -> tuple[int, int] | None:
        """The cheapest head with and without these, whatever its work is, and its value; None if there is none."""
        n = len(self.ops.macs)
        tail |= 1 << (n - 1)
        for op in self.ops.heavy:
            if not (head | tail) >> op & 1 and self.ops.work(head | self.before[op]) > self.at_most:
                tail |= self.after[op]
        most = self.ops.work(((1 << n) - 1) & ~tail)
        if head & tail or self.ops.work(head) > self.at_most or most <= self.more_than:
            return None
        self.count += 1
        graph = self._flow_graph(head, tail)
        try:
            value, (source_side, _) = nx.minimum_cut(graph, "source", "sink")
        except nx.NetworkXUnbounded:
            return None
        found = head | sum(1 << v for v in source_side if isinstance(v, int))
        return int(value) + self.ops.work(head), found

    def pivot(self, found: int, head: int, tail: int) -> int | None:
        """An operation whose side decides on the limit that a head breaks; None if none is left."""
        heavy = [op for op in self.ops.heavy if not (head | tail) >> op & 1]
        if self.ops.work(found) <= self.more_than:
            return heavy[0] if heavy else None
        return next((op for op in reversed(heavy) if found >> op & 1), None)

    def _flow_graph(self, head: int, tail: int) -> nx.DiGraph:
        """Operations as numbers, tensors as ("tensor", t); an edge without capacity has infinite capacity."""
        ops, graph = self.ops, nx.DiGraph()
        graph.add_nodes_from(["source", "sink"])

        def side(op: int | None) -> int | str:
            return "source" if op is None or head >> op & 1 else "sink" if tail >> op & 1 else op

        def join(a: object, b: object, capacity: int | None) -> None:
            if a in (b, "sink") or b == "source":
                return
            if graph.has_edge(a, b):
                old = graph[a][b].get("capacity")
                graph.remove_edge(a, b)
                capacity = None if old is None or capacity is None else old + capacity
            graph.add_edge(a, b, **({} if capacity is None else {"capacity": capacity}))

        for op, macs in enumerate(ops.macs):
            if side(op) == op and macs:
                join(op, "sink", macs)  # work in the head costs a little
            for t in ops.reads[op]:
                maker, size = side(ops.makers[t]), ops.bytes[t]
                if maker == side(op) != op:
                    continue
                join(("tensor", t), side(op), None)
                join(side(op), maker, None)
                if not graph.has_edge(maker, ("tensor", t)):
                    join(maker, ("tensor", t), None if size is None else size * self._unit)
        return graph

    def _makers(self, op: int) -> Iterable[int]:
        return (maker for t in self.ops.reads[op] if (maker := self.ops.makers[t]) is not None)
