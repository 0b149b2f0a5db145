from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import ConfigError, DensityError
from offramp.sparse.block import BlockPattern, Layout
from offramp.sparse.density import density_from_d_out
from offramp.sparse.registry import make_pattern, pattern_from_recipe

many = settings(max_examples=150, derandomize=True, deadline=None)


@st.composite
def patterns(draw: st.DrawFn) -> BlockPattern:
    blocks = draw(st.integers(1, 12))
    return BlockPattern(
        n_left=blocks * draw(st.integers(1, 6)),
        n_right=blocks * draw(st.integers(1, 6)),
        joined=draw(st.integers(1, blocks)),
        blocks=blocks,
        layout=draw(st.sampled_from(["contiguous", "strided"])),
        seed=draw(st.integers(0, 2**40)),
    )


@many
@given(patterns())
def test_every_degree_is_exact(p: BlockPattern) -> None:
    mask = p.mask()
    assert mask.shape == (p.n_right, p.n_left)
    assert (mask.sum(axis=0) == p.d_out).all()
    assert (mask.sum(axis=1) == p.d_in).all()
    assert mask.sum() == p.weights == p.density * p.n_left * p.n_right


@many
@given(patterns())
def test_left_blocks_are_a_regular_bipartite_graph(p: BlockPattern) -> None:
    assert p.left_blocks.shape == (p.blocks, p.joined)
    assert (np.diff(p.left_blocks, axis=1) > 0).all()  # ascending, so none twice
    assert (np.bincount(p.left_blocks.ravel(), minlength=p.blocks) == p.joined).all()


@many
@given(patterns())
def test_blocks_part_the_neurons(p: BlockPattern) -> None:
    for side, n in (("left", p.n_left), ("right", p.n_right)):
        neurons = p.neurons(side)
        assert neurons.shape == (p.blocks, n // p.blocks)
        assert sorted(neurons.ravel()) == list(range(n))


@many
@given(patterns())
def test_a_recipe_rebuilds_the_pattern(p: BlockPattern) -> None:
    again = pattern_from_recipe(json.loads(json.dumps(p.recipe())))
    assert again == p
    assert again.digest == p.digest
    assert (again.mask() == p.mask()).all()


@many
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_a_d_out_becomes_a_pattern_with_that_d_out(m: int, n: int, data: st.DataObject) -> None:
    g = math.gcd(m, n)
    d_out = data.draw(st.integers(1, g)) * (n // g)
    p = make_pattern("block", m, n, density_from_d_out(m, n, d_out).density)
    assert (p.mask().sum(axis=0) == d_out).all()


def test_a_seed_means_one_pattern() -> None:
    same = [BlockPattern(32, 32, 3, 8, seed=5) for _ in range(2)]
    assert same[0].digest == same[1].digest
    assert (same[0].left_blocks == same[1].left_blocks).all()


@pytest.mark.parametrize(("joined", "blocks"), [(2, 8), (3, 8), (7, 16)])
def test_other_seeds_join_other_blocks_where_there_is_a_choice(joined: int, blocks: int) -> None:
    digests = {BlockPattern(32, 32, joined, blocks, seed=s).digest for s in range(10)}
    assert len(digests) >= 9


@pytest.mark.parametrize("joined", [1, 8])
def test_without_a_choice_the_seed_changes_nothing(joined: int) -> None:
    a, b = (BlockPattern(32, 32, joined, 8, seed=s) for s in (0, 1))
    assert (a.left_blocks == b.left_blocks).all()
    assert a.digest == b.digest


def test_the_digest_tells_patterns_apart() -> None:
    base = BlockPattern(32, 32, 2, 8)
    others = [
        BlockPattern(64, 32, 2, 8),
        BlockPattern(32, 64, 2, 8),
        BlockPattern(32, 32, 3, 8),
        BlockPattern(32, 32, 2, 4),
        BlockPattern(32, 32, 2, 8, "strided"),
        BlockPattern(32, 32, 2, 8, seed=1),
    ]
    assert len({p.digest for p in (base, *others)}) == len(others) + 1


def test_golden_pattern() -> None:
    """What a seed means may never change: checkpoints hold only the recipe."""
    p = BlockPattern(16, 24, 3, 8, seed=7)
    assert p.left_blocks.tolist() == GOLDEN_BLOCKS
    assert p.digest == GOLDEN_DIGEST


GOLDEN_BLOCKS = [[1, 3, 4], [2, 4, 7], [0, 2, 5], [1, 4, 7], [1, 3, 6], [0, 3, 6], [0, 5, 6], [2, 5, 7]]
GOLDEN_DIGEST = "b55590bb51c61ecf29b5825b9dea51b188b65488550e5ca2ccabe23b7f1a5359"


def test_one_joined_block_is_block_diagonal() -> None:
    assert BlockPattern(8, 8, 1, 4).left_blocks.tolist() == [[0], [1], [2], [3]]
    expected = np.kron(np.eye(2), np.ones((3, 2))).astype(bool)
    assert (BlockPattern(4, 6, 1, 2).mask() == expected).all()


def test_strided_blocks_take_every_nth_neuron() -> None:
    p = BlockPattern(8, 4, 1, 4, layout="strided")
    assert p.neurons("left").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert p.neurons("right").tolist() == [[0], [1], [2], [3]]
    joined = [[r, c] for r, c in zip(*np.nonzero(p.mask()), strict=True)]
    assert joined == [[0, 0], [0, 4], [1, 1], [1, 5], [2, 2], [2, 6], [3, 3], [3, 7]]


def test_alternating_layouts_mix_everything() -> None:
    """Two block-diagonal layers reach every output from every input only if their layouts differ."""

    def reach(*layouts: Layout) -> int:
        masks = [BlockPattern(16, 16, 1, 4, layout).mask().astype(int) for layout in layouts]
        return int(((masks[1] @ masks[0]) > 0).sum())

    assert reach("contiguous", "strided") == 256
    assert reach("contiguous", "contiguous") == 64


def test_numbers_that_cannot_be() -> None:
    with pytest.raises(DensityError, match="3 blocks do not divide both 8 and 6"):
        BlockPattern(8, 6, 1, 3)
    with pytest.raises(DensityError, match="0 blocks"):
        BlockPattern(8, 8, 1, 0)
    for joined in (0, 5):
        with pytest.raises(DensityError, match=f"1 to 4 left blocks, not {joined}"):
            BlockPattern(8, 8, joined, 4)
    with pytest.raises(ConfigError, match="contiguous, strided, not 'zigzag'"):
        BlockPattern(8, 8, 1, 4, "zigzag")  # type: ignore[arg-type]


def test_unknown_patterns_and_recipes() -> None:
    with pytest.raises(ConfigError, match="unknown pattern 'magic'; known: block, structured, clash_free"):
        make_pattern("magic", 8, 8, 0.5)
    recipe = BlockPattern(8, 8, 1, 2).recipe()
    with pytest.raises(ConfigError, match="unknown pattern 'magic'"):
        pattern_from_recipe({**recipe, "pattern": "magic"})
    with pytest.raises(ConfigError, match="recipe"):
        pattern_from_recipe({**recipe, "extra": 1})
    with pytest.raises(ConfigError, match="recipe"):
        pattern_from_recipe({k: v for k, v in recipe.items() if k != "blocks"})
    with pytest.raises(DensityError):
        pattern_from_recipe({**recipe, "blocks": 3})


def test_patterns_are_picklable() -> None:
    p = BlockPattern(32, 32, 2, 8, seed=3)
    again = pickle.loads(pickle.dumps(p))
    assert again == p
    assert again.digest == p.digest
