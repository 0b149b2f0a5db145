"""Trains the exits of a published network in several ways, and keeps what is trained."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from offramp.bundle.bundle import write_whole
from offramp.errors import ConfigError
from offramp.exits.cache import CachedFeatures, FeatureCache
from offramp.exits.network import MultiExit
from offramp.exits.objective import DistilledLoss, JointLoss
from offramp.exits.training import Objective, fit
from offramp.recipes import BATCH, Splits
from offramp.reproduce.subjects import Subject

__all__ = ["PASS", "Plan", "train_ways"]

#: Images that a network sees at once where nothing learns. With many more, the maps of early layers are so large
#: that getting memory for them takes as long as computing them.
PASS = 25


@dataclass(frozen=True)
class Plan:
    """How a subject is trained.

    Attributes:
        epochs: Passes over the training images.
        seed: For the heads' first weights.
        joint: Whether everything learns; otherwise the backbone stays as it is.
        folder: Where what is trained is kept.
    """

    epochs: int
    seed: int
    joint: bool
    folder: Path


def train_ways(subject: Subject, splits: Splits, plan: Plan, console: Console) -> dict[str, MultiExit]:
    """One trained network per way, by its name; the last one is the one to use.

    Frozen, exits learn from the labels ("separate") and also from the last exit ("distilled"), both from features
    computed once; a classifier that the backbone needs learns from the labels beside them. Otherwise everything
    learns from the labels ("joint"). What is found in the folder is not trained again.

    Raises:
        ConfigError: A folder that cannot be written to.
        OfframpError: As `fit` says.
    """
    weights = subject.exit_weights
    ways: dict[str, Objective] = (
        {"joint": JointLoss(weights)}
        if plan.joint
        else {"distilled": DistilledLoss(weights), "separate": JointLoss(weights)}
    )
    classes = len(splits.train.classes)
    backbone = subject.backbone()
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # depthwise layers: twice as fast
    nets = {way: subject.net(backbone, classes, plan.seed) for way in ways}
    keys = {way: _key(net, way, subject, splits, plan) for way, net in nets.items()}
    left = [way for way in ways if not _found(nets[way], plan, keys[way])]
    for way in sorted(set(ways) - set(left)):
        console.print(f"{way}: found in {plan.folder}")
    if left and plan.joint:
        _joint(nets[left[0]], ways[left[0]], subject, splits, plan, console)
        _keep(nets[left[0]], plan, keys[left[0]])
    elif left:
        with _features(nets[left[0]], subject, splits, console) as features:
            for way in left:
                console.print(f"{way}: {plan.epochs} epochs on kept features")
                fit(
                    nets[way],
                    features.batches(shuffled=True, size=BATCH),
                    epochs=plan.epochs,
                    loss=ways[way],
                    lr=subject.lr,
                    backbone_lr=subject.backbone_lr,
                    weight_decay=subject.weight_decay,
                    frozen=True,
                    cache=False,  # these are the features
                    progress=console.is_terminal,
                )
                _keep(nets[way], plan, keys[way])
    return nets


@contextmanager
def _features(net: MultiExit, subject: Subject, splits: Splits, console: Console) -> Iterator[CachedFeatures]:
    mirrored = " and of their mirror images" if subject.mirrored else ""
    console.print(f"features of {len(splits.train):,} training images{mirrored}")
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    shown = "features" if console.is_terminal else None
    batches: Any = splits.batches(splits.train, size=PASS)
    features = CachedFeatures(net, _Mirrored(batches) if subject.mirrored else batches, FeatureCache(), shown)
    net.cpu()
    try:
        yield features
    finally:
        features.close()


class _Mirrored:
    """Every batch of images, then the same mirrored: features that are kept cannot be varied later."""

    def __init__(self, batches: DataLoader[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return 2 * len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self._batches:
            yield x, y
            yield x.flip(-1), y


def _joint(
    net: MultiExit, loss: Objective, subject: Subject, splits: Splits, plan: Plan, console: Console
) -> None:
    console.print(f"joint: {plan.epochs} epochs, everything learns")
    checkpoints = plan.folder / f"{subject.name}-joint-checkpoints"
    fit(
        net,
        splits.batches(splits.train, shuffle_seed=plan.seed),
        epochs=plan.epochs,
        loss=loss,
        lr=subject.lr,
        backbone_lr=subject.backbone_lr,
        weight_decay=subject.weight_decay,
        checkpoint_dir=checkpoints,
        progress=console.is_terminal,
    )
    for file in checkpoints.iterdir():
        file.unlink()
    checkpoints.rmdir()


def _key(net: MultiExit, way: str, subject: Subject, splits: Splits, plan: Plan) -> dict[str, Any]:
    """What a training's result depends on, but for the data themselves and the backbone's weights."""
    return {
        "way": way,
        "network": subject.name,
        "parts": str(nn.ModuleList([*net.heads, *([net.classifier] if net.classifier is not None else [])])),
        "data": splits.name,
        "sizes": splits.sizes,
        "input": [subject.preprocessing.height, str(getattr(net.model, "enlarge", ""))],
        "epochs": plan.epochs,
        "seed": [plan.seed, splits.seed],
        "rates": [subject.lr, subject.backbone_lr, subject.weight_decay],
        "taps": net.exit_names,
        "mirrored": subject.mirrored and not plan.joint,
    }


def _file(plan: Plan, key: dict[str, Any]) -> Path:
    return plan.folder / f"{key['network']}-{key['way']}.pt"


def _keep(net: MultiExit, plan: Plan, key: dict[str, Any]) -> None:
    """Writes what was learnt: all of the network, or what is not its backbone."""
    state = {name: t for name, t in net.state_dict().items() if plan.joint or not name.startswith("model.")}
    content = io.BytesIO()
    torch.save({"key": json.dumps(key), "state": state}, content)
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_whole(_file(plan, key), content.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot write to {plan.folder}: {error.strerror}") from error


def _found(net: MultiExit, plan: Plan, key: dict[str, Any]) -> bool:
    """Loads what an earlier run kept, if it was trained in just this way."""
    path = _file(plan, key)
    if not path.is_file():
        return False
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if kept["key"] != json.dumps(key):
            return False
        missing, unexpected = net.load_state_dict(kept["state"], strict=False)
    except Exception:  # whatever the bytes lead to: it is trained again
        return False
    return not unexpected and (not missing or (not plan.joint and all(n.startswith("model.") for n in missing)))
