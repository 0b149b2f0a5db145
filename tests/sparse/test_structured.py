from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import ConfigError, DensityError
from offramp.sparse.structured import StructuredPattern

many = settings(max_examples=150, derandomize=True, deadline=None)


@st.composite
def patterns(draw: st.DrawFn) -> StructuredPattern:
    n_left, n_right = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    g = math.gcd(n_left, n_right)
    d_out = draw(st.integers(1, g)) * (n_right // g)
    return StructuredPattern(n_left, n_right, d_out, draw(st.integers(-5, 2**40)))


@many
@given(patterns())
def test_every_degree_is_exact(p: StructuredPattern) -> None:
    mask = p.mask()
    assert (mask.sum(axis=0) == p.d_out).all()
    assert (mask.sum(axis=1) == p.d_in).all()
    assert mask.sum() == p.weights == p.density * p.n_left * p.n_right


@many
@given(patterns())
def test_rows_ascend_so_nothing_is_joined_twice(p: StructuredPattern) -> None:
    assert p.left_of.shape == (p.n_right, p.d_in)
    assert (np.diff(p.left_of, axis=1) > 0).all()


def test_a_seed_means_one_pattern() -> None:
    a, b, other = (StructuredPattern(40, 40, 9, seed) for seed in (3, 3, 4))
    assert a.digest == b.digest
    assert (a.left_of == b.left_of).all()
    assert a.digest != other.digest


def test_golden_draw() -> None:
    """What a seed means may never change: checkpoints hold only the recipe."""
    p = StructuredPattern(6, 4, 2, seed=7)
    assert p.left_of.tolist() == GOLDEN_JOINS
    assert p.digest == GOLDEN_DIGEST


GOLDEN_JOINS = [[0, 3, 5], [3, 4, 5], [1, 2, 4], [0, 1, 2]]
GOLDEN_DIGEST = "079a7231e275697f2a16f845175d7534a92827f2ba9da21cb30f914a73709062"


def test_every_join_is_about_equally_likely() -> None:
    """Over many seeds each place of the matrix is joined about ρ of the time."""
    draws = 2000
    total = sum(StructuredPattern(6, 6, 2, seed).mask().astype(int) for seed in range(draws))
    share = np.asarray(total) / draws
    assert share == pytest.approx(np.full((6, 6), 1 / 3), abs=5 * math.sqrt(2 / 9 / draws))


def test_small_patterns_all_turn_up() -> None:
    """There are six 2-regular bipartite graphs on 3+3 neurons, and 90 on 4+4; the draw favours none unduly."""
    assert len({StructuredPattern(3, 3, 2, seed).digest for seed in range(100)}) == 6
    counts = Counter(StructuredPattern(4, 4, 2, seed).left_of.tobytes() for seed in range(2000))
    assert len(counts) == 90
    assert max(counts.values()) < 4 * 2000 / 90


def test_the_papers_junctions() -> None:
    """800-40-40-10 with out-degrees 2, 9, 10 (PAPERS.md §1)."""
    layers = [StructuredPattern(*sides) for sides in ((800, 40, 2), (40, 40, 9), (40, 10, 10))]
    assert [p.d_in for p in layers] == [40, 9, 40]
    assert [p.density for p in layers] == [Fraction(1, 20), Fraction(9, 40), 1]
    assert sum(int(p.mask().sum()) for p in layers) == 2360


def test_numbers_that_cannot_be() -> None:
    with pytest.raises(DensityError, match=r"d_out=4 is not possible for a 8→12 layer: .* Possible: 3, 6, 9"):
        StructuredPattern(8, 12, 4)
    with pytest.raises(DensityError, match="1 to 2,147,483,647 neurons on either side, not 0→4"):
        StructuredPattern(0, 4, 1)
    with pytest.raises(ConfigError, match=r"seed of a structured pattern is a whole number, not 1.5"):
        StructuredPattern(8, 8, 4, seed=1.5)  # type: ignore[arg-type]
