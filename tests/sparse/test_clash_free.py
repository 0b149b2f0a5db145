from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from offramp.errors import ConfigError, DensityError
from offramp.sparse.clash_free import ClashFreePattern
from offramp.sparse.registry import make_pattern

many = settings(max_examples=200, derandomize=True, deadline=None)


@st.composite
def patterns(draw: st.DrawFn) -> ClashFreePattern:
    n_left, n_right = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    g = math.gcd(n_left, n_right)
    return ClashFreePattern(
        n_left,
        n_right,
        d_out=draw(st.integers(1, g)) * (n_right // g),
        z=draw(st.sampled_from([z for z in range(1, n_left + 1) if n_left % z == 0])),
        kind=draw(st.integers(1, 3)),
        dither=draw(st.booleans()),
        seed=draw(st.integers(0, 2**40)),
    )


@many
@given(patterns())
def test_every_degree_is_exact_and_no_connection_repeats(p: ClashFreePattern) -> None:
    mask = p.mask()
    assert (mask.sum(axis=0) == p.d_out).all()
    assert (mask.sum(axis=1) == p.d_in).all()
    assert (np.diff(p.left_of, axis=1) > 0).all()


@many
@given(patterns())
def test_no_cycle_reads_a_memory_twice_and_every_sweep_reads_everything(p: ClashFreePattern) -> None:
    assert p.reads.shape == (p.d_out, p.depth, p.z)
    for sweep in p.reads:
        assert sorted(sweep.ravel()) == list(range(p.n_left))
        for cycle in sweep:
            assert sorted(cycle % p.z) == list(range(p.z))


@many
@given(patterns())
def test_kinds_2_and_3_count_addresses_up(p: ClashFreePattern) -> None:
    assume(p.kind > 1)
    steps = np.diff(p.reads // p.z, axis=1) % p.depth
    assert (steps == 1 % p.depth).all()
    if p.kind == 3:
        assert (p.reads == p.reads[0]).all()


def test_without_dither_memories_are_read_in_order() -> None:
    for kind in (1, 2, 3):
        assert (ClashFreePattern(24, 12, 2, 6, kind).reads % 6 == np.arange(6)).all()


def test_dither_changes_the_order_of_memories_once_per_sweep() -> None:
    reads = ClashFreePattern(24, 24, 8, 6, kind=1, dither=True).reads % 6
    assert (reads == reads[:, :1]).all()
    assert len({tuple(sweep[0]) for sweep in reads}) > 1
    same = ClashFreePattern(24, 24, 8, 6, kind=3, dither=True).reads % 6
    assert len({tuple(sweep[0]) for sweep in same}) == 1


def brute_force(p: ClashFreePattern) -> int:
    """How many sets of joins there are, by listing every order of memories and addresses of every sweep."""

    def sweeps() -> set[tuple[frozenset[int], ...]]:
        ups = [tuple((s + i) % p.depth for i in range(p.depth)) for s in range(p.depth)]
        orders = list(itertools.permutations(range(p.depth))) if p.kind == 1 else ups
        found = set()
        for memories in itertools.permutations(range(p.z)) if p.dither else [tuple(range(p.z))]:
            for columns in itertools.product(orders, repeat=p.z):
                flat = [columns[i][t] * p.z + memories[i] for t in range(p.depth) for i in range(p.z)]
                found.add(tuple(frozenset(flat[a : a + p.d_in]) for a in range(0, p.n_left, p.d_in)))
        return found

    return len(sweeps()) ** (1 if p.kind == 3 else p.d_out)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_all_listed_choices_are_drawn(kind: int) -> None:
    """Where d_in = z without dither, every cycle is one right neuron: (D!)^z or D^z sweeps are all different."""
    p = ClashFreePattern(4, 4, 2, 2, kind)
    assert p.choices == brute_force(p) == {1: 16, 2: 16, 3: 4}[kind]
    assert len({replace(p, seed=s).left_of.tobytes() for s in range(300)}) == p.choices


@pytest.mark.parametrize(("kind", "expected"), [(1, 60_466_176), (2, 236_196), (3, 486)])
def test_the_papers_numbers_of_choices(kind: int, expected: int) -> None:
    """p = n = 12, d_out = 2, z = 4 with dither (PAPERS.md §2); one sweep checked by listing it."""
    p = ClashFreePattern(12, 12, 2, 4, kind, dither=True)
    assert p.choices == expected
    if kind > 1:
        assert brute_force(p) == expected


def test_dither_adds_choices_only_where_it_changes_who_is_joined() -> None:
    assert ClashFreePattern(12, 12, 4, 4, 3).choices == ClashFreePattern(12, 12, 4, 4, 3, dither=True).choices
    assert ClashFreePattern(12, 12, 3, 4, 1, dither=True).choices is None  # 3 and 4 do not divide


@pytest.mark.parametrize(("kind", "dither"), [(1, False), (2, False), (3, False), (1, True), (2, True), (3, True)])
def test_golden_draws(kind: int, dither: bool) -> None:
    """What a seed means may never change: checkpoints hold only the recipe."""
    p = ClashFreePattern(12, 8, 4, 4, kind, dither, seed=7)  # d_in is 6: right neurons span cycles
    spanning = ClashFreePattern(20, 20, 8, 4, kind, dither, seed=7)  # d_in does not divide 20
    assert (p.digest[:16], spanning.digest[:16]) == GOLDEN[kind, dither]


GOLDEN = {
    (1, False): ("fac639cf5b0546f8", "78978a9e9686b2cf"),
    (1, True): ("cd0c1265ebc9e203", "1b3350c96ca34d05"),
    (2, False): ("2f82629f21306d58", "09d56a64f6616cd3"),
    (2, True): ("fd8583c7f76eb738", "eb3396259237c588"),
    (3, False): ("1cea4b666b475b21", "fad5b74d481ecda5"),
    (3, True): ("b3cdc69464176cfd", "55f3ca138fa93d9d"),
}


def test_many_memories_find_a_draw_too() -> None:
    """All 160 memories at once would come out without a repetition once in 10^15 draws."""
    p = make_pattern("clash_free", 800, 40, 0.4)
    assert isinstance(p, ClashFreePattern)
    assert (p.z, p.n_left % p.d_in) == (160, 160)
    assert (p.mask().sum(axis=1) == 320).all()


def test_no_draw_is_an_error_that_tells_the_way_out() -> None:
    """Memories of one neuron each, in any order: hardly any order leaves out the few that were just read."""
    with pytest.raises(DensityError, match=r"kind 1 found for 40→40 .* d_out=39: .*Take kind 3, or a d_out whose"):
        _ = ClashFreePattern(40, 40, 39, 40, dither=True).reads
    assert ClashFreePattern(40, 40, 39, 40, kind=3, dither=True).mask().sum() == 39 * 40


def test_numbers_that_cannot_be() -> None:
    with pytest.raises(
        DensityError, match="z=5 memories do not divide 12 left neurons; possible: 1, 2, 3, 4, 6, 12"
    ):
        ClashFreePattern(12, 12, 2, 5)
    with pytest.raises(DensityError, match="z=0 memories"):
        ClashFreePattern(12, 12, 2, 0)
    with pytest.raises(DensityError, match=r"d_out=2 is not possible .* Possible: 3, 6, 9, 12"):
        ClashFreePattern(8, 12, 2, 4)
    for kind in (0, 4, -1):
        with pytest.raises(ConfigError, match=f"of kind 1, 2 or 3, not {kind}"):
            ClashFreePattern(12, 12, 2, 4, kind)
    with pytest.raises(ConfigError, match="dither of a clash_free pattern is True or False, not 'no'"):
        ClashFreePattern(12, 12, 2, 4, dither="no")  # type: ignore[arg-type]


def test_a_million_neurons_list_their_divisors_at_once() -> None:
    with pytest.raises(DensityError, match=r"possible: 1, 2, 4, .*…, .*1000000000$"):
        ClashFreePattern(10**9, 10**9, 1, 7)
