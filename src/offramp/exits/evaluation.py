"""What a trained multi-exit network does on held-out data, and its calibration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import ConfigError
from offramp.evalmode import eval_mode
from offramp.exits.calibration import Calibration, Crossing, calibrate_logits
from offramp.exits.network import MultiExit
from offramp.exits.sampling import CutSamples
from offramp.inputs import on_device, pair, run, tensors

__all__ = ["Evaluation", "calibrate", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Logits of every exit on a data set.

    Attributes:
        logits: Per exit (N, classes), the last exit's last.
        labels: (N,) class indices.
        crossing: Per cut a few samples, drawn at random, of the tensors that cross; the inputs (cut −1) first.
    """

    logits: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64]
    crossing: Crossing

    @property
    def accuracy(self) -> tuple[float, ...]:
        """The share of right answers, per exit."""
        return tuple(float((z.argmax(axis=1) == self.labels).mean()) for z in self.logits)


def evaluate(net: MultiExit, loader: Iterable[Sequence[Any]]) -> Evaluation:
    """Runs a network over batches of inputs and class indices, without learning.

    Args:
        net: The network, on whatever device.
        loader: Pairs of inputs (a tensor, a tuple of tensors, or a dict of tensors by argument name) and labels.

    Raises:
        ConfigError: A loader without batches, or batches of another form.
    """
    logits: list[list[Tensor]] = []
    labels: list[Tensor] = []
    inputs, kept = 0, CutSamples()
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    with eval_mode(net), torch.inference_mode():
        for batch in loader:
            x, y = pair(batch)
            x = on_device(x, device)
            features, outputs = run(net.forward_features, x)
            logits.append([z.float().cpu() for z in outputs])
            labels.append(y.cpu())
            given = [t for t in tensors(x) if t.dim()]
            inputs = len(given)
            kept.add([*given, *features], _rows)
    if not labels:
        raise ConfigError("the loader gives no batches")
    return Evaluation(
        tuple(torch.cat(column).numpy() for column in zip(*logits, strict=True)),
        torch.cat(labels).numpy(),
        (tuple(kept.kept[:inputs]), *((feature,) for feature in kept.kept[inputs:])),
    )


def _rows(tensor: Tensor, rows: NDArray[np.int64]) -> NDArray[np.generic]:
    chosen = tensor[torch.from_numpy(rows).to(tensor.device)].cpu()
    array: NDArray[np.generic] = (chosen.float() if chosen.is_floating_point() else chosen).numpy()
    return array


def calibrate(
    net: MultiExit,
    loader: Iterable[Sequence[Any]],
    *,
    max_drop: float = 0.005,
    delta: float | None = 0.1,
    confidence: str = "max_softmax",
    seed: int = 0,
) -> Calibration:
    """Fits a temperature per exit and the gates' threshold on held-out data; `export` writes them.

    With probability at least 1 − `delta`, all gates together cost at most `max_drop` of accuracy on inputs
    drawn like the held-out ones: see `calibrate_logits` for how, and what must hold.

    Args:
        net: A trained network; the result is also kept as `net.calibration`.
        loader: Held-out batches, not those the network was trained on.
        max_drop: Accuracy that the gates together may cost against the last exit, as a fraction.
        delta: The probability that they cost more. None promises nothing and takes the threshold that keeps
            `max_drop` on these very samples: for when they are too few to promise anything by.
        confidence: What is compared with the threshold: "max_softmax", "entropy" or "margin".
        seed: Chooses which samples fit and which test.

    Raises:
        ConfigError: Fewer than 10 samples, an unknown confidence, `max_drop` outside [0, 1], or `delta`
            outside (0, 1).
        InputError: Logits that are not finite, labels that are no class indices.
    """
    seen = evaluate(net, loader)
    net.calibration = calibrate_logits(
        seen.logits,
        seen.labels,
        max_drop=max_drop,
        delta=delta,
        confidence=confidence,
        crossing=seen.crossing,
        seed=seed,
    )
    return net.calibration
