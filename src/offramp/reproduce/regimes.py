"""Where predefined sparsity pays: sparse against narrow, from 2x to 32x fewer weights than the dense network.

The narrow rivals are dense networks of the same form with fewer neurons: one with the sparse network's weights,
one with its multiply-accumulates (for fully connected networks these are the same). All get the same images,
epochs and schedule; the peak learning rate is chosen per kind on images held out of the training set.
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
from offramp.reproduce.networks import Counts, count, mlp, narrowed, small_conv, wide_conv, with_exit
from offramp.reproduce.study import Job, Outcome
from offramp.sparse.config import SparsityConfig
from offramp.sparse.sparsify import sparsify_

__all__ = ["BODIES", "FACTORS", "Body", "build", "final", "run", "tuning"]

FACTORS = (2, 4, 8, 16, 32)
#: Peak learning rates to choose from.
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)


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


BODIES = {
    "mlp": Body(lambda w: mlp((800, *w, 10)), (400, 100), "1", "padded", (800,), "mnist", 15),
    "conv": Body(small_conv, (32, 64, 128, 256), "1", "maps", (1, 28, 28), "mnist", 4, train_images=30_000),
    "cifar": Body(
        wide_conv, (64, 128, 256, 256), "1", "maps", (3, 32, 32), "cifar10", 6, (4, 8), train_images=20_000
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
    """One training per kind, factor and seed, judged by the test images."""
    rates = {
        kind: max((o for o in tuned if o["kind"] == kind), key=lambda o: o["held_out"][-1])["lr"]
        for kind in ("dense", "sparse", "narrow")
    }
    told = {"body": body, "data": data, "epochs": epochs, "limit": limit, "judged": "test"}
    kinds: list[tuple[str, int]] = [("dense", 1)]
    for factor in BODIES[body].factors:
        kinds += [("sparse", factor), ("narrow", factor)]
        if BODIES[body].form == "maps":
            kinds.append(("narrow-macs", factor))
    return [
        {**told, "kind": kind, "factor": factor, "seed": seed, "lr": rates[kind.partition("-")[0]]}
        for seed in seeds
        for kind, factor in kinds
    ]


def run(job: Job) -> Outcome:
    """Trains one network and measures it."""
    body = BODIES[job["body"]]
    train_images, test = images(job["data"], body.form, job["limit"])
    judged_by = test
    if job["judged"] == "held out":
        train_images, judged_by = held_out(train_images)
    net = build(job["body"], job["kind"], job["factor"], job["seed"])
    protocol = Protocol(epochs=job["epochs"], lr=job["lr"], augment=job["body"] == "cifar")
    spent = train(net, train_images.take(slice(body.train_images)), protocol, seed=job["seed"], loss=JointLoss())
    counts = count(net, torch.zeros(1, *body.example))
    return {
        **{key: job[key] for key in ("kind", "factor", "seed", "lr")},
        "train_s": spent,
        "weights": counts.weights,
        "macs": counts.macs,
        job["judged"].replace(" ", "_"): accuracy(logits_of(net, judged_by.x), judged_by),
    }


def build(body: str, kind: str, factor: int, seed: int) -> MultiExit:
    """An untrained network with one early exit.

    Args:
        body: A name in `BODIES`.
        kind: "dense", "sparse", "narrow" (the sparse one's weights), or "narrow-macs" (its MACs).
        factor: How many times fewer weights than the dense network the sparse one has at least, heads left out.
        seed: For weights and patterns.

    Raises:
        ConfigError: An unknown kind.
    """
    chosen = BODIES[body]
    torch.manual_seed(seed)
    if kind == "dense":
        return _with_exit(body, chosen.make(chosen.widths))
    if kind == "sparse":
        model = chosen.make(chosen.widths)
        sparsify_(model, _budget(body, factor, seed))
        return _with_exit(body, model)
    if kind not in ("narrow", "narrow-macs"):
        raise ConfigError(f"a network is dense, sparse, narrow or narrow-macs, not {kind!r}")
    return _with_exit(body, chosen.make(_narrow_widths(body, kind, factor)))


def _budget(body: str, factor: int, seed: int) -> SparsityConfig:
    dense = BODIES[body].make(BODIES[body].widths)
    weights = count(dense, torch.zeros(1, *BODIES[body].example)).weights
    return SparsityConfig(max_weights=weights // factor, max_blocks=64, seed=seed)


def _with_exit(body: str, model: nn.Module) -> MultiExit:
    return with_exit(model, BODIES[body].tap, torch.zeros(1, *BODIES[body].example))


@functools.cache
def _narrow_widths(body: str, kind: str, factor: int) -> tuple[int, ...]:
    """Widths of the dense network that costs as much as the sparse one, exit included."""
    chosen, example = BODIES[body], torch.zeros(1, *BODIES[body].example)

    def cost(net: nn.Module) -> int:
        counts: Counts = count(net, example)
        return counts.weights if kind == "narrow" else counts.macs

    with torch.random.fork_rng(devices=[]):
        target = cost(build(body, "sparse", factor, 0))

        def make(widths: Sequence[int]) -> Any:
            return _with_exit(body, chosen.make(widths))

        return narrowed(chosen.widths, make, cost, target)
