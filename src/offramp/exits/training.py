"""Training of multi-exit networks: one LightningModule, and `fit` around it."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.utils.data import DataLoader

from offramp.errors import ConfigError
from offramp.exits.cache import CachedFeatures, FeatureCache, Seen
from offramp.exits.network import MultiExit
from offramp.exits.objective import JointLoss
from offramp.inputs import Inputs, pair, run

__all__ = ["FitResult", "MultiExitModule", "fit"]

Batches = Iterable[Sequence[Any]]
Objective = Callable[[Sequence[Tensor], Tensor], Tensor]


class MultiExitModule(L.LightningModule):
    """A `MultiExit` network with its loss and optimiser, for any Lightning `Trainer`.

    Batches are pairs of inputs (a tensor, a tuple of tensors, or a dict of tensors by argument name) and class
    indices. Logs the training loss and, per exit, the validation accuracy as `exit_0`, `exit_1`, ….

    Args:
        net: The network.
        loss: Takes the logits of every exit and the class indices.
        lr: The peak learning rate of Adam; it follows one cycle over the whole training
            (Smith and Topin 2018, arXiv 1708.07120).
        weight_decay: Decoupled weight decay.
        frozen: Whether only the heads learn: the backbone stays in evaluation mode and gets no gradients.
        backbone_lr: The peak learning rate of what is no early exit's head: the backbone, and the classifier
            where the network has one of its own; `lr` if left out.
    """

    def __init__(
        self,
        net: MultiExit,
        loss: Objective | None = None,
        *,
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        frozen: bool = False,
        backbone_lr: float | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss or JointLoss()
        self.lr, self.weight_decay, self.frozen = lr, weight_decay, frozen
        self.backbone_lr = lr if backbone_lr is None else backbone_lr

    def train(self, mode: bool = True) -> MultiExitModule:
        """Training mode; a frozen backbone stays in evaluation mode, so that its statistics stay as they are."""
        super().train(mode)
        if self.frozen:
            self.net.model.eval()
        return self

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        x, y = pair(batch)
        loss = self.loss(self._logits(x), y)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs each exit's accuracy on one batch."""
        x, y = pair(batch)
        for i, logits in enumerate(self._logits(x)):
            right = (logits.argmax(dim=1) == y).float().mean()
            self.log(f"exit_{i}", right, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(y))

    def configure_optimizers(self) -> Any:
        """AdamW under a one-cycle schedule over the whole training, resumed or not."""
        heads, everything = list(self.net.heads.parameters()), list(self.net.parameters())
        chosen = list(self.net.exit_parameters()) if self.frozen else everything
        early = {id(parameter) for parameter in heads}
        others = [parameter for parameter in chosen if id(parameter) not in early]
        learning: list[dict[str, Any]] = [{"params": heads}, {"params": others, "lr": self.backbone_lr}]
        optimizer = torch.optim.AdamW(
            [group for group in learning if group["params"]], lr=self.lr, weight_decay=self.weight_decay
        )
        steps = self.trainer.estimated_stepping_batches
        # A plain function, so that no checkpoint brings an older number of steps back.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes what kind of training it is, so that another kind does not go on from it."""
        checkpoint["offramp_frozen"] = self.frozen

    def _logits(self, x: Inputs) -> Sequence[Tensor]:
        if isinstance(x, Seen):
            return self.net.classify(x.features, x.last)
        if not self.frozen:
            logits: Sequence[Tensor] = run(self.net, x)
            return logits
        with torch.no_grad():
            features, last = run(self.net.backbone, x)
        return self.net.classify(features, last, run(self.net.named, x))


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
    frozen: bool = False,
    backbone_lr: float | None = None,
    cache: FeatureCache | bool = True,
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
    accelerator: str = "auto",
    devices: int | str | Sequence[int] = "auto",
) -> FitResult:
    """Trains a network with exits in place, with a progress bar on stderr.

    The loss says what is learned from, `frozen` what learns: `JointLoss()` trains exits and backbone jointly
    from the labels, with `frozen=True` the exits separately; `DistilledLoss()` lets the last exit teach the early
    ones, either way. On Ctrl-C the network keeps what it has learned so far, the last finished epoch lies in
    `checkpoint_dir`, and KeyboardInterrupt is raised.

    Args:
        net: The network; it is left on the CPU in evaluation mode. Submodules in evaluation mode stay in it
            while their parent is in training mode.
        train_loader: Batches of inputs (a tensor, a tuple of tensors, or a dict of tensors by argument name)
            and class indices.
        val_loader: Batches for the accuracy after each epoch.
        epochs: Passes over the training data.
        loss: Takes the logits of every exit and the class indices; `JointLoss()` if left out.
        lr: The peak learning rate.
        weight_decay: Decoupled weight decay.
        frozen: Whether only the heads learn, and the classifier where the network has one of its own; the
            backbone keeps every parameter and statistic.
        backbone_lr: The peak learning rate of the backbone, and of a classifier of its own; `lr` if left out.
        cache: With `frozen`, whether the backbone runs only once over the data and its features are kept, and
            how. The heads then see each input as it came that one time: with data augmentation, or inputs of
            several sizes, say False. Each of several processes keeps features of its own.
        checkpoint_dir: Where to keep a checkpoint after each epoch. If one is there, training resumes from it.
        progress: Whether to draw the progress bar.
        accelerator: Lightning's name for where to train: "auto", "cpu", "gpu", ….
        devices: Lightning's number or list of devices; on several, one process runs on each.

    Raises:
        ConfigError: Fewer than one epoch, no batches or batches of another form, nothing that could learn, or
            a checkpoint of another training.
    """
    example = _checked(epochs, train_loader, val_loader)
    if any(isinstance(p, nn.UninitializedParameter) for p in net.parameters()):
        net.materialise(example)
    if frozen and next(net.exit_parameters(), None) is None:
        raise ConfigError("with frozen=True only the heads learn, and these have no parameters")
    history = _History()
    callbacks: list[Callback] = [history]
    if progress:
        theme = RichProgressBarTheme(metrics_format=".3f")
        callbacks.append(RichProgressBar(theme=theme, console_kwargs={"stderr": True}))
    resume: Path | None = None
    if checkpoint_dir is not None:
        callbacks.append(ModelCheckpoint(checkpoint_dir, filename="last", enable_version_counter=False))
        last = Path(checkpoint_dir) / "last.ckpt"
        if last.exists():
            _check_checkpoint(last, net, frozen)
            resume = last
    module = MultiExitModule(net, loss, lr=lr, weight_decay=weight_decay, frozen=frozen, backbone_lr=backbone_lr)
    start = time.perf_counter()
    # Of a list Lightning thinks that its items are loaders.
    loaders: list[Any] = [
        DataLoader(one, batch_size=None) if isinstance(one, (list, tuple)) else one  # type: ignore[arg-type]
        for one in (train_loader, val_loader)
    ]
    with _quiet():
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator=accelerator,
            devices=devices if isinstance(devices, (int, str)) else list(devices),
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=checkpoint_dir is not None,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        caches: list[CachedFeatures] = []
        try:
            with _learning(net, frozen):
                if frozen and cache:
                    net.to(trainer.strategy.root_device)
                    how = FeatureCache() if cache is True else cache
                    for i, name in enumerate(("training", "validation")):
                        if loaders[i] is not None:
                            caches.append(CachedFeatures(net, loaders[i], how, name if progress else None))
                            loaders[i] = caches[i].batches(shuffled=i == 0)
                _run(trainer, module, loaders[0], loaders[1], resume)
        finally:
            for one in caches:
                one.close()
            net.cpu().eval()
    spent = time.perf_counter() - start
    return FitResult(spent, trainer.current_epoch, tuple(history.rows))


def _checked(epochs: int, train_loader: Batches, val_loader: Batches | None) -> Inputs:
    """The inputs of the first batch, if there is something to train with."""
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, not {epochs}")
    for loader in (train_loader, val_loader):
        if isinstance(loader, Iterator):  # the second epoch, and this check already, would find less in it
            raise ConfigError(
                f"a {type(loader).__name__} of batches can be read only once; give a list of them or a DataLoader"
            )
    first = next(iter(train_loader), None)
    if first is None:
        raise ConfigError("the training loader gives no batches")
    if isinstance(val_loader, Sized) and len(val_loader) == 0:
        raise ConfigError("the validation loader gives no batches; leave it out to train without")
    return pair(first)[0]


def _run(trainer: L.Trainer, module: MultiExitModule, train: Any, val: Any, resume: Path | None) -> None:
    """Trainer.fit, but Ctrl-C stays KeyboardInterrupt: Lightning makes it SystemExit and ignores further ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, train, val, ckpt_path=resume, weights_only=None if resume is None else True)
    except SystemExit:
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise KeyboardInterrupt from None
    finally:
        if signal.getsignal(signal.SIGINT) != handler:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _learning(net: MultiExit, frozen: bool) -> Iterator[None]:
    """Puts what learns into training mode; a frozen backbone is in evaluation mode and asks for no gradients."""
    for part in (net, net.heads, net.model):
        if not part.training:  # otherwise what somebody froze inside it stays frozen
            part.train()
    if frozen:
        net.model.eval()
    asked = [p for p in net.model.parameters() if p.requires_grad] if frozen else []
    for p in asked:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)


def _check_checkpoint(path: Path, net: MultiExit, frozen: bool) -> None:
    """That a training can go on from a checkpoint, so that nothing but our own errors comes of it."""
    way_out = "; give another checkpoint_dir, or remove it to begin anew"
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        state = {k.removeprefix("net."): v for k, v in kept["state_dict"].items() if k.startswith("net.")}
    except Exception as error:  # torch.load raises whatever the bytes lead to
        raise ConfigError(f"{path} is no checkpoint that can be read{way_out}") from error
    if kept.get("offramp_frozen", False) != frozen:
        raise ConfigError(f"{path} is of a training with frozen={not frozen}{way_out}")
    own = net.state_dict()
    shapes = [{name: t.shape for name, t in d.items() if isinstance(t, Tensor)} for d in (own, state)]
    if shapes[0] != shapes[1]:
        other = next(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        raise ConfigError(f"{path} is of another network, which differs in {other}{way_out}")
    if frozen and not all(torch.equal(t.cpu(), state[k]) for k, t in own.items() if k.startswith("model.")):
        raise ConfigError(f"{path} holds heads trained on a backbone with other weights{way_out}")


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
