"""The smallest cut against every cut there is, on small random graphs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.bundle.mincut import Operations, smallest_cut


def heads(ops: Operations) -> list[int]:
    """Every set of operations that needs nothing from outside it, without the last one."""
    found = []
    for head in range(1 << (len(ops.macs) - 1)):
        inside = [op for op in range(len(ops.macs)) if head >> op & 1]
        makers = {ops.makers[t] for op in inside for t in ops.reads[op]} - {None}
        if all(head >> maker & 1 for maker in makers):
            found.append(head)
    return found


def sent(ops: Operations, head: int) -> int | None:
    """Counted tensor by tensor."""
    total = 0
    for t, (maker, size) in enumerate(zip(ops.makers, ops.bytes, strict=True)):
        read = any(t in reads and not head >> op & 1 for op, reads in enumerate(ops.reads))
        if read and (maker is None or head >> maker & 1):
            if size is None:
                return None
            total += size
    return total


@st.composite
def graphs(draw: st.DrawFn) -> Operations:
    """Up to 9 operations with up to two outputs each, up to two inputs; everything leads to the last one."""
    n = draw(st.integers(2, 9))
    makers: list[int | None] = [None] * draw(st.integers(1, 2))
    reads: list[tuple[int, ...]] = []
    for op in range(n - 1):
        some = draw(st.sets(st.integers(0, len(makers) - 1), min_size=1, max_size=3))
        reads.append(tuple(sorted(some)))
        makers += [op] * draw(st.integers(1, 2))
    used = {t for some in reads for t in some}
    reads.append(tuple(t for t in range(len(makers)) if t not in used) or (len(makers) - 1,))
    # Few sizes, so that there are equals; now and then a tensor that cannot cross.
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 8, None]), min_size=len(makers), max_size=len(makers)))
    macs = draw(st.lists(st.sampled_from([0, 0, 1, 2, 7]), min_size=n, max_size=n))
    return Operations(tuple(macs), tuple(reads), tuple(makers), tuple(sizes))


@settings(max_examples=150, deadline=None)
@given(ops=graphs(), limits=st.tuples(st.integers(0, 12), st.integers(1, 30)), data=st.data())
def test_nothing_sends_less(ops: Operations, limits: tuple[int, int], data: st.DataObject) -> None:
    every = heads(ops)
    inside = data.draw(st.sampled_from(every))
    more_than, at_most = limits[0], limits[0] + limits[1]
    costs = {
        head: (size, ops.work(head))
        for head in every
        if head & inside == inside and more_than < ops.work(head) <= at_most
        and (size := sent(ops, head)) is not None
    }  # fmt: skip
    found = smallest_cut(ops, inside=inside, more_than=more_than, at_most=at_most)
    if not costs:
        assert found is None
        return
    assert found is not None
    assert found.proven
    assert costs[found.head] == min(costs.values())


@settings(max_examples=50, deadline=None)
@given(ops=graphs())
def test_what_crosses_is_counted_once(ops: Operations) -> None:
    for head in heads(ops):
        assert ops.sent(head) == sent(ops, head)


def wide(branches: int) -> Operations:
    """One operation, then branches side by side of two operations each, that one operation joins."""
    macs, reads, makers, sizes = [1], [(0,)], [None, 0], [100, 4 * branches]
    for _ in range(branches):
        first = len(macs)
        reads += [(1,), (len(makers),)]
        makers += [first, first + 1]
        macs += [3, 5]
        sizes += [7, 1]
    reads.append(tuple(range(3, len(makers), 2)))
    return Operations((*macs, 1), tuple(reads), tuple(makers), tuple(sizes))


def test_out_of_searches_the_best_seen_is_said_to_be_no_more() -> None:
    ops = wide(8)
    limit = 1 + 8 * 8 // 2
    known = smallest_cut(ops, more_than=0, at_most=limit)
    assert known is not None
    assert known.proven
    rushed = smallest_cut(ops, more_than=0, at_most=limit, searches=1)
    assert rushed is not None
    assert not rushed.proven
    assert 0 < ops.work(rushed.head) <= limit
    got, best = ops.sent(rushed.head), ops.sent(known.head)
    assert got is not None
    assert best is not None
    assert got >= best


@pytest.mark.parametrize(("more_than", "at_most"), [(0, 0), (5, 4), (1000, 2000)])
def test_limits_that_nothing_fits(more_than: int, at_most: int) -> None:
    assert smallest_cut(wide(2), more_than=more_than, at_most=at_most) is None
