"""A plain training loop for the studies: images in memory, one thread, everything seeded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp.config import Config
from offramp.evalmode import eval_mode

__all__ = ["Protocol", "Samples", "logits_of", "train"]

Logits = Tensor | tuple[Tensor, ...]


class Protocol(Config):
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        lr: The learning rate: the first one of "keras", the peak of "one-cycle".
        schedule: "keras" is Adam with lr/(1 + 1e-5·step), as the published code has it; "one-cycle" is AdamW
            on one cycle up and down.
        batch: Images per step.
        weight_decay: Decoupled, for "one-cycle".
        augment: Random shifts of up to two pixels and mirror images.
        distill: The share of the loss that comes from a teacher's softened logits (temperature 4).
    """

    epochs: int
    lr: float
    schedule: Literal["keras", "one-cycle"] = "one-cycle"
    batch: int = 128
    weight_decay: float = 0.0
    augment: bool = False
    distill: float = 0.0


@dataclass(frozen=True)
class Samples:
    """Inputs, float32 with the batch first, and class indices."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: slice | NDArray[np.int64]) -> Samples:
        """Those at these places."""
        return Samples(self.x[index], self.y[index])


def train(
    net: nn.Module,
    data: Samples,
    protocol: Protocol,
    *,
    seed: int,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    teacher: nn.Module | None = None,
) -> float:
    """Trains a network in place; gives the seconds of processor time that it took.

    Args:
        net: Any network.
        data: What it learns from.
        protocol: How.
        seed: For the order of the images and their distortions.
        loss: Takes what the network gives and the class indices.
        teacher: Whose logits are learnt too, if the protocol distills.
    """
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = -(-len(data) // protocol.batch)
    steps = protocol.epochs * steps_per_epoch
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    if protocol.schedule == "keras":
        optimizer = torch.optim.Adam(net.parameters(), lr=protocol.lr, eps=1e-7, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 1e-5 * step))
    else:
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=protocol.lr, weight_decay=protocol.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, protocol.lr, total_steps=max(2, steps))
    begin = time.process_time()
    net.train()
    for _ in range(protocol.epochs):
        order = torch.randperm(len(data), generator=generator)
        for step in range(steps_per_epoch):
            places = order[step * protocol.batch : (step + 1) * protocol.batch]
            x, y = data.x[places], data.y[places]
            if protocol.augment:
                x = _distorted(x, generator)
            out = net(x)
            cost = loss(out, y)
            if teacher is not None and protocol.distill:
                cost = (1 - protocol.distill) * cost + protocol.distill * _taught(out, teacher, x)
            optimizer.zero_grad(set_to_none=True)
            cost.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    net.eval()
    return time.process_time() - begin


def logits_of(net: nn.Module, x: Tensor) -> tuple[NDArray[np.float32], ...]:
    """The logits of every exit, or of the only one; each (N, classes)."""
    columns: list[Sequence[Tensor]] = []
    with eval_mode(net), torch.inference_mode():
        for part in torch.split(x, 1000):
            out = net(part)
            columns.append(out if isinstance(out, tuple) else (out,))
    return tuple(torch.cat(column).numpy() for column in zip(*columns, strict=True))


def _distorted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to two pixels, every image of the batch alike, and half of the images mirrored."""
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    shifted = F.pad(x, (2, 2, 2, 2))[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, shifted.flip(3), shifted)


def _taught(out: Logits, teacher: nn.Module, x: Tensor) -> Tensor:
    """What the last exit loses against the teacher (Hinton et al. 2015, arXiv 1503.02531), temperature 4."""
    student = out[-1] if isinstance(out, tuple) else out
    with torch.no_grad():
        goal = teacher(x)
    goal = goal[-1] if isinstance(goal, tuple) else goal
    soft = F.log_softmax(student / 4, 1), F.log_softmax(goal / 4, 1)
    return 16 * F.kl_div(*soft, reduction="batchmean", log_target=True)
