"""The studies' training loop: seeded, on schedule, and taught by a teacher."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from offramp.errors import ConfigError
from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit
from offramp.exits.objective import JointLoss
from offramp.reproduce.loop import Protocol, Samples, _distorted, _taught, logits_of, train
from offramp.reproduce.networks import mlp, wide_conv


def blobs(count: int = 90, seed: int = 0) -> Samples:
    """Three classes that a small network tells apart."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    return Samples(torch.randn(count, 6, generator=draw) * 0.5 + 3 * F.one_hot(y, 6), y)


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return mlp((6, 8, 3))


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


QUICK = Protocol(epochs=2, lr=0.01, batch=32)


@pytest.fixture
def steps() -> Iterator[list[dict[str, Any]]]:
    """The settings of every optimiser's step: its class by name, and what its only group holds."""
    found: list[dict[str, Any]] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        (group,) = optimizer.param_groups
        found.append({"class": type(optimizer).__name__, **{k: v for k, v in group.items() if k != "params"}})

    handle = register_optimizer_step_pre_hook(note)
    yield found
    handle.remove()


@pytest.mark.parametrize("schedule", ["keras", "one-cycle"])
def test_a_network_learns(schedule: Any) -> None:
    net, data = small(), blobs()
    spent = train(net, data, Protocol(epochs=20, lr=0.02, batch=32, schedule=schedule), seed=0)
    assert spent > 0
    assert not net.training
    (logits,) = logits_of(net, blobs(seed=1).x)
    assert (logits.argmax(1) == blobs(seed=1).y.numpy()).mean() > 0.95


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = small(), small(), small()
    for net, seed in ((first, 3), (second, 3), (other, 4)):
        torch.manual_seed(torch.seed())  # what was drawn elsewhere says nothing
        train(net, blobs(), QUICK, seed=seed)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_distortions_are_seeded_too() -> None:
    images = Samples(torch.rand(8, 3, 32, 32), torch.arange(8))
    nets = []
    for seed, augment in ((0, True), (0, True), (1, True), (0, False)):
        torch.manual_seed(0)
        net = wide_conv((2, 2, 2, 2))
        train(net, images, Protocol(epochs=1, lr=0.01, batch=8, augment=augment), seed=seed)
        nets.append(weights(net))
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])
    assert not torch.equal(nets[0], nets[3])


@pytest.mark.parametrize(("count", "batch", "per_epoch"), [(90, 32, 3), (64, 32, 2), (5, 32, 1)])
def test_every_image_is_seen_once_an_epoch(count: int, batch: int, per_epoch: int, steps: list[Any]) -> None:
    seen: list[Tensor] = []

    def loss(out: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return out.sum()

    data = Samples(torch.zeros(count, 6), torch.arange(count))
    train(small(), data, Protocol(epochs=2, lr=0.01, batch=batch), seed=0, loss=loss)
    assert len(seen) == len(steps) == 2 * per_epoch
    first, second = torch.cat(seen[:per_epoch]), torch.cat(seen[per_epoch:])
    assert torch.equal(first.sort()[0], torch.arange(count))
    assert torch.equal(second.sort()[0], torch.arange(count))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(count))


# --- Schedules -------------------------------------------------------------------------------------------


def test_keras_is_adam_with_a_rate_that_falls_by_a_hundred_thousandth_a_step(steps: list[Any]) -> None:
    train(small(), blobs(), Protocol(epochs=3, lr=0.008, batch=32, schedule="keras"), seed=0)
    assert [s["lr"] for s in steps] == pytest.approx([0.008 / (1 + 1e-5 * t) for t in range(9)], rel=1e-12)
    assert {(s["class"], s["eps"], s["weight_decay"], s["betas"]) for s in steps} == {
        ("Adam", 1e-7, 0, (0.9, 0.999))
    }


def test_one_cycle_rises_to_the_rate_and_falls_to_nothing(steps: list[Any]) -> None:
    train(small(), blobs(), Protocol(epochs=10, lr=0.008, batch=9, weight_decay=0.25), seed=0)
    rates = [s["lr"] for s in steps]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.008, rel=0.01)
    assert rates[0] < 0.1 * max(rates)
    assert rates[-1] < 1e-3 * max(rates)
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(rates[top:]))
    assert {(s["class"], s["weight_decay"]) for s in steps} == {("AdamW", 0.25)}


def test_a_single_step_is_enough_for_one_cycle(steps: list[Any]) -> None:
    train(small(), blobs(6), Protocol(epochs=1, lr=0.01), seed=0)
    assert len(steps) == 1


@pytest.mark.parametrize("wrong", [{"schedule": "cosine"}, {"rate": 1}, {"lr": "fast"}])
def test_protocols_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"Protocol\.{next(iter(wrong))}"):
        Protocol(**{"epochs": 1, "lr": 0.1, **wrong})


# --- Teachers --------------------------------------------------------------------------------------------


def by_hand(student: Tensor, goal: Tensor, temperature: float = 4.0) -> float:
    """T² times the mean over samples of Σ p·log(p/q), one sum at a time."""
    total = 0.0
    for z, g in zip(student.tolist(), goal.tolist(), strict=True):
        p, q = ([math.exp(v / temperature) for v in row] for row in (g, z))
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def test_what_is_taught_is_the_softened_logits_divergence() -> None:
    teacher, x = small(1).eval(), blobs(7).x
    student = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    assert _taught(student, teacher, x).item() == pytest.approx(by_hand(student, teacher(x)), rel=1e-4)
    assert _taught(teacher(x), teacher, x).item() == pytest.approx(0, abs=1e-6)


def test_the_last_exits_teach_each_other() -> None:
    x = blobs(7).x
    teacher, student = (MultiExit(small(s), {"1": PooledHead(3)}, example_input=x).eval() for s in (1, 2))
    found = _taught(student(x), teacher, x)
    assert found.item() == pytest.approx(by_hand(student(x)[-1], teacher(x)[-1]), rel=1e-4)
    found.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is None for p in student.heads.parameters())
    assert student.model[0].weight.grad is not None


def test_a_teacher_changes_what_is_learnt_and_is_not_changed() -> None:
    teacher = small(1)
    train(teacher, blobs(), QUICK, seed=1)
    before = copy.deepcopy(teacher.state_dict())
    found = {}
    for name, told, one in (
        ("alone", 0.5, None),
        ("taught", 0.5, teacher),
        ("more", 0.9, teacher),
        ("none", 0.0, teacher),
    ):
        net = small()
        train(net, blobs(), QUICK.model_copy(update={"distill": told}), seed=0, teacher=one)
        found[name] = weights(net)
    assert torch.equal(found["alone"], found["none"])
    assert not torch.equal(found["alone"], found["taught"])
    assert not torch.equal(found["taught"], found["more"])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_student_of_nothing_but_its_teacher_becomes_alike() -> None:
    teacher, student, x = small(1).eval(), small(), blobs().x
    wrong = Samples(x, torch.zeros(len(x), dtype=torch.int64))  # labels that it would otherwise learn
    first = _taught(student(x), teacher, x).item()
    train(student, wrong, Protocol(epochs=30, lr=0.02, batch=32, distill=1.0), seed=0, teacher=teacher)
    assert _taught(student(x), teacher, x).item() < 0.1 * first


# --- Logits and distortions ------------------------------------------------------------------------------


def test_logits_of_many_inputs_are_those_of_each() -> None:
    x = torch.randn(2003, 6, generator=torch.Generator().manual_seed(0))
    net = MultiExit(small(), {"1": PooledHead(3)}, example_input=x[:1]).train()
    early, last = logits_of(net, x)
    assert net.training
    assert early.shape == last.shape == (2003, 3)
    with torch.inference_mode():
        expected = net.eval()(x)
    torch.testing.assert_close(torch.from_numpy(early), expected[0])
    torch.testing.assert_close(torch.from_numpy(last), expected[1])
    (only,) = logits_of(net.model, x)
    torch.testing.assert_close(torch.from_numpy(only), expected[1])


def test_exits_are_trained_by_their_joint_loss() -> None:
    net = MultiExit(small(), {"1": PooledHead(3)}, example_input=blobs(1).x)
    before = copy.deepcopy(net.heads.state_dict())
    train(net, blobs(), QUICK, seed=0, loss=JointLoss())
    assert not torch.equal(net.heads.state_dict()["0.linear.weight"], before["0.linear.weight"])


def test_distorted_images_are_shifted_or_mirrored_and_keep_their_shape() -> None:
    """Each is one of fifty: five shifts each way, mirrored or not; all of a batch are shifted alike."""
    x = torch.rand(16, 3, 9, 7, generator=torch.Generator().manual_seed(0)) + 0.1
    generator = torch.Generator().manual_seed(1)
    shifts = set()
    for _ in range(40):
        found = _distorted(x, generator)
        assert found.shape == x.shape
        ways = []
        for dy, dx in itertools.product(range(5), repeat=2):
            shifted = F.pad(x, (2, 2, 2, 2))[:, :, dy : dy + 9, dx : dx + 7]
            plain = (found == shifted).flatten(1).all(1)
            mirrored = (found == shifted.flip(3)).flatten(1).all(1)
            if (plain | mirrored).all():
                ways.append((dy, dx))
                assert (
                    0 < mirrored.sum() < len(x)
                )  # 16 coins alike: once in 32,768 batches, and this one is seeded
        assert len(ways) == 1
        shifts |= set(ways)
    assert {dy for dy, _ in shifts} == {dx for _, dx in shifts} == set(range(5))


def test_distorting_leaves_the_images_as_they_are() -> None:
    x = torch.rand(4, 1, 8, 8)
    before = x.clone()
    _distorted(x, torch.Generator().manual_seed(0))
    assert torch.equal(x, before)
