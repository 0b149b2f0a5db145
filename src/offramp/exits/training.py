"""Training of multi-exit networks: one LightningModule, and `fit` around it."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from torch import Tensor, nn

from offramp.errors import ConfigError
from offramp.exits.network import MultiExit
from offramp.exits.objective import JointLoss

__all__ = ["FitResult", "MultiExitModule", "fit"]

Batches = Iterable[Sequence[Tensor]]
Objective = Callable[[Sequence[Tensor], Tensor], Tensor]


class MultiExitModule(L.LightningModule):
    """A `MultiExit` network with its loss and optimiser, for any Lightning `Trainer`.

    Batches are pairs of inputs and class indices. Logs the training loss and, per exit, the validation
    accuracy as `exit_0`, `exit_1`, ….

    Args:
        net: The network.
        loss: Takes the logits of every exit and the class indices.
        lr: The peak learning rate of Adam; it follows one cycle over the whole training
            (Smith and Topin 2018, arXiv 1708.07120).
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self, net: MultiExit, loss: Objective | None = None, *, lr: float = 3e-3, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss or JointLoss()
        self.lr, self.weight_decay = lr, weight_decay

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        x, y = batch
        loss = self.loss(self.net(x), y)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Logs each exit's accuracy on one batch."""
        x, y = batch
        for i, logits in enumerate(self.net(x)):
            right = (logits.argmax(dim=1) == y).float().mean()
            self.log(f"exit_{i}", right, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(y))

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle schedule over the whole training, resumed or not."""
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        # A plain function, so that no checkpoint brings an older number of steps back.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _one_cycle(progress: float) -> float:
    """The share of the peak learning rate: up from 1/25 over the first 30 %, then down to 1/10,000."""
    warm = 0.3
    if progress < warm:
        begin, end, part = 1 / 25, 1.0, progress / warm
    else:
        begin, end, part = 1.0, 1e-4, min(1.0, (progress - warm) / (1 - warm))
    return end + (begin - end) * (1 + math.cos(math.pi * part)) / 2


@dataclass(frozen=True)
class FitResult:
    """What a training run leaves besides the trained network.

    Attributes:
        train_s: Wall time in seconds, validation included.
        epochs: Epochs trained in total, those before a resumption included.
        history: Per epoch the validation accuracy of every exit.
    """

    train_s: float
    epochs: int
    history: tuple[tuple[float, ...], ...] = field(default=())


class _History(Callback):
    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("exit_")}
            self.rows.append(tuple(found[f"exit_{i}"] for i in range(len(found))))


def fit(
    net: MultiExit,
    train_loader: Batches,
    val_loader: Batches | None = None,
    *,
    epochs: int,
    loss: Objective | None = None,
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
    accelerator: str = "auto",
) -> FitResult:
    """Trains all exits of a network jointly, in place, with a progress bar.

    Args:
        net: The network; it is left on the CPU in evaluation mode.
        train_loader: Batches of inputs and class indices.
        val_loader: Batches for the accuracy after each epoch.
        epochs: Passes over the training data.
        loss: Takes the logits of every exit and the class indices; `JointLoss()` if left out.
        lr: The peak learning rate.
        weight_decay: Decoupled weight decay.
        checkpoint_dir: Where to keep a checkpoint after each epoch. If one is there, training resumes from it.
        progress: Whether to draw the progress bar.
        accelerator: Lightning's name for where to train: "auto", "cpu", "gpu", ….

    Raises:
        ConfigError: Fewer than one epoch, or no batches.
    """
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, not {epochs}")
    first = next(iter(train_loader), None)
    if first is None:
        raise ConfigError("the training loader gives no batches")
    if any(isinstance(p, nn.UninitializedParameter) for p in net.parameters()):
        net.materialise(first[0])
    history = _History()
    callbacks: list[Callback] = [history]
    if progress:
        callbacks.append(RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3f")))
    resume: str | None = None
    if checkpoint_dir is not None:
        callbacks.append(ModelCheckpoint(checkpoint_dir, filename="last", enable_version_counter=False))
        last = Path(checkpoint_dir) / "last.ckpt"
        resume = str(last) if last.exists() else None
    module = MultiExitModule(net, loss, lr=lr, weight_decay=weight_decay)
    with _quiet():
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator=accelerator,
            devices=1 if accelerator == "cpu" else "auto",
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=checkpoint_dir is not None,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        start = time.perf_counter()
        trainer.fit(module, train_loader, val_loader, ckpt_path=resume)
    spent = time.perf_counter() - start
    net.cpu().eval()
    return FitResult(spent, trainer.current_epoch, tuple(history.rows))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice on loaders and devices, which is for its own users."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
