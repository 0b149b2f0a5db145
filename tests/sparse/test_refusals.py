"""Every way to ask for what cannot be has an error of its own that names layer, value and what is possible."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from offramp.errors import ConfigError, DensityError, LayerNameError, OfframpError
from offramp.sparse.config import SparsityConfig
from offramp.sparse.layers import SparseLinear
from offramp.sparse.sparsify import sparsify_


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.Sequential(nn.Conv2d(32, 48, 3), nn.Conv2d(48, 35, 1)),
        nn.Linear(35, 64),
        nn.Linear(64, 10),
    )


OTHERS = {"1.1": None, "2": None}

ASKED: list[tuple[dict[str, Any], type[OfframpError], str]] = [
    ({"density": 0}, ConfigError, "SparsityConfig.density: .*greater than 0, not 0"),
    ({"density": -0.25}, ConfigError, "SparsityConfig.density: .*greater than 0, not -0.25"),
    ({"density": 1.5}, ConfigError, "SparsityConfig.density: .*less than or equal to 1, not 1.5"),
    ({"density": float("nan")}, ConfigError, "SparsityConfig.density: .*, not nan"),
    ({"density": "a lot"}, ConfigError, "SparsityConfig.density: .*, not 'a lot'"),
    ({"max_blocks": 0}, ConfigError, "SparsityConfig.max_blocks: .*, not 0"),
    ({"pattern": "magic"}, ConfigError, "'block', 'structured' or 'clash_free', not 'magic'"),
    ({"densty": 0.5}, ConfigError, "SparsityConfig.densty: Extra inputs"),
    ({}, DensityError, r"layer '1.1': .* 48→35 layer .*only 1 is possible. Possible: 1\. gcd\(48, 35\) = 1.*None"),
    ({"overrides": {**OTHERS, "1.0": 0}}, DensityError, "layer '1.0': density must be .* above 0 .*, not 0.0"),
    ({"overrides": {**OTHERS, "1.0": -1}}, DensityError, "layer '1.0': density must be .*, not -1.0"),
    ({"overrides": {**OTHERS, "1.0": 2}}, DensityError, "layer '1.0': density must be .* at most 1 .*, not 2.0"),
    ({"overrides": {"*": float("nan")}}, DensityError, "layer '0': density must be .*, not nan"),
    (
        {"overrides": {**OTHERS, "1.0": 0.01}},
        DensityError,
        "layer '1.0': .* at most 16 blocks: .*Possible: 1/16, 1/8",
    ),
    ({"overrides": {**OTHERS, "1.7": 0.5}}, LayerNameError, "override '1.7' matches no .*did you mean 1"),
    ({"overrides": {**OTHERS, "conv*": 0.5}}, LayerNameError, r"override 'conv\*' matches no .*did you mean"),
    (
        {"overrides": OTHERS, "blocks": 5},
        DensityError,
        r"layer '1.0': blocks=5 does not divide .*possible: 1, 2, 4",
    ),
    ({"d_out": (32, 47, None, None, None)}, DensityError, r"layer '1.0': d_out=47 .* Possible: 3, 6, 9"),
    ({"d_out": (32,)}, ConfigError, "d_out holds 1 entries for 5 layers; .*: 0, 1.0, 1.1, 2, 3"),
    ({"max_weights": 9}, DensityError, "a budget of 9 weights"),
]


@pytest.mark.parametrize(("asked", "error", "message"), ASKED, ids=[str(a) for a, *_ in ASKED])
def test_each_has_its_own_error_and_changes_nothing(
    asked: dict[str, Any], error: type[OfframpError], message: str
) -> None:
    model = network()
    before = dict(model.named_modules())
    with pytest.raises(error, match=message):
        sparsify_(model, SparsityConfig(**asked))
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize("density", [0, -0.5, 1.01, float("nan"), None, "half"])
def test_layers_refuse_densities_by_themselves(density: Any) -> None:
    with pytest.raises(DensityError, match="above 0 and at most 1"):
        SparseLinear(8, 8, density)


@pytest.mark.parametrize(("sides", "message"), [((0, 8), "0→8"), ((8, 0), "8→0"), ((-8, 8), "-8→8")])
def test_layers_without_neurons(sides: tuple[int, int], message: str) -> None:
    with pytest.raises(DensityError, match=f"neurons on both sides, not {message}"):
        SparseLinear(*sides, 0.5)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(), nn.Sequential(nn.LSTM(8, 8), nn.Embedding(4, 4))])
def test_a_model_without_layers(model: nn.Module) -> None:
    name = type(model).__name__
    with pytest.raises(ConfigError, match=f"{name} holds no linear or convolution layer to make sparse"):
        sparsify_(model)


ONE: list[dict[str, Any]] = [
    {"keep_last": False},
    {"overrides": {"": 0.25}},
    {"d_out": (8,)},
    {"keep_last": False, "max_weights": 300},
]


@pytest.mark.parametrize("config", ONE, ids=str)
def test_a_model_that_is_one_layer(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"the model is one layer, .* use SparseLinear"):
        sparsify_(nn.Linear(32, 32), SparsityConfig(**config))


def test_a_model_that_is_one_layer_and_stays_dense() -> None:
    report = sparsify_(nn.Linear(32, 32))
    assert report.warnings == (": final classifier, kept dense",)


def test_an_example_without_samples() -> None:
    with pytest.raises(ConfigError, match="example_input holds no sample"):
        sparsify_(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4)), example_input=torch.zeros(0, 32))


def test_a_refused_example_leaves_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4))
    for example, error in ((torch.zeros(0, 32), ConfigError), (torch.zeros(1, 33), RuntimeError)):
        with pytest.raises(error):
            sparsify_(model, example_input=example)
        assert not any(m._forward_hooks for m in model.modules())
