from __future__ import annotations

import itertools
import json
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offramp.errors import ConfigError, DensityError
from offramp.sparse.budget import GROWTH, Share, block_densities, share_budget
from offramp.sparse.config import SparsityConfig
from offramp.sparse.density import admissible_densities
from offramp.sparse.layers import SparseLinear
from offramp.sparse.sparsify import sparsify_

many = settings(max_examples=80, derandomize=True, deadline=None)


@st.composite
def layers(draw: st.DrawFn) -> list[Share]:
    found = []
    for i in range(draw(st.integers(1, 5))):
        g = draw(st.sampled_from([1, 2, 4, 6, 16, 40]))
        m, n = g * draw(st.integers(1, 5)), g * draw(st.integers(1, 5))
        uses = draw(st.integers(1, 9))
        found.append(Share(f"l{i}", m * n * uses, tuple(admissible_densities(m, n, max_blocks=16))))
    return found


def cost(shares: list[Share], densities: list[Fraction]) -> int:
    total = sum(s.cost * d for s, d in zip(shares, densities, strict=True))
    assert total == int(total)  # whole numbers of weights
    return int(total)


def least(shares: list[Share]) -> int:
    return cost(shares, [s.densities[0] for s in shares])


def by_the_rule(shares: list[Share], budget: int) -> list[Fraction]:
    """The rule's densities without what rounding left, by trying every t at which something changes."""
    growth = [1 + Fraction((GROWTH - 1) * i, max(1, len(shares) - 1)) for i in range(len(shares))]
    best = [s.densities[0] for s in shares]
    for t in sorted({d / g for s, g in zip(shares, growth, strict=True) for d in s.densities}):
        tried = [
            max([s.densities[0], *(d for d in s.densities if d <= t * g)])
            for s, g in zip(shares, growth, strict=True)
        ]
        if cost(shares, tried) <= budget:
            best = tried
    return best


@many
@given(layers(), st.floats(0, 1.2))
def test_the_budget_is_kept_and_nothing_more_could_be_paid(shares: list[Share], part: float) -> None:
    most = sum(s.cost for s in shares)
    budget = least(shares) + int(part * (most - least(shares)))
    densities = share_budget(shares, budget)
    spent = cost(shares, densities)
    assert spent <= budget
    for share, density in zip(shares, densities, strict=True):
        assert density in share.densities
        assert density > 0
    floor = by_the_rule(shares, budget)
    assert all(x >= y for x, y in zip(densities, floor, strict=True))
    if budget >= most:
        assert densities == [1] * len(shares)


@many
@given(st.integers(2, 5), st.integers(1, 4), st.floats(0.1, 1))
def test_later_layers_are_at_least_as_dense(count: int, width: int, part: float) -> None:
    """With equal layers of fine steps, up to one step of rounding."""
    n = 16 * width
    steps = tuple(admissible_densities(n, n))
    shares = [Share(f"l{i}", n * n, steps) for i in range(count)]
    densities = share_budget(shares, max(least(shares), int(part * count * n * n)))
    assert all(a <= b for a, b in itertools.pairwise(densities))
    assert densities[-1] <= GROWTH * (densities[0] + Fraction(2, n))


@many
@given(layers(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_buys_more_before_rounding(shares: list[Share], a: float, b: float) -> None:
    """What is spent never falls by more than the cheapest step that rounding left over."""
    low, high = sorted(least(shares) + int(x * (sum(s.cost for s in shares) - least(shares))) for x in (a, b))
    spent = [cost(shares, share_budget(shares, budget)) for budget in (low, high)]
    step = max(s.cost * max((y - x for x, y in itertools.pairwise(s.densities)), default=0) for s in shares)
    assert spent[1] >= spent[0] - step


def test_most_of_the_budget_is_used() -> None:
    shares = [Share(str(i), 64 * 64, tuple(admissible_densities(64, 64, max_blocks=16))) for i in range(4)]
    for budget in range(2048, 4 * 64 * 64, 777):
        assert cost(shares, share_budget(shares, budget)) > 0.9 * budget


def test_below_the_minimum_names_the_layers() -> None:
    shares = [Share(name, 256, (Fraction(1, 4), Fraction(1))) for name in ("stem", "body")]
    assert share_budget(shares, 128) == [Fraction(1, 4)] * 2
    with pytest.raises(DensityError, match="at least 128 are needed: 'stem' at 1/4, 'body' at 1/4"):
        share_budget(shares, 127)
    with pytest.raises(DensityError, match=r"'l0' at 1/4, .*…, 'l8' at 1/4"):
        share_budget([Share(f"l{i}", 256, (Fraction(1, 4),)) for i in range(9)], 5)


def test_block_densities_prefer_wide_blocks() -> None:
    assert block_densities(64, 64, blocks=None, max_blocks=16, width=16)[0] == Fraction(1, 4)
    assert block_densities(24, 24, blocks=None, max_blocks=12, width=16)[0] == Fraction(1, 12)  # none is wide
    assert block_densities(64, 64, blocks=8, max_blocks=16, width=16) == [Fraction(k, 8) for k in range(1, 9)]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Flatten(),
        nn.Linear(64 * 16, 128),
        nn.Linear(128, 10),
    )


IMAGE = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("pattern", ["block", "structured"])
@pytest.mark.parametrize("budget", [45_000, 60_000, 150_000, 10**7])
def test_a_network_keeps_its_budget_of_weights(pattern: Any, budget: int) -> None:
    model = network()
    report = sparsify_(model, SparsityConfig(max_weights=budget, pattern=pattern))
    actual = sum(p.numel() for n, p in model.named_parameters() if n.endswith("weight"))
    assert report.weights == actual <= budget
    assert actual > 0.8 * min(budget, report.weights_dense)
    if pattern == "structured":  # fine steps, so nothing is rounded up
        given_ = [layer.given for layer in report.layers[1:-1]]
        assert given_ == sorted(given_)


def test_a_network_keeps_its_budget_of_macs() -> None:
    for budget in (500_000, 700_000, 10**8):
        report = sparsify_(network(), SparsityConfig(max_macs=budget), example_input=IMAGE)
        assert report.macs is not None
        assert report.macs_dense is not None
        assert 0.8 * min(budget, report.macs_dense) < report.macs <= budget


def test_budgets_are_shared_around_overrides() -> None:
    config = SparsityConfig(max_weights=60_000, overrides={"2": 0.5, "4": None, "5": 0.5})
    with pytest.raises(DensityError, match=r"leaves .* for 1 layers, and at least .* needed: '1' at .* belong"):
        sparsify_(network(), config)
    model = network()
    report = sparsify_(model, SparsityConfig(max_weights=60_000, overrides={"2": 0.25, "5": 0.5}))
    assert report.weights <= 60_000
    given_ = {layer.name: layer.given for layer in report.layers}
    assert (given_["2"], given_["5"]) == (0.25, 0.5)


@pytest.mark.parametrize(("way", "most"), [("max_weights", 100), ("max_macs", 1000)])
def test_an_impossible_budget_changes_nothing(way: str, most: int) -> None:
    model = network()
    before = list(model)
    with pytest.raises(DensityError, match=f"budget of {most:,} .* '1' at .* kept dense or told"):
        sparsify_(model, SparsityConfig(**{way: most}), example_input=IMAGE)
    assert list(model) == before


def test_nothing_left_to_share() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.raises(ConfigError, match="no layer is left to share the budget of 10 weights"):
        sparsify_(model, SparsityConfig(max_weights=10, overrides={"0": None}))


def test_macs_need_an_example() -> None:
    with pytest.raises(ConfigError, match="max_macs needs an example_input"):
        sparsify_(network(), SparsityConfig(max_macs=10**6))
    with pytest.raises(ConfigError, match="holds no sample"):
        sparsify_(network(), SparsityConfig(max_macs=10**6), example_input=IMAGE[:0])


WAYS: dict[str, Any] = {"density": 0.5, "d_out": (2,), "max_weights": 10, "max_macs": 10}


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(WAYS, 2)))
def test_the_ways_exclude_each_other(a: str, b: str) -> None:
    with pytest.raises(ConfigError, match=f"{a} and {b} exclude each other"):
        SparsityConfig(**{a: WAYS[a], b: WAYS[b]})


@pytest.mark.parametrize("wrong", [{"max_weights": 0}, {"max_macs": -1}, {"max_weights": 1.5}, {"d_out": (1.5,)}])
def test_budgets_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SparsityConfig(**wrong)


@pytest.mark.parametrize("config", [{way: value} for way, value in WAYS.items()], ids=str)
def test_every_way_goes_round_as_json(config: dict[str, Any]) -> None:
    made = SparsityConfig(**config, pattern="structured", seed=3)
    assert SparsityConfig.model_validate_json(made.model_dump_json()) == made
    assert SparsityConfig(**json.loads(json.dumps(made.model_dump()))) == made


@pytest.mark.parametrize("pattern", ["block", "structured", "clash_free"])
def test_the_papers_network_has_2360_weights(pattern: Any) -> None:
    """800-40-40-10 with out-degrees 2, 9, 10 (PAPERS.md §1)."""
    model = nn.Sequential(nn.Linear(800, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    report = sparsify_(model, SparsityConfig(d_out=(2, 9, 10), pattern=pattern))
    assert [layer.weights for layer in report.layers] == [1600, 360, 400]
    assert report.weights == 2360
    assert report.density == pytest.approx(0.0694, abs=5e-5)
    assert sum(p.numel() for n, p in model.named_parameters() if n.endswith("weight")) == 2360
    sparse = [m for m in model if isinstance(m, SparseLinear)]
    assert [(m.pattern.d_out, m.pattern.d_in) for m in sparse] == [(2, 40), (9, 9)]
    assert type(model[4]) is nn.Linear  # density 1


def test_degrees_skip_depthwise_layers_and_none_keeps_a_layer() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.Linear(16, 16), nn.Linear(16, 4))
    report = sparsify_(model, SparsityConfig(d_out=(4, None, 1)))
    assert [layer.weights for layer in report.layers] == [72, 8 * 4, 256, 16]
    assert [layer.note.split(";")[0] for layer in report.layers][:3:2] == [
        "depthwise, kept dense",
        "kept dense as told",
    ]


@pytest.mark.parametrize("degrees", [(), (2,), (2, 9, 10, 1)])
def test_the_wrong_number_of_degrees_lists_the_layers(degrees: tuple[int, ...]) -> None:
    model = nn.ModuleDict({"a": nn.Linear(80, 40), "b": nn.Linear(40, 40), "c": nn.Linear(40, 10)})
    with pytest.raises(ConfigError, match=f"d_out holds {len(degrees)} entries for 3 layers; .*: a, b, c"):
        sparsify_(model, SparsityConfig(d_out=degrees))


@pytest.mark.parametrize("d_out", [0, -2, 3, 41])
def test_a_degree_that_cannot_be_names_the_layer(d_out: int) -> None:
    model = nn.ModuleDict({"a": nn.Linear(30, 40), "b": nn.Linear(40, 10)})
    with pytest.raises(DensityError, match=f"layer 'a': d_out={d_out} is not possible .* Possible: 4, 8, 12"):
        sparsify_(model, SparsityConfig(d_out=(d_out, 1)))


def test_degrees_exclude_overrides_and_blocks_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="d_out names every layer, so overrides have nothing to say"):
        SparsityConfig(d_out=(1,), overrides={"0": 0.5})
    with pytest.raises(ConfigError, match="blocks=4 is for block patterns"):
        SparsityConfig(blocks=4, pattern="structured")
    with pytest.raises(DensityError, match=r"layer '0': .*Leave out blocks=4, or change the layer's entry"):
        sparsify_(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4)), SparsityConfig(d_out=(4, 1), blocks=4))
