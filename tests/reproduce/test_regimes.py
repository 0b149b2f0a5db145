"""Sparse against narrow: what is compared, and that neither has more than it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from offramp.errors import ConfigError
from offramp.reproduce import regimes
from offramp.reproduce.images import images
from offramp.reproduce.loop import Protocol, Samples
from offramp.reproduce.networks import mlp
from offramp.reproduce.regimes import BODIES, FACTORS, RATES, VARIANTS, Body, build, final, run, tuning
from offramp.sparse.block import BlockPattern
from offramp.sparse.convolution import SparseConv2d
from offramp.sparse.counting import count
from offramp.sparse.layers import SparseLayer, SparseLinear

DATA = "mnist-subset"
SPARSE = [(body, factor) for body in BODIES for factor in BODIES[body].factors]


def own_weights(net: nn.Module) -> int:
    """Of the network itself, heads left out."""
    model = net.get_submodule("model")
    kinds = (nn.Linear, nn.Conv2d, SparseLayer)
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, kinds))


def sparse_layers(net: nn.Module) -> list[SparseLinear | SparseConv2d]:
    return [m for m in net.modules() if isinstance(m, (SparseLinear, SparseConv2d))]


# --- Networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "factor"), SPARSE)
def test_sparse_networks_keep_their_budget_and_use_most_of_it(body: str, factor: int) -> None:
    budget = own_weights(build(body, "dense", 1, 0)) // factor
    assert 0.75 * budget < own_weights(build(body, "sparse", factor, 0)) <= budget


@pytest.mark.parametrize(
    ("body", "kind", "factor", "variant"),
    [
        *(("mlp", kind, factor, "") for kind in ("narrow", "narrow-macs") for factor in FACTORS),
        ("conv", "narrow", 2, ""),
        ("conv", "narrow", 32, ""),
        ("conv", "narrow-macs", 32, ""),
        ("cifar", "narrow", 8, ""),
        ("cifar", "narrow-macs", 8, ""),
    ],
)
def test_narrow_networks_never_have_more_than_the_sparse_one(
    body: str, kind: str, factor: int, variant: str
) -> None:
    """Nor much less: weights or multiply-accumulates, exits included."""
    example = torch.zeros(1, *BODIES[body].example)
    ours, theirs = (count(build(body, k, factor, 3, variant), example) for k in ("sparse", kind))
    most, found = (ours.weights, theirs.weights) if kind == "narrow" else (ours.macs, theirs.macs)
    assert 0.9 * most < found <= most


def test_narrow_networks_are_narrow_everywhere() -> None:
    layers = [m for m in build("mlp", "narrow", 8, 0).modules() if isinstance(m, nn.Linear)]
    (first, second, last, head) = layers
    assert (first.in_features, last.out_features, head.out_features) == (800, 10, 10)
    assert first.out_features == second.in_features == head.in_features < 100
    assert second.out_features == last.in_features < 25
    assert not sparse_layers(build("mlp", "narrow", 8, 0))


def test_a_narrow_networks_weights_are_those_of_its_seed() -> None:
    """Whether its widths had to be looked for first or not."""
    regimes._narrow_widths.cache_clear()
    first, again, other = (build("mlp", "narrow", 32, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["model.0.weight"], other["model.0.weight"])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_seed_gives_the_same_network(kind: str) -> None:
    first, again, other = (build("mlp", kind, 8, seed).state_dict() for seed in (0, 0, 1))
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["model.0.weight"], other["model.0.weight"])


@pytest.mark.parametrize("body", BODIES)
def test_every_body_has_one_early_exit(body: str) -> None:
    chosen = BODIES[body]
    net = build(body, "dense", 1, 0).eval()
    assert net.exit_names == (chosen.tap,)
    assert [tuple(z.shape) for z in net(torch.zeros(2, *chosen.example))] == [(2, 10), (2, 10)]


@pytest.mark.parametrize("kind", ["thin", "", "narrow-bytes"])
def test_an_unknown_kind_names_those_that_are_known(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"dense, sparse, narrow or narrow-macs, not '{kind}'"):
        build("mlp", kind, 2, 0)


# --- Variants --------------------------------------------------------------------------------------------


def test_even_is_one_density_and_joined_the_same_in_twice_the_blocks() -> None:
    even, joined = (sparse_layers(build("cifar", "sparse", 4, 0, variant)) for variant in ("even", "joined"))
    patterns = [layer.pattern for layer in (*even, *joined)]
    assert all(isinstance(pattern, BlockPattern) for pattern in patterns)
    assert {pattern.d_out / pattern.n_right for pattern in patterns} == {0.25}
    assert {(layer.pattern.recipe()["blocks"], layer.pattern.recipe()["joined"]) for layer in even} == {(4, 1)}
    assert {(layer.pattern.recipe()["blocks"], layer.pattern.recipe()["joined"]) for layer in joined} == {(8, 2)}
    weights = [own_weights(build("cifar", "sparse", 4, 0, variant)) for variant in ("even", "joined")]
    assert weights[0] == weights[1] == pytest.approx(own_weights(build("cifar", "dense", 1, 0)) / 4, rel=0.02)


def test_late_is_dense_up_to_the_second_stage_within_the_same_budget() -> None:
    net = build("cifar", "sparse", 4, 0, "late")
    assert [name for name, m in net.named_modules() if isinstance(m, (SparseLinear, SparseConv2d))] == [
        "model.2.0",
        "model.3.0",
    ]
    assert own_weights(net) <= own_weights(build("cifar", "dense", 1, 0)) // 4


@pytest.mark.parametrize("variant", ["longer", "taught"])
def test_variants_of_the_training_leave_the_network_alone(variant: str) -> None:
    changed, plain = (
        build("cifar", "sparse", 4, 0, variant).state_dict(),
        build("cifar", "sparse", 4, 0).state_dict(),
    )
    assert changed.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in changed.items())


# --- Jobs ------------------------------------------------------------------------------------------------


def tuned(**best: float) -> list[dict[str, Any]]:
    """Outcomes in which these rates are best at the last exit, and others at the first."""
    return [
        {"kind": kind, "lr": lr, "held_out": [1 - lr, 0.9 if lr == best[kind] else 0.5]}
        for kind in best
        for lr in RATES
    ]


RIGHT = {"dense": 4e-3, "sparse": 1.6e-2, "narrow": 8e-3}


def test_every_rate_is_tried_for_every_kind_on_held_out_images() -> None:
    jobs = tuning("conv", DATA, epochs=2, limit=100)
    assert [(job["kind"], job["factor"], job["lr"]) for job in jobs] == [
        (kind, factor, lr) for kind, factor in (("dense", 1), ("sparse", 8), ("narrow", 8)) for lr in RATES
    ]
    assert {(job["judged"], job["seed"], job["epochs"], job["limit"], job["body"]) for job in jobs} == {
        ("held out", 0, 2, 100, "conv")
    }
    assert json.loads(json.dumps(jobs)) == jobs


@pytest.mark.parametrize(
    ("body", "kinds", "count"),
    [
        ("mlp", {"dense", "sparse", "narrow"}, 3 * (1 + 5 * 2)),
        ("conv", {"dense", "sparse", "narrow", "narrow-macs"}, 3 * (1 + 5 * 3)),
        ("cifar", {"dense", "sparse", "narrow", "narrow-macs"}, 3 * (1 + 2 * 3 + 2 * 2) + 2 * 2),
    ],
)
def test_every_kind_factor_and_seed_is_trained_at_its_own_rate(body: str, kinds: set[str], count: int) -> None:
    jobs = final(body, tuned(**RIGHT), DATA, epochs=3, seeds=range(3), limit=None)
    assert len(jobs) == count
    assert len({json.dumps(job, sort_keys=True) for job in jobs}) == len(jobs)
    assert json.loads(json.dumps(jobs)) == jobs
    for seed in range(3):
        found = {(j["kind"], j["factor"]) for j in jobs if j["seed"] == seed and "variant" not in j}
        assert found == {("dense", 1)} | {(kind, f) for kind in kinds - {"dense"} for f in BODIES[body].factors}
    assert all(job["lr"] == RIGHT[job["kind"].partition("-")[0]] for job in jobs)
    assert {(job["judged"], job["epochs"], job["data"], job["body"]) for job in jobs} == {("test", 3, DATA, body)}


def test_dear_variants_run_at_the_first_seed_alone() -> None:
    jobs = final("cifar", tuned(**RIGHT), "cifar10", epochs=3, seeds=range(2), limit=None)
    seeds = {variant: {j["seed"] for j in jobs if j.get("variant") == variant} for variant in VARIANTS}
    assert seeds == {"even": {0, 1}, "joined": {0, 1}, "late": {0}, "longer": {0}, "taught": set()}
    assert [job["seed"] for job in jobs if "students" in job] == [0]


def test_variants_compare_sparse_with_the_narrow_one_of_as_many_macs() -> None:
    jobs = final("cifar", tuned(**RIGHT), "cifar10", epochs=3, seeds=[0], limit=None)
    compared = {(kind, 4, variant) for kind in ("sparse", "narrow-macs") for variant in VARIANTS}
    apart = {(job["kind"], job["factor"], job["variant"]) for job in jobs if "variant" in job}
    (teacher,) = [job for job in jobs if "students" in job]
    assert teacher["kind"] == "dense"
    taught = {(student["kind"], student["factor"], "taught") for student in teacher["students"]}
    assert apart | taught == compared
    assert not apart & taught
    assert [student["lr"] for student in teacher["students"]] == [RIGHT["sparse"], RIGHT["narrow"]]
    assert not any("students" in job for job in final("mlp", tuned(**RIGHT), DATA, epochs=1, seeds=[0], limit=9))


# --- Training --------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A small body of its own."""
    body = Body(lambda w: mlp((800, *w, 10)), (32, 16), "1", "padded", (800,), DATA, 1, (2,), 450)
    monkeypatch.setitem(BODIES, "tiny", body)
    regimes._narrow_widths.cache_clear()  # widths of another test's body of this name
    return "tiny"


def job(body: str, kind: str, judged: str = "test", **other: Any) -> dict[str, Any]:
    told = {"body": body, "data": DATA, "epochs": 1, "limit": 600, "seed": 0, "lr": 0.01, "judged": judged}
    return {**told, "kind": kind, "factor": 1 if kind == "dense" else 2, **other}


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Samples, Protocol, nn.Module | None]]:
    """What trainings are told, in place of trainings."""
    found = []

    def train(net: nn.Module, data: Samples, protocol: Protocol, *, teacher: nn.Module | None, **_: Any) -> float:
        found.append((data, protocol, teacher))
        return 1.0

    monkeypatch.setattr(regimes, "train", train)
    return found


class Untouchable:
    """Test images that nobody may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test images' {name} was asked for")


def test_rates_are_chosen_without_the_test_images(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = images(DATA, "padded", 600)[0]
    monkeypatch.setattr(regimes, "images", lambda *_: (known, Untouchable()))
    outcome = run(job(tiny, "sparse", "held out"))
    assert len(outcome["held_out"]) == 2
    assert "test" not in outcome
    with pytest.raises(AssertionError, match="test images"):
        run(job(tiny, "sparse"))


@pytest.mark.parametrize(
    ("judged", "limit", "count"), [("held out", 600, 450), ("held out", 300, 250), ("test", 600, 450)]
)
def test_what_is_learnt_from(judged: str, limit: int, count: int, tiny: str, trainings: Any) -> None:
    run(job(tiny, "dense", judged, limit=limit))
    ((data, _, teacher),) = trainings
    assert teacher is None
    assert torch.equal(data.x, images(DATA, "padded", 600)[0].x[:count])


def test_longer_and_taught_change_the_training(tiny: str, trainings: Any) -> None:
    outcome = run(job(tiny, "dense", epochs=3, students=[{"kind": "sparse", "factor": 2, "lr": 0.5}]))
    run(job(tiny, "sparse", epochs=3, variant="longer"))
    (_, dense, _), (_, taught, teacher), (_, longer, none) = trainings
    assert (dense.epochs, dense.distill, dense.lr, dense.augment) == (3, 0, 0.01, False)
    assert (taught.epochs, taught.distill, taught.lr) == (3, 0.5, 0.5)
    assert teacher is not None
    assert not sparse_layers(teacher)
    assert own_weights(teacher) == outcome["weights"] - 320
    assert (longer.epochs, longer.distill, none) == (6, 0, None)


def test_only_colour_images_are_distorted(trainings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = Samples(torch.zeros(12, 3, 32, 32), torch.zeros(12, dtype=torch.int64))
    monkeypatch.setattr(regimes, "images", lambda *_: (colours, colours))
    run(job("cifar", "narrow", factor=8))
    assert trainings[0][1].augment


def test_students_learn_from_the_dense_network_of_their_seed(tiny: str) -> None:
    students = [{"kind": kind, "factor": 2, "lr": 0.01} for kind in ("sparse", "narrow")]
    outcome = run(job(tiny, "dense", epochs=4, students=students))
    assert [(o["kind"], o["factor"], o["variant"]) for o in outcome["students"]] == [
        ("sparse", 2, "taught"),
        ("narrow", 2, "taught"),
    ]
    alone = run(job(tiny, "sparse", epochs=4))
    assert outcome["students"][0]["test"] != alone["test"]
    assert outcome["students"][0]["weights"] == alone["weights"]
    assert outcome["test"] == run(job(tiny, "dense", epochs=4))["test"]


def test_an_outcome_can_be_repeated_and_written(tiny: str) -> None:
    first, again = (run(job(tiny, "narrow-macs", epochs=4)) for _ in range(2))
    assert first.pop("train_s") > 0
    again.pop("train_s")
    assert first == again == json.loads(json.dumps(first))
    assert (first["kind"], first["factor"], first["seed"], first["lr"], first["variant"]) == (
        "narrow-macs",
        2,
        0,
        0.01,
        "",
    )
    counted = count(build(tiny, "narrow-macs", 2, 0), torch.zeros(1, 800))
    assert (first["weights"], first["macs"]) == (counted.weights, counted.macs)
    assert first["test"][0] > 0.2  # one in ten by guessing
