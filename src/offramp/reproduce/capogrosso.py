"""Predefined sparsity, early exit and split computing together (Capogrosso et al. 2024, arXiv 2407.11763).

The published protocol: images of 28×28 padded to 800 values in [0, 1], ReLU, cross-entropy, Adam with
lr/(1 + 1e-5·step), batches of 256, 50 epochs, He-normal weights by the *dense* fan-in, bias 0.1. The learning
rate is chosen by images held out of the training set; then the network is trained on all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from offramp.exits.calibration import calibrate_logits
from offramp.exits.confidence import softmax
from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit
from offramp.exits.objective import JointLoss
from offramp.interval import mean
from offramp.reproduce.images import held_out, images
from offramp.reproduce.loop import Protocol, Samples, logits_of, train
from offramp.reproduce.networks import he_normal_, mlp
from offramp.reproduce.study import Job, Outcome
from offramp.sparse.block import Layout
from offramp.sparse.clash_free import ClashFreePattern
from offramp.sparse.density import density_from_d_out
from offramp.sparse.layers import SparseLayer, SparseLinear
from offramp.sparse.pattern import Pattern
from offramp.sparse.registry import make_pattern

__all__ = ["MAX_DROP", "PATTERNS", "Net", "build", "final", "name_of", "published", "run", "titles", "tuning"]

#: The block pattern, Dey's structured one, and the three clash-free types.
PATTERNS = ("block", "structured", "clash_free-1", "clash_free-2", "clash_free-3")
#: Learning rates to choose from.
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
#: Trainings by which a learning rate is judged: a narrow network may learn nothing at one seed and all at another.
TUNING_SEEDS = 3
#: Accuracy that a gate may cost on the held-out images.
MAX_DROP = 0.005

#: A network's description: widths, out-degrees (None for dense), the pattern's name, whether it has exits.
Net = dict[str, Any]

_PAPER = (800, 40, 40, 10)
_WIDE = (800, 100, 10)
#: A shape at which the sparse network keeps the dense one's accuracy.
_LARGE = (800, 400, 100, 10)


def published() -> list[Net]:
    """The published configurations."""
    found = [_net((800, 3, 3, 10)), _net(_PAPER)]
    found += [_net(_PAPER, (2, 9, 10), pattern) for pattern in PATTERNS]
    found += [_net(_WIDE), _net(_WIDE, (50, 10))]
    found += [_net(_WIDE, (20, 10), pattern) for pattern in PATTERNS[:3]]
    found += [_net(_WIDE, (10, 10)), _net(_WIDE, (5, 10))]
    return found


def titles() -> list[Net]:
    """{dense, sparse, narrow} with an exit after every hidden layer: the paper's title."""
    found = [_net(_PAPER), _net(_PAPER, (2, 9, 10)), _net((800, 3, 3, 10))]
    found += [_net(_LARGE), _net(_LARGE, (40, 25, 10)), _net((800, 52, 13, 10))]
    return [{**net, "exits": True} for net in found]


def tuning(nets: Sequence[Net], data: str, *, epochs: int, limit: int | None) -> list[Job]:
    """Trainings per network, learning rate and seed, on five sixths of the training images, judged by the rest."""
    told = {"data": data, "epochs": epochs, "limit": limit, "judged": "held out"}
    return [
        {**told, "net": net, "lr": lr, "seed": seed}
        for net in nets
        for lr in RATES
        for seed in range(1 if limit else TUNING_SEEDS)
    ]


def final(
    nets: Sequence[Net],
    tuned: Sequence[Outcome],
    data: str,
    *,
    epochs: int,
    seeds: Sequence[int],
    limit: int | None,
) -> list[Job]:
    """One training per network and seed, with the learning rate that was best for the network."""
    jobs: list[Job] = []
    for net in nets:
        mine = [o for o in tuned if o["net"] == net]
        rates = list(dict.fromkeys(o["lr"] for o in mine))
        best = max(rates, key=lambda lr: mean([o["held_out"][-1] for o in mine if o["lr"] == lr]))
        told = {"net": net, "data": data, "epochs": epochs, "limit": limit, "lr": best, "judged": "test"}
        jobs += [{**told, "seed": seed} for seed in seeds]
    return jobs


def run(job: Job) -> Outcome:
    """Trains one network and measures it.

    Networks without exits learn from all training images, as published; those with exits leave a sixth of
    them to choose thresholds by.
    """
    net: Net = job["net"]
    train_images, test = images(job["data"], "padded", job["limit"])
    apart = job["judged"] == "held out" or net["exits"]
    learnt, rest = held_out(train_images) if apart else (train_images, test)
    model = build(net, job["seed"])
    protocol = Protocol(epochs=job["epochs"], lr=job["lr"], schedule="keras", batch=256)
    loss = JointLoss() if net["exits"] else F.cross_entropy
    spent = train(model, learnt, protocol, seed=job["seed"], loss=loss)
    outcome: Outcome = {"net": net, "seed": job["seed"], "lr": job["lr"], "train_s": spent}
    if job["judged"] == "held out":
        return {**outcome, "held_out": accuracy(logits_of(model, rest.x), rest)}
    logits = logits_of(model, test.x)
    outcome |= {"test": accuracy(logits, test), "weights": [layer.weight.numel() for layer in _layers(model)]}
    if net["exits"]:
        outcome["gates"] = _gates(logits_of(model, rest.x), rest, logits, test)
    return outcome


def build(net: Net, seed: int) -> nn.Module:
    """An untrained network by its description, with the published initial weights."""
    torch.manual_seed(seed)
    widths, degrees = net["widths"], net["d_out"]
    model = mlp(widths)
    for i, d_out in enumerate(degrees or ()):
        dense = model[2 * i]
        if d_out < widths[i + 1]:
            assert isinstance(dense, nn.Linear)
            pattern = _pattern(net["pattern"], widths[i], widths[i + 1], d_out, seed + i, strided=i % 2 == 1)
            model[2 * i] = SparseLinear.from_dense(dense, pattern)
    he_normal_(model, widths[:-1], bias=0.1)
    if not net["exits"]:
        return model
    taps = {str(2 * i + 1): PooledHead(widths[-1]) for i in range(len(widths) - 2)}
    return MultiExit(model, taps, example_input=torch.zeros(1, widths[0]))


def name_of(net: Net) -> str:
    """What tables call a network."""
    shape = "-".join(map(str, net["widths"]))
    if net["d_out"] is None:
        return f"{shape} dense"
    pattern = net["pattern"].replace("clash_free-", "clash-free type ")
    return f"{shape} ({', '.join(map(str, net['d_out']))}) {pattern}"


def accuracy(logits: Sequence[NDArray[np.float32]], samples: Samples) -> list[float]:
    """The share of right answers of every exit."""
    labels = samples.y.numpy()
    return [float((z.argmax(axis=1) == labels).mean()) for z in logits]


def _net(widths: Sequence[int], d_out: Sequence[int] | None = None, pattern: str = "block") -> Net:
    degrees = None if d_out is None else list(d_out)
    kind = None if d_out is None else pattern
    return {"widths": list(widths), "d_out": degrees, "pattern": kind, "exits": False}


def _pattern(name: str, n_left: int, n_right: int, d_out: int, seed: int, *, strided: bool) -> Pattern:
    kind, _, number = name.partition("-")
    density = density_from_d_out(n_left, n_right, d_out).density
    layout: Layout = "strided" if strided else "contiguous"
    pattern = make_pattern(kind, n_left, n_right, density, layout=layout, seed=seed)
    return dataclasses.replace(pattern, kind=int(number)) if isinstance(pattern, ClashFreePattern) else pattern


def _layers(model: nn.Module) -> list[nn.Linear | SparseLayer]:
    """The network's own layers, heads left out."""
    own = model.model if isinstance(model, MultiExit) else model
    return [m for m in own.modules() if isinstance(m, (nn.Linear, SparseLayer))]


def _gates(
    held: Sequence[NDArray[np.float32]], rest: Samples, logits: Sequence[NDArray[np.float32]], test: Samples
) -> list[dict[str, float]]:
    """Per early exit, alone with the server behind it: the share that leaves, and the accuracy of all."""
    labels, last = test.y.numpy(), logits[-1].argmax(axis=1)
    gates = []
    for known, z in zip(held[:-1], logits[:-1], strict=True):
        found = calibrate_logits([known, held[-1]], rest.y.numpy(), max_drop=MAX_DROP, delta=None)
        leaves = softmax(z, found.temperatures[0]).max(axis=1) >= found.thresholds[0]
        answer = np.where(leaves, z.argmax(axis=1), last)
        gates.append({"share": float(leaves.mean()), "accuracy": float((answer == labels).mean())})
    return gates
