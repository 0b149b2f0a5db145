from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from offramp.errors import ConfigError, DensityError, LayerNameError
from offramp.sparse.config import SparsityConfig
from offramp.sparse.convolution import SparseConv2d
from offramp.sparse.layers import SparseLinear
from offramp.sparse.sparsify import sparsify_


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),  # first
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),  # depthwise
        nn.Conv2d(32, 64, 1, stride=2),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(64, 64, 3, padding="same"), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(64 * 16, 128),
        nn.ReLU(),
        nn.Linear(128, 10),  # last
    )


EXAMPLE = torch.zeros(2, 3, 8, 8)


def kinds(model: nn.Module) -> dict[str, str]:
    return {
        n: type(m).__name__
        for n, m in model.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d, SparseLinear, SparseConv2d))
    }


def weight_values(model: nn.Module) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if n.endswith("weight"))


def test_exceptions_stay_dense_and_the_rest_is_replaced() -> None:
    model = net()
    out = model(EXAMPLE).shape
    report = sparsify_(model)
    assert kinds(model) == {
        "0": "Conv2d",
        "2": "Conv2d",
        "3": "SparseConv2d",
        "5.0": "SparseConv2d",
        "7": "SparseLinear",
        "9": "Linear",
    }
    assert model(EXAMPLE).shape == out
    notes = {layer.name: layer.note for layer in report.layers}
    assert notes["0"] == "first convolution, kept dense"
    assert notes["2"] == "depthwise, kept dense"
    assert notes["9"] == "final classifier, kept dense"
    assert [layer.given for layer in report.layers] == [1, 1, 0.25, 0.25, 0.25, 1]


def test_a_layers_settings_are_kept() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(8, 16, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 1), groups=2, bias=False),
        nn.Conv2d(16, 16, 3, padding="same", padding_mode="reflect"),
        nn.Linear(16, 16, bias=False, dtype=torch.float64),
        nn.Linear(16, 2),
    )
    shapes = {i: model[i](torch.zeros(2, c, 9, 9)).shape for i, c in ((1, 8), (2, 16))}
    sparsify_(model, SparsityConfig(density=0.5))
    for i, c in ((1, 8), (2, 16)):
        assert isinstance(model[i], SparseConv2d)
        assert model[i](torch.zeros(2, c, 9, 9)).shape == shapes[i]
    assert (model[1].groups, model[1].stride, model[1].bias) == (2, (2, 1), None)
    assert model[2].padding_mode == "reflect"
    assert (model[3].bias, model[3].weight.dtype) == (None, torch.float64)


def test_everything_is_sparse_when_told() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    sparsify_(model, SparsityConfig(density=0.5, keep_first=False, keep_last=False))
    assert set(kinds(model).values()) == {"SparseConv2d", "SparseLinear"}


def test_overrides_by_name_and_wildcard_later_ones_win() -> None:
    model = net()
    config = SparsityConfig(overrides={"*": 0.5, "5.*": None, "2": None, "0": None, "9": 0.5})
    report = sparsify_(model, config)
    assert {layer.name: layer.given for layer in report.layers} == {
        "0": 1, "2": 1, "3": 0.5, "5.0": 1, "7": 0.5, "9": 0.5,
    }  # fmt: skip
    assert kinds(model)["9"] == "SparseLinear"
    assert kinds(model)["5.0"] == "Conv2d"
    assert {layer.name: layer.note for layer in report.layers}["5.0"] == "kept dense as told"


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(32, 32), "decoder": nn.Linear(32, 32), "out": nn.Linear(32, 2)})
    before = dict(model.named_modules())
    with pytest.raises(LayerNameError, match=r"'encodr' matches no .*did you mean encoder"):
        sparsify_(model, SparsityConfig(overrides={"encodr": 0.5}))
    with pytest.raises(LayerNameError, match="did you mean"):
        sparsify_(model, SparsityConfig(overrides={"zzz*": 0.5}))
    assert dict(model.named_modules()) == before


def test_layouts_alternate_from_one_sparse_layer_to_the_next() -> None:
    model = net()
    report = sparsify_(model)
    assert [layer.layout for layer in report.layers] == ["-", "-", "contiguous", "strided", "contiguous", "-"]
    for layout in ("contiguous", "strided"):
        found = sparsify_(net(), SparsityConfig(layout=layout)).layers
        assert {layer.layout for layer in found} == {"-", layout}


def test_seeds_number_the_layers() -> None:
    model = net()
    sparsify_(model, SparsityConfig(seed=7))
    seeds = [m.pattern.seed for m in model.modules() if isinstance(m, (SparseConv2d, SparseLinear))]
    assert seeds == [7, 8, 9]


def test_totals_are_the_actual_counts() -> None:
    model = net()
    dense = weight_values(model)
    report = sparsify_(model, SparsityConfig(density=0.5))
    assert report.weights_dense == dense
    assert report.weights == weight_values(model)
    assert report.density == pytest.approx(weight_values(model) / dense)
    assert report.weights < dense


def test_macs_by_hand() -> None:
    report = sparsify_(net(), example_input=EXAMPLE)
    dense = [
        3 * 32 * 9 * 64,  # 8×8 places
        32 * 9 * 64,
        32 * 64 * 16,  # 4×4 places
        64 * 64 * 9 * 16,
        1024 * 128,
        128 * 10,
    ]
    assert [layer.macs_dense for layer in report.layers] == dense
    expected = [m // 4 if i in (2, 3, 4) else m for i, m in enumerate(dense)]
    assert [layer.macs for layer in report.layers] == expected
    assert sparsify_(net()).layers[0].macs is None


def test_a_linear_layer_over_tokens_counts_every_token() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
    report = sparsify_(model, example_input=torch.zeros(3, 5, 16))
    assert [layer.macs_dense for layer in report.layers] == [16 * 32 * 5, 32 * 4 * 5]


def test_counting_leaves_modes_and_hooks_alone() -> None:
    """A submodule that is frozen in evaluation mode stays so."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 36, 10))
    model.train()
    model[1].eval()
    running = model[1].running_mean.clone()
    sparsify_(model, example_input=torch.randn(2, 3, 8, 8))
    assert torch.equal(model[1].running_mean, running)
    assert not any(m._forward_hooks for m in model.modules())
    assert (model.training, model[1].training) == (True, False)


def test_a_density_that_is_not_met_exactly_is_told() -> None:
    report = sparsify_(net(), SparsityConfig(density=0.3))
    told = [w for w in report.warnings if "asked" in w]
    assert told == [f"{n}: density 0.3 asked, 5/16 given{narrow}" for n, narrow in told_names()]
    exact = sparsify_(net(), SparsityConfig(density=0.25))
    assert not [w for w in exact.warnings if "asked" in w]


def told_names() -> list[tuple[str, str]]:
    return [
        ("3", "; slower than dense: under 8 neurons per block"),
        ("5.0", "; slower than dense: under 8 neurons per block"),
        ("7", "; slower than dense: under 256 wide"),
    ]


def test_a_density_met_by_keeping_everything_is_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    report = sparsify_(model, SparsityConfig(density=0.9))
    assert report.warnings[0] == "0: density 1, kept dense"
    assert type(model[0]) is nn.Linear


def test_an_impossible_density_names_the_layer_and_replaces_nothing() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 7), nn.Linear(7, 7))
    before = list(model)
    with pytest.raises(DensityError, match=r"layer '1': .*Possible: 1\..*None.*overrides=\{'1'"):
        sparsify_(model)
    assert list(model) == before
    with pytest.raises(DensityError, match=r"layer '0'.*above 0 and at most 1"):
        sparsify_(model, SparsityConfig(overrides={"0": -0.5, "1": None}))
    assert list(model) == before


def test_a_layer_shared_between_two_parents_stays_shared() -> None:
    shared = nn.Linear(32, 32)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(nn.ReLU(), shared), nn.Linear(32, 4))
    report = sparsify_(model, example_input=torch.zeros(1, 32))
    assert isinstance(model[0][0], SparseLinear)
    assert model[1][1] is model[0][0]
    assert report.layers[0].macs_dense == 2 * 32 * 32  # its weights are used twice


def test_a_layer_that_stands_twice_in_one_parent_is_replaced_in_both_places() -> None:
    shared = nn.Linear(32, 32)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(32, 4))
    report = sparsify_(model)
    assert isinstance(model[0], SparseLinear)
    assert model[2] is model[0]
    assert report.weights == weight_values(model)


def test_a_model_that_is_one_layer_is_not_reported_as_replaced() -> None:
    """It cannot be replaced in place."""
    model = nn.Linear(64, 64)
    try:
        report = sparsify_(model, SparsityConfig(keep_last=False))
    except (LayerNameError, DensityError, ValueError):
        return
    assert report.weights == weight_values(model)


def test_subclasses_are_left_alone() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(32, 32), nn.Linear(32, 32), nn.Linear(32, 2))
    report = sparsify_(model)
    assert type(model[0]) is Special
    assert [layer.name for layer in report.layers] == ["0", "1", "2"]
    assert report.layers[0].note == "a class of its own, kept dense"
    assert report.weights_dense == 32 * 32 + 32 * 32 + 32 * 2  # it counts in the totals
    assert report.density == (32 * 32 + 32 * 8 + 32 * 2) / report.weights_dense
    with pytest.raises(LayerNameError, match="override '0' matches '0', a Special, which may do more"):
        sparsify_(model, SparsityConfig(overrides={"0": 0.5}))


def test_blocks_and_max_blocks() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    assert sparsify_(copy.deepcopy(model), SparsityConfig(blocks=16)).layers[0].blocks == 16
    assert sparsify_(copy.deepcopy(model), SparsityConfig(density=0.3, max_blocks=4)).layers[0].given == 0.25


def test_a_config_goes_round_as_json() -> None:
    config = SparsityConfig(
        density=0.125,
        overrides={"fc*": 0.5, "head": None},
        blocks=8,
        max_blocks=32,
        layout="strided",
        keep_first=False,
        keep_last=False,
        seed=3,
    )
    assert SparsityConfig.model_validate_json(config.model_dump_json()) == config
    assert SparsityConfig.model_validate(json.loads(json.dumps(config.model_dump()))) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0},
        {"density": 1.5},
        {"density": float("nan")},
        {"blocks": 0},
        {"layout": "zigzag"},
        {"typo": 1},
    ],
    ids=str,
)
def test_a_config_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SparsityConfig(**wrong)


def test_a_report_prints_and_goes_as_json() -> None:
    report = sparsify_(net(), SparsityConfig(density=0.3), example_input=EXAMPLE)
    shown = str(report)
    for text in ("5.0", "SparseConv2d", "64→64 3x3", "density 0.3 asked, 5/16", "depthwise", "network density"):
        assert text in shown.replace("\n", " ") or text.split()[0] in shown
    assert f"{report.density:.3f}" in shown
    data = json.loads(json.dumps(report.to_dict()))
    assert data["weights"] == report.weights
    assert [row["name"] for row in data["layers"]] == [layer.name for layer in report.layers]


def test_the_report_advises_to_join_the_blocks_of_convolutions() -> None:
    def convolutions() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(64, 2))

    alone = sparsify_(convolutions())
    (said,) = alone.advice
    assert said.startswith(
        "2 of 2 sparse convolutions join each block to one alone; joined to two (such as blocks=8)"
    )
    assert "blocks=8" in " ".join(str(alone).split())
    assert sparsify_(convolutions(), SparsityConfig(blocks=8)).advice == ()
    assert sparsify_(convolutions(), SparsityConfig(pattern="structured")).advice == ()
    linear = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    assert sparsify_(linear).advice == ()
