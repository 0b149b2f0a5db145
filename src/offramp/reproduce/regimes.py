"""Where predefined sparsity pays: sparse against narrow, from 2x to 32x fewer weights than the dense network.

The narrow rivals are dense networks of the same form with fewer neurons: one with the sparse network's weights,
one with its multiply-accumulates (for fully connected networks these are the same). All get the same images,
epochs and schedule; the peak learning rate is chosen per kind on images held out of the training set. Where
sparse does not win by itself, variants look for what would make it win.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from offramp.errors import ConfigError
from offramp.exits.network import MultiExit
from offramp.exits.objective import JointLoss
from offramp.reproduce.capogrosso import accuracy
from offramp.reproduce.images import Form, held_out, images
from offramp.reproduce.loop import Protocol, logits_of, train
from offramp.reproduce.networks import mlp, narrowed, small_conv, wide_conv, with_exit
from offramp.reproduce.study import Job, Outcome
from offramp.sparse.config import SparsityConfig
from offramp.sparse.counting import Counts, count
from offramp.sparse.sparsify import sparsify_

__all__ = ["BODIES", "FACTORS", "VARIANTS", "Body", "build", "final", "run", "tuning"]

FACTORS = (2, 4, 8, 16, 32)
#: Peak learning rates to choose from.
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
#: What variants change, at the first factor.
VARIANTS = {
    "even": "one density for all layers instead of the budget's rule",
    "joined": "the same, every block joined to two",
    "late": "dense up to the second stage, all of the sparsity behind it",
    "longer": "twice the epochs",
    "taught": "half of the loss from the logits of the dense network",
}
#: Those that take longest: at the first seed alone.
DEAR = ("late", "longer", "taught")


@dataclass(frozen=True)
class Body:
    """A network of the study.

    Attributes:
        make: Builds it from its widths.
        widths: Those of the dense network.
        tap: The submodule behind which the early exit hangs.
        form: How it takes images.
        example: The shape of one input.
        data: The data set, if none is named.
        epochs: Passes over the training images.
        factors: How many times fewer weights to try.
        train_images: At most this many; all if None.
        variants: Whether to look for what would make sparse win.
    """

    make: Callable[[Sequence[int]], nn.Module]
    widths: tuple[int, ...]
    tap: str
    form: Form
    example: tuple[int, ...]
    data: str
    epochs: int
    factors: tuple[int, ...] = FACTORS
    train_images: int | None = None
    variants: bool = False


BODIES = {
    "mlp": Body(lambda w: mlp((800, *w, 10)), (400, 100), "1", "padded", (800,), "mnist", 15),
    "conv": Body(small_conv, (32, 64, 128, 256), "1", "maps", (1, 28, 28), "mnist", 4, train_images=30_000),
    "cifar": Body(
        wide_conv,
        (64, 128, 256, 256),
        "1",
        "maps",
        (3, 32, 32),
        "cifar10",
        6,
        (4, 8),
        train_images=20_000,
        variants=True,
    ),
}


def tuning(body: str, data: str, *, epochs: int, limit: int | None) -> list[Job]:
    """One training per kind and peak learning rate, at eight times fewer weights, judged by held-out images."""
    told = {"body": body, "data": data, "epochs": epochs, "limit": limit, "seed": 0, "judged": "held out"}
    kinds = [("dense", 1), ("sparse", 8), ("narrow", 8)]
    return [{**told, "kind": kind, "factor": factor, "lr": lr} for kind, factor in kinds for lr in RATES]


def final(
    body: str, tuned: Sequence[Outcome], data: str, *, epochs: int, seeds: Sequence[int], limit: int | None
) -> list[Job]:
    """One training per kind, factor and seed, judged by the test images; `DEAR` variants at the first seed."""
    rates = {
        kind: max((o for o in tuned if o["kind"] == kind), key=lambda o: o["held_out"][-1])["lr"]
        for kind in ("dense", "sparse", "narrow")
    }
    told = {"body": body, "data": data, "epochs": epochs, "limit": limit, "judged": "test"}
    chosen = BODIES[body]
    names = ("sparse", "narrow", *(("narrow-macs",) if chosen.form == "maps" else ()))
    kinds: list[dict[str, Any]] = [{"kind": "dense", "factor": 1}]
    kinds += [{"kind": kind, "factor": factor} for factor in chosen.factors for kind in names]
    compared = [
        {"kind": kind, "factor": chosen.factors[0], "lr": rates[kind.partition("-")[0]]}
        for kind in ("sparse", "narrow-macs")
    ]
    dear: list[dict[str, Any]] = []
    if chosen.variants:
        kinds += [{**one, "variant": variant} for variant in VARIANTS if variant not in DEAR for one in compared]
        dear = [{**one, "variant": variant} for variant in DEAR if variant != "taught" for one in compared]
    jobs = [
        {**told, "seed": seed, "lr": rates[kind["kind"].partition("-")[0]], **kind}
        for seed in seeds
        for kind in kinds
    ]
    if dear:
        jobs[0]["students"] = compared
    return jobs + [{**told, "seed": seeds[0], **kind} for kind in dear]


def run(job: Job) -> Outcome:
    """Trains one network and measures it; and its students, if the job names some."""
    net, outcome = _trained(job, None)
    if "students" in job:
        taught = [{**job, **student, "variant": "taught"} for student in job["students"]]
        outcome["students"] = [_trained(student, net)[1] for student in taught]
    return outcome


def _trained(job: Job, teacher: nn.Module | None) -> tuple[nn.Module, Outcome]:
    body, variant = BODIES[job["body"]], job.get("variant", "")
    train_images, test = images(job["data"], body.form, job["limit"])
    judged_by = test
    if job["judged"] == "held out":
        train_images, judged_by = held_out(train_images)
    net = build(job["body"], job["kind"], job["factor"], job["seed"], variant)
    protocol = Protocol(
        epochs=job["epochs"] * (2 if variant == "longer" else 1),
        lr=job["lr"],
        augment=job["body"] == "cifar",
        distill=0.0 if teacher is None else 0.5,
    )
    learnt = train_images.take(slice(body.train_images))
    spent = train(net, learnt, protocol, seed=job["seed"], loss=JointLoss(), teacher=teacher)
    counts = count(net, torch.zeros(1, *body.example))
    return net, {
        **{key: job[key] for key in ("kind", "factor", "seed", "lr")},
        "variant": variant,
        "train_s": spent,
        "weights": counts.weights,
        "macs": counts.macs,
        job["judged"].replace(" ", "_"): accuracy(logits_of(net, judged_by.x), judged_by),
    }


def build(body: str, kind: str, factor: int, seed: int, variant: str = "") -> MultiExit:
    """An untrained network with one early exit.

    Args:
        body: A name in `BODIES`.
        kind: "dense", "sparse", "narrow" (the sparse one's weights), or "narrow-macs" (its MACs).
        factor: How many times fewer weights than the dense network the sparse one has at least, heads left out;
            about as many with "even" and "joined", since the first and last layers stay dense.
        seed: For weights and patterns.
        variant: Empty, or one of `VARIANTS`; "longer" and "taught" change the training alone.

    Raises:
        ConfigError: An unknown kind.
    """
    chosen = BODIES[body]
    torch.manual_seed(seed)
    if kind == "dense":
        return _with_exit(body, chosen.make(chosen.widths))
    if kind == "sparse":
        model = chosen.make(chosen.widths)
        sparsify_(model, _sparsity(body, factor, seed, variant))
        return _with_exit(body, model)
    if kind not in ("narrow", "narrow-macs"):
        raise ConfigError(f"a network is dense, sparse, narrow or narrow-macs, not {kind!r}")
    return _with_exit(body, chosen.make(_narrow_widths(body, kind, factor, variant)))


def _sparsity(body: str, factor: int, seed: int, variant: str) -> SparsityConfig:
    if variant == "even":
        return SparsityConfig(density=1 / factor, seed=seed)
    if variant == "joined":
        return SparsityConfig(density=1 / factor, blocks=2 * factor, seed=seed)
    dense = BODIES[body].make(BODIES[body].widths)
    weights = count(dense, torch.zeros(1, *BODIES[body].example)).weights
    early: dict[str, float | None] = {"0.*": None, "1.*": None} if variant == "late" else {}
    return SparsityConfig(max_weights=weights // factor, max_blocks=64, overrides=early, seed=seed)


def _with_exit(body: str, model: nn.Module) -> MultiExit:
    return with_exit(model, BODIES[body].tap, torch.zeros(1, *BODIES[body].example))


@functools.cache
def _narrow_widths(body: str, kind: str, factor: int, variant: str) -> tuple[int, ...]:
    """Widths of the dense network that costs as much as the sparse one, exit included."""
    chosen, example = BODIES[body], torch.zeros(1, *BODIES[body].example)

    def cost(net: nn.Module) -> int:
        counts: Counts = count(net, example)
        return counts.weights if kind == "narrow" else counts.macs

    with torch.random.fork_rng(devices=[]):
        target = cost(build(body, "sparse", factor, 0, variant))

        def make(widths: Sequence[int]) -> Any:
            return _with_exit(body, chosen.make(widths))

        return narrowed(chosen.widths, make, cost, target)
