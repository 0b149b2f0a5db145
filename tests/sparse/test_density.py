from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from offramp.errors import ConfigError, DensityError
from offramp.sparse.density import BlockDensity, admissible_densities, density_from_d_out, nearest_density

many = settings(max_examples=150, derandomize=True, deadline=None)


@st.composite
def shapes(draw: st.DrawFn, most: int = 12) -> tuple[int, int]:
    common = draw(st.integers(1, most))
    return common * draw(st.integers(1, 8)), common * draw(st.integers(1, 8))


def brute_force_densities(n_left: int, n_right: int) -> list[Fraction]:
    """The definition: every d_out for which N_left·d_out connections share out evenly over N_right neurons."""
    return sorted(Fraction(d, n_right) for d in range(1, n_right + 1) if n_left * d % n_right == 0)


@many
@given(shapes())
def test_admissible_densities_are_those_of_the_definition(shape: tuple[int, int]) -> None:
    assert admissible_densities(*shape) == brute_force_densities(*shape)


@many
@given(shapes(), st.integers(1, 20))
def test_admissible_densities_below_a_block_count(shape: tuple[int, int], most: int) -> None:
    expected = [d for d in brute_force_densities(*shape) if d.denominator <= most]
    assert admissible_densities(*shape, max_blocks=most) == expected


@many
@given(shapes(), st.floats(0.005, 1), st.integers(1, 20))
def test_nearest_density_is_the_nearest(shape: tuple[int, int], asked: float, most: int) -> None:
    possible = [d for d in brute_force_densities(*shape) if d.denominator <= most]
    gap = min(abs(float(d) - asked) for d in possible)
    assume(not math.isclose(gap, asked / 4, rel_tol=1e-6))
    if possible == [1] and asked < 1:
        with pytest.raises(DensityError, match="only 1 is possible"):
            nearest_density(*shape, asked, max_blocks=most)
        return
    if gap > asked / 4:
        with pytest.raises(DensityError, match="more than a quarter off"):
            nearest_density(*shape, asked, max_blocks=most)
        return
    found = nearest_density(*shape, asked, max_blocks=most)
    assert abs(float(found.density) - asked) == pytest.approx(gap, abs=1e-12)
    assert found.blocks <= most
    assert found.density.denominator == found.blocks  # lowest terms: the fewest blocks for this density
    assert found.density in possible
    nearest = [d for d in possible if math.isclose(abs(float(d) - asked), gap, abs_tol=1e-13)]
    assert found.blocks == min(d.denominator for d in nearest)


@many
@given(shapes(), st.floats(0.005, 1))
def test_degrees_and_weights_go_with_the_density(shape: tuple[int, int], asked: float) -> None:
    try:
        found = nearest_density(*shape, asked)
    except DensityError:
        assume(False)
    n_left, n_right = shape
    assert found.d_out == found.density * n_right
    assert found.d_in == found.density * n_left
    assert found.weights == n_left * found.d_out == n_right * found.d_in


@many
@given(shapes(), st.data())
def test_blocks_are_taken_exactly(shape: tuple[int, int], data: st.DataObject) -> None:
    g = math.gcd(*shape)
    blocks = data.draw(st.sampled_from([n for n in range(1, g + 1) if g % n == 0]))
    joined = data.draw(st.integers(1, blocks))
    found = nearest_density(*shape, joined / blocks, blocks=blocks)
    assert (found.joined, found.blocks, found.exact) == (joined, blocks, True)


@many
@given(shapes(), st.data())
def test_a_d_out_is_always_met_exactly(shape: tuple[int, int], data: st.DataObject) -> None:
    n_left, n_right = shape
    d_out = data.draw(st.integers(1, n_right))
    if n_left * d_out % n_right:
        with pytest.raises(DensityError, match=f"d_out={d_out} is not possible .* Possible: "):
            density_from_d_out(n_left, n_right, d_out)
        return
    found = density_from_d_out(n_left, n_right, d_out)
    assert (found.d_out, found.d_in) == (d_out, n_left * d_out // n_right)
    assert found.exact


def test_of_two_equally_near_densities_the_one_with_fewer_blocks_is_taken() -> None:
    assert nearest_density(6, 6, 5 / 12).density == Fraction(1, 2)  # 1/3 and 1/2 are both 1/12 away


def test_whether_a_density_is_met_exactly() -> None:
    assert nearest_density(64, 64, 0.25).exact
    assert nearest_density(64, 64, Fraction(1, 4)).exact
    found = nearest_density(64, 64, 0.3)
    assert not found.exact
    assert (found.density, found.asked) == (Fraction(5, 16), 0.3)


def test_the_papers_network() -> None:
    """800-40-40-10 with out-degrees 2, 9, 10 (Capogrosso et al. 2024, PAPERS.md §1)."""
    sizes, d_outs = (800, 40, 40, 10), (2, 9, 10)
    layers = [density_from_d_out(*sizes[i : i + 2], d) for i, d in enumerate(d_outs)]
    assert [layer.d_in for layer in layers] == [40, 9, 40]
    assert [float(layer.density) for layer in layers] == [0.05, 0.225, 1.0]
    assert sum(layer.weights for layer in layers) == 2360


@pytest.mark.parametrize("density", [0, -0.25, 1.0001, math.nan, math.inf, "much", None])
def test_no_density_at_all_is_refused(density: float) -> None:
    with pytest.raises(DensityError, match="above 0 and at most 1"):
        nearest_density(8, 8, density)


def test_coprime_sides_admit_only_a_density_of_one() -> None:
    with pytest.raises(DensityError, match=r"Possible: 1\. gcd\(7, 10\) = 1"):
        nearest_density(7, 10, 0.25)
    assert nearest_density(7, 10, 1).density == 1


def test_more_than_a_quarter_off_lists_what_is_possible() -> None:
    with pytest.raises(DensityError, match=r"nearest is 1/4.*Possible: 1/4, 1/2, 3/4, 1\."):
        nearest_density(4, 4, 0.1)


def test_a_long_list_shows_both_ends() -> None:
    with pytest.raises(DensityError, match=r"Possible: 1/64, 1/32, .*…, 31/32, 63/64, 1\."):
        nearest_density(64, 64, 0.001, max_blocks=64)


@pytest.mark.parametrize("blocks", [3, 0, -4, 2.0])
def test_blocks_that_do_not_divide_list_those_that_do(blocks: int) -> None:
    with pytest.raises(DensityError, match=r"does not divide gcd\(8, 12\) = 4; possible: 1, 2, 4"):
        nearest_density(8, 12, 0.5, blocks=blocks)


def test_blocks_too_coarse_for_the_density() -> None:
    with pytest.raises(DensityError, match=r"with 2 blocks.*Possible: 1/2, 1\."):
        nearest_density(64, 64, 0.25, blocks=2)


@pytest.mark.parametrize("most", [0, -1, 1.5])
def test_max_blocks_that_cannot_be(most: int) -> None:
    with pytest.raises(DensityError, match="max_blocks"):
        nearest_density(8, 8, 0.5, max_blocks=most)


@pytest.mark.parametrize("d_out", [0, -3, 13, 1.0, True])
def test_a_d_out_out_of_range(d_out: int) -> None:
    with pytest.raises(DensityError, match=r"Possible: 3, 6, 9, 12"):
        density_from_d_out(8, 12, d_out)


@pytest.mark.parametrize(("n_left", "n_right"), [(0, 4), (4, 0), (-4, 4)])
def test_a_side_without_neurons(n_left: int, n_right: int) -> None:
    for call in (
        lambda: nearest_density(n_left, n_right, 0.5),
        lambda: admissible_densities(n_left, n_right),
        lambda: density_from_d_out(n_left, n_right, 1),
    ):
        with pytest.raises(DensityError, match="neurons on both sides"):
            call()


def test_density_errors_are_config_and_value_errors() -> None:
    assert issubclass(DensityError, ConfigError)
    assert issubclass(DensityError, ValueError)


def test_a_block_density_in_lowest_terms() -> None:
    assert BlockDensity(64, 32, 2, 8, 0.25).density == Fraction(1, 4)
