from __future__ import annotations

import json
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest

from offramp.errors import ConfigError, DensityError
from offramp.sparse.block import BlockPattern
from offramp.sparse.clash_free import ClashFreePattern
from offramp.sparse.pattern import Pattern
from offramp.sparse.registry import PatternName, make_pattern, pattern_from_recipe
from offramp.sparse.structured import StructuredPattern

NAMES = get_args(PatternName)
SAMPLES = (BlockPattern(8, 8, 2, 4), StructuredPattern(8, 8, 4), ClashFreePattern(8, 8, 4, 4))


def test_a_fraction_is_met_exactly_with_as_many_blocks_as_it_needs() -> None:
    p = make_pattern("block", 40, 40, Fraction(9, 40))
    assert isinstance(p, BlockPattern)
    assert (p.joined, p.blocks, p.density) == (9, 40, Fraction(9, 40))
    rounded = make_pattern("block", 40, 40, 9 / 40)  # a float keeps to max_blocks
    assert rounded.density == Fraction(1, 4)
    assert make_pattern("block", 40, 40, 9 / 40, max_blocks=40).density == Fraction(9, 40)


def test_a_fraction_that_does_not_divide_is_met_by_the_nearest() -> None:
    assert make_pattern("block", 40, 40, Fraction(1, 3)).density == Fraction(3, 10)


@pytest.mark.parametrize("name", ["structured", "clash_free"])
def test_other_patterns_take_the_nearest_degree(name: str) -> None:
    for asked in (9 / 40, Fraction(9, 40), 0.23):
        p = make_pattern(name, 40, 40, asked)
        assert (p.density, p.d_out, p.d_in) == (Fraction(9, 40), 9, 9)
        assert (p.mask().sum(axis=0) == 9).all()


def test_clash_free_takes_as_many_memories_as_fit() -> None:
    p = make_pattern("clash_free", 48, 24, 0.5)
    assert isinstance(p, ClashFreePattern)
    assert (p.kind, p.dither, p.z, p.d_in) == (1, False, 24, 24)


def test_blocks_are_for_block_patterns() -> None:
    assert make_pattern("block", 40, 40, 0.25, blocks=20).recipe()["blocks"] == 20
    for name in ("structured", "clash_free"):
        with pytest.raises(ConfigError, match=f"blocks=4 is for block patterns; a {name} pattern has none"):
            make_pattern(name, 40, 40, 0.25, blocks=4)


@pytest.mark.parametrize("name", ["magic", "", "Block", None, ["block"], 3])
def test_unknown_names_list_the_known_ones(name: Any) -> None:
    with pytest.raises(ConfigError, match="known: block, structured, clash_free"):
        make_pattern(name, 8, 8, 0.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("density", [0, -0.5, 1.5, float("nan"), float("inf"), "much", None])
def test_no_density_at_all(name: str, density: Any) -> None:
    with pytest.raises(DensityError, match=r"above 0 and at most 1 .*, not "):
        make_pattern(name, 8, 8, density)


@pytest.mark.parametrize("name", NAMES)
def test_coprime_sides(name: str) -> None:
    with pytest.raises(DensityError, match=r"only 1 is possible. Possible: 1\. gcd\(7, 10\) = 1"):
        make_pattern(name, 7, 10, 0.5)
    assert make_pattern(name, 7, 10, 1).mask().all()


@pytest.mark.parametrize("name", NAMES)
def test_seeds_of_any_size_name_a_pattern(name: str) -> None:
    made = {s: make_pattern(name, 32, 32, 0.5, seed=s) for s in (-1, 0, 2**32, 10**30)}
    assert (made[0].left_of == made[2**32].left_of).all()  # a seed counts modulo 2^32
    assert (made[0].left_of != made[-1].left_of).any() or name == "block"


@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_recipes_go_round_as_json(sample: Pattern) -> None:
    again = pattern_from_recipe(json.loads(json.dumps(sample.recipe())))
    assert type(again) is type(sample)
    assert again == sample
    assert again.digest == sample.digest


@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_numpy_numbers_make_the_same_recipe(sample: Pattern) -> None:
    recipe = sample.recipe()
    numpys = {k: np.int64(v) if type(v) is int else v for k, v in recipe.items()}
    assert pattern_from_recipe(numpys).digest == sample.digest
    assert json.dumps(pattern_from_recipe(numpys).recipe()) == json.dumps(recipe)


HOSTILE = ["x", "8", -1, 2.5, 2.0, None, [1], {}, float("nan"), float("inf"), 10**30]


@pytest.mark.parametrize("wrong", HOSTILE, ids=repr)
@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_hostile_entries_are_refused_before_anything_is_drawn(sample: Pattern, wrong: Any) -> None:
    for entry in sample.recipe():
        if entry == "seed" and type(wrong) is int:
            continue  # any whole number is a seed
        with pytest.raises(ConfigError):
            pattern_from_recipe({**sample.recipe(), entry: wrong})


@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_zero_and_true_are_no_numbers_of_neurons(sample: Pattern) -> None:
    for entry in set(sample.recipe()) - {"pattern", "seed", "layout", "dither"}:
        for wrong in (0, True):
            with pytest.raises(ConfigError):
                pattern_from_recipe({**sample.recipe(), entry: wrong})


@pytest.mark.parametrize(
    "recipe", [None, 3, "block", [], [("pattern", "block")], {}, {1: 2}, {"pattern": ["block"]}]
)
def test_what_is_no_recipe(recipe: Any) -> None:
    with pytest.raises(ConfigError, match=r"recipe is a dict|unknown pattern"):
        pattern_from_recipe(recipe)


@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_missing_and_unknown_entries(sample: Pattern) -> None:
    with pytest.raises(ConfigError, match=f"not a {sample.name} pattern's recipe: .*n_left"):
        pattern_from_recipe({k: v for k, v in sample.recipe().items() if k != "n_left"})
    for extra in ("extra", "__class__", "left_of"):
        with pytest.raises(ConfigError, match=f"not a {sample.name} pattern's recipe: .*{extra}"):
            pattern_from_recipe({**sample.recipe(), extra: 1})


def test_a_recipe_is_not_changed_by_reading_it() -> None:
    recipe = SAMPLES[0].recipe()
    before = dict(recipe)
    pattern_from_recipe(recipe)
    assert recipe == before
