"""The paper's networks and protocol (PAPERS.md §1)."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from offramp.exits.network import MultiExit
from offramp.reproduce import capogrosso
from offramp.reproduce.capogrosso import (
    MAX_DROP,
    PATTERNS,
    RATES,
    TUNING_SEEDS,
    Net,
    accuracy,
    build,
    final,
    name_of,
    published,
    run,
    titles,
    tuning,
)
from offramp.reproduce.images import held_out, images
from offramp.reproduce.loop import Samples
from offramp.sparse.layers import SparseLinear

PAPER: Net = {"widths": [800, 40, 40, 10], "d_out": [2, 9, 10], "pattern": "block", "exits": False}
DENSE: Net = {**PAPER, "d_out": None, "pattern": None}
DATA = "mnist-subset"


def layers(net: nn.Module) -> list[nn.Linear | SparseLinear]:
    return [m for m in net.modules() if isinstance(m, (nn.Linear, SparseLinear))]


def held(weights: nn.Module) -> list[int]:
    return [layer.weight.numel() for layer in layers(weights)]


# --- Configurations --------------------------------------------------------------------------------------


def test_the_published_configurations() -> None:
    assert [name_of(net) for net in published()] == [
        "800-3-3-10 dense",
        "800-40-40-10 dense",
        "800-40-40-10 (2, 9, 10) block",
        "800-40-40-10 (2, 9, 10) structured",
        "800-40-40-10 (2, 9, 10) clash-free type 1",
        "800-40-40-10 (2, 9, 10) clash-free type 2",
        "800-40-40-10 (2, 9, 10) clash-free type 3",
        "800-100-10 dense",
        "800-100-10 (50, 10) block",
        "800-100-10 (20, 10) block",
        "800-100-10 (20, 10) structured",
        "800-100-10 (20, 10) clash-free type 1",
        "800-100-10 (10, 10) block",
        "800-100-10 (5, 10) block",
    ]
    assert not any(net["exits"] for net in published())


def test_the_title_compares_dense_sparse_and_narrow_with_exits() -> None:
    assert [name_of(net) for net in titles()] == [
        "800-40-40-10 dense",
        "800-40-40-10 (2, 9, 10) block",
        "800-3-3-10 dense",
        "800-400-100-10 dense",
        "800-400-100-10 (40, 25, 10) block",
        "800-52-13-10 dense",
    ]
    assert all(net["exits"] for net in titles())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_out_degrees_give_exactly_the_papers_weights(pattern: str) -> None:
    net = build({**PAPER, "pattern": pattern}, seed=0)
    assert held(net) == [800 * 2, 40 * 9, 40 * 10]
    assert sum(held(net)) == 2360
    sparse = [layer for layer in layers(net) if isinstance(layer, SparseLinear)]
    assert [(layer.pattern.d_out, layer.pattern.d_in) for layer in sparse] == [(2, 40), (9, 9)]
    name, _, kind = pattern.partition("-")
    recipes = [layer.pattern.recipe() for layer in sparse]
    assert {recipe["pattern"] for recipe in recipes} == {name}
    assert [recipe.get("kind") for recipe in recipes] == [int(kind) if kind else None] * 2
    assert net(torch.zeros(3, 800)).shape == (3, 10)


@pytest.mark.parametrize("net", published() + titles(), ids=name_of)
def test_every_network_can_be_built_and_has_the_weights_that_it_names(net: Net) -> None:
    model = build(json.loads(json.dumps(net)), seed=1)
    expected = [
        n_left * (n_right if net["d_out"] is None else net["d_out"][i])
        for i, (n_left, n_right) in enumerate(zip(net["widths"][:-1], net["widths"][1:], strict=True))
    ]
    own = model.model if isinstance(model, MultiExit) else model
    assert held(own) == expected
    if net["exits"]:
        assert isinstance(model, MultiExit)
        assert held(model.heads) == [10 * width for width in net["widths"][1:-1]]
        assert [tuple(z.shape) for z in model(torch.zeros(2, 800))] == [(2, 10)] * len(expected)


def test_the_narrow_rivals_have_the_sparse_networks_weights() -> None:
    """Heads left out, as near as these shapes come."""
    own = {name_of(net): sum(held(build({**net, "exits": False}, 0))) for net in titles()}
    assert own["800-400-100-10 (40, 25, 10) block"] == 43_000
    assert own["800-52-13-10 dense"] == 42_406
    assert own["800-40-40-10 (2, 9, 10) block"] == 2360
    assert own["800-3-3-10 dense"] == 2439


# --- Initial weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [DENSE, PAPER, {**PAPER, "pattern": "clash_free-2"}], ids=name_of)
def test_weights_are_he_normal_by_the_dense_fan_in_and_biases_are_a_tenth(net: Net) -> None:
    for layer, fan_in in zip(layers(build(net, 0)), (800, 40, 40), strict=True):
        count = layer.weight.numel()
        deviation = math.sqrt(2 / fan_in)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(2 * count))
        assert layer.weight.mean().item() == pytest.approx(0, abs=4 * deviation / math.sqrt(count))
        assert layer.bias is not None
        assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.1))


def test_the_seed_draws_weights_and_patterns() -> None:
    first, again, other = (layers(build({**PAPER, "pattern": "structured"}, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a.weight, b.weight) for a, b in zip(first, other, strict=True))
    digests = [
        [layer.pattern.digest for layer in found if isinstance(layer, SparseLinear)]
        for found in (first, again, other)
    ]
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])


def test_every_second_layer_joins_other_neighbours() -> None:
    sparse = [layer for layer in layers(build(PAPER, 0)) if isinstance(layer, SparseLinear)]
    layouts = [layer.pattern.recipe()["layout"] for layer in sparse]
    assert layouts == ["contiguous", "strided"]


# --- Jobs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "seeds"), [(None, TUNING_SEEDS), (100, 1)])
def test_every_rate_is_tried_on_held_out_images(limit: int | None, seeds: int) -> None:
    """At several seeds, unless it is a quick look."""
    jobs = tuning([DENSE, PAPER], DATA, epochs=3, limit=limit)
    assert [(job["net"], job["lr"], job["seed"]) for job in jobs] == [
        (net, lr, seed) for net in (DENSE, PAPER) for lr in RATES for seed in range(seeds)
    ]
    assert {(job["judged"], job["epochs"], job["limit"], job["data"]) for job in jobs} == {
        ("held out", 3, limit, DATA)
    }
    assert json.loads(json.dumps(jobs)) == jobs


EXITS: Net = {**PAPER, "exits": True}


def test_the_rate_that_is_best_at_the_last_exit_is_used() -> None:
    tuned = [
        {"net": DENSE, "lr": 1e-3, "held_out": [0.9]},
        {"net": DENSE, "lr": 2e-3, "held_out": [0.8]},
        {"net": EXITS, "lr": 1e-3, "held_out": [0.99, 0.1]},
        {"net": EXITS, "lr": 4e-3, "held_out": [0.2, 0.7]},
        {"net": EXITS, "lr": 8e-3, "held_out": [0.2, 0.6]},
        {"net": PAPER, "lr": 1.6e-2, "held_out": [1.0]},  # another network: without exits
    ]
    jobs = final([EXITS, DENSE], tuned, DATA, epochs=5, seeds=range(2), limit=None)
    assert [(job["net"], job["lr"], job["seed"]) for job in jobs] == [
        (EXITS, 4e-3, 0),
        (EXITS, 4e-3, 1),
        (DENSE, 1e-3, 0),
        (DENSE, 1e-3, 1),
    ]
    assert {(job["judged"], job["epochs"], job["limit"], job["data"]) for job in jobs} == {("test", 5, None, DATA)}
    assert json.loads(json.dumps(jobs)) == jobs


def test_one_lucky_seed_does_not_make_a_rate_the_best() -> None:
    accuracies = {1e-3: (0.2, 0.95, 0.2), 2e-3: (0.8, 0.7, 0.9), 4e-3: (0.7, 0.7, 0.7)}
    tuned = [
        {"net": DENSE, "lr": lr, "seed": seed, "held_out": [found[seed]]}
        for seed in range(3)
        for lr, found in accuracies.items()
    ]
    (job,) = final([DENSE], tuned, DATA, epochs=1, seeds=[0], limit=None)
    assert job["lr"] == 2e-3


# --- Training --------------------------------------------------------------------------------------------


def job(net: Net, judged: str, **other: Any) -> dict[str, Any]:
    return {"net": net, "data": DATA, "epochs": 1, "seed": 0, "limit": 600, "lr": 4e-3, "judged": judged, **other}


class Untouchable:
    """Test images that nobody may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test images' {name} was asked for")

    def __len__(self) -> int:
        raise AssertionError("the test images were counted")


@pytest.mark.parametrize("exits", [False, True])
def test_rates_are_chosen_without_the_test_images(exits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    known = images(DATA, "padded", 600)[0]
    monkeypatch.setattr(capogrosso, "images", lambda *_: (known, Untouchable()))
    outcome = run(job({**PAPER, "exits": exits}, "held out"))
    assert len(outcome["held_out"]) == (3 if exits else 1)
    assert "test" not in outcome
    with pytest.raises(AssertionError, match="test images"):
        run(job(PAPER, "test"))


@pytest.mark.parametrize(
    ("exits", "judged", "share"),
    [(False, "held out", 500), (True, "held out", 500), (False, "test", 600), (True, "test", 500)],
)
def test_what_is_learnt_from(exits: bool, judged: str, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All training images, but those that choose the rate or the gates' thresholds."""
    learnt: list[Samples] = []

    def train(net: nn.Module, data: Samples, *_: Any, **__: Any) -> float:
        learnt.append(data)
        return 0.0

    monkeypatch.setattr(capogrosso, "train", train)
    run(job({**DENSE, "widths": [800, 3, 10], "exits": exits}, judged))
    every = images(DATA, "padded", 600)[0]
    assert torch.equal(learnt[0].x, every.x[:share])
    assert torch.equal(learnt[0].y, every.y[:share])


def test_the_published_protocol_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(capogrosso, "train", lambda *a, **k: told.append(a[2]) or 0.0)
    run(job(PAPER, "held out", epochs=7, lr=0.002))
    (protocol,) = told
    assert (protocol.epochs, protocol.lr, protocol.schedule, protocol.batch) == (7, 0.002, "keras", 256)
    assert (protocol.weight_decay, protocol.augment, protocol.distill) == (0, False, 0)


def test_an_outcome_can_be_repeated_and_written() -> None:
    first, again = (run(job(PAPER, "test")) for _ in range(2))
    assert first.pop("train_s") > 0
    again.pop("train_s")
    assert first == again == json.loads(json.dumps(first))
    assert first["net"] == PAPER
    assert (first["seed"], first["lr"], first["weights"]) == (0, 4e-3, [1600, 360, 400])
    assert "gates" not in first
    assert run(job(PAPER, "test", seed=1))["test"] != first["test"]


def test_the_papers_network_learns_digits() -> None:
    outcome = run(job(EXITS, "test", epochs=6, limit=2400, lr=8e-3))
    assert outcome["test"][-1] > 0.6
    assert outcome["weights"] == [1600, 360, 400]  # heads left out
    assert len(outcome["gates"]) == 2
    for gate, alone in zip(outcome["gates"], outcome["test"], strict=False):
        assert 0 <= gate["share"] <= 1
        low, high = sorted((alone, outcome["test"][-1]))
        assert low - 0.05 <= gate["accuracy"] <= high + 0.05


def test_accuracy_is_the_share_of_right_answers_at_every_exit() -> None:
    samples = Samples(torch.zeros(4, 1), torch.tensor([0, 1, 1, 0]))
    early = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    last = np.array([[1, 0], [0, 1], [0, 1], [0.5, 0.2]], np.float32)
    assert accuracy((early, last), samples) == [0.5, 1.0]


def test_gates_answer_where_they_are_sure_and_the_last_exit_elsewhere() -> None:
    """An exit that is right where it is sure: its gate lets out those, and the server answers the rest."""
    draw = np.random.RandomState(0)
    y = torch.from_numpy(draw.randint(0, 10, 1200))
    truth = np.eye(10, dtype=np.float32)[y]
    sure = draw.rand(1200) < 0.6
    noise = draw.randn(1200, 10).astype(np.float32)
    early = np.where(sure[:, None], 12 * truth, 0.5 * noise).astype(np.float32)
    every = Samples(torch.zeros(1200, 1), y)
    rest, test = held_out(every, 0.5)
    (gate,) = capogrosso._gates((early[:600], 12 * truth[:600]), rest, (early[600:], 12 * truth[600:]), test)
    assert gate["share"] == pytest.approx(sure[600:].mean(), abs=0.03)
    assert 1 - MAX_DROP - 0.01 <= gate["accuracy"] <= 1
