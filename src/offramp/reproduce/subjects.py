"""The published networks whose exits are studied: where the exits hang, what learns, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offramp.bundle.manifest import Preprocessing
from offramp.errors import ConfigError
from offramp.exits.heads import ConvHead, DeepHead, PooledHead
from offramp.exits.network import MultiExit
from offramp.reproduce.mobilenet import FEATURES, mobilenetv2
from offramp.reproduce.resnet import resnet56

__all__ = ["Subject", "mobilenetv2_subject", "resnet56_subject"]


@dataclass(frozen=True)
class Subject:
    """A network to give exits to.

    Attributes:
        name: As files are called.
        title: As a page is called.
        backbone: Makes the network, with its weights, in evaluation mode.
        heads: By the submodule behind which an exit hangs, what makes its head from the number of classes.
        classifier_features: Features that the backbone gives to a classifier which is learnt; None where the
            backbone gives logits of its own.
        exit_weights: One per exit, the last exit's last; all 1 if None. They matter where everything learns.
        preprocessing: How an image becomes an input.
        epochs: Passes over the training images.
        lr: The peak learning rate of what is learnt anew.
        backbone_lr: The backbone's, where everything learns, and its classifier's.
        weight_decay: Decoupled weight decay.
        mirrored: Whether the exits of a frozen backbone learn from mirrored images too.
    """

    name: str
    title: str
    backbone: Callable[[], nn.Module]
    heads: Mapping[str, Callable[[int], nn.Module]]
    classifier_features: int | None
    exit_weights: tuple[float, ...] | None
    preprocessing: Preprocessing
    epochs: int
    lr: float
    backbone_lr: float
    weight_decay: float
    mirrored: bool = False

    @property
    def example(self) -> Tensor:
        """One input of zeros."""
        return torch.zeros(1, 3, self.preprocessing.height, self.preprocessing.width)

    def net(self, backbone: nn.Module, classes: int, seed: int) -> MultiExit:
        """The network with untrained heads, and an untrained classifier if it needs one."""
        torch.manual_seed(seed)
        n = self.classifier_features
        return MultiExit(
            backbone,
            {tap: make(classes) for tap, make in self.heads.items()},
            classifier=None if n is None else nn.Linear(n, classes),
            example_input=self.example,
        )


def resnet56_subject() -> Subject:
    """CIFAR-10's ResNet-56 with six exits; where features are 8×8 and late, the smaller head is as good."""
    taps = ("layer1.4", "layer1.8", "layer2.2", "layer2.6", "layer3.1")
    return Subject(
        name="resnet56",
        title="Six exits on a frozen ResNet-56",
        backbone=resnet56,
        heads={**dict.fromkeys(taps, DeepHead), "layer3.4": ConvHead},
        classifier_features=None,
        exit_weights=None,
        # The published weights' own.
        preprocessing=Preprocessing(
            color="rgb", height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        epochs=10,
        lr=3e-3,
        backbone_lr=3e-4,
        weight_decay=0.0,
        mirrored=True,
    )


def mobilenetv2_subject(image_side: int, side: int) -> Subject:
    """I-SplitEE's network (arXiv 2401.10541): MobileNetV2 with exits after layers 3, 6, 9, 12, 15 and 18.

    Args:
        image_side: The side of the images in pixels; they are enlarged inside the network.
        side: The side at which the network sees them.

    Raises:
        ConfigError: A side below 32, or below the images'.
    """
    if side < max(32, image_side):
        raise ConfigError(f"--side must be at least {max(32, image_side)} pixels, not {side}")
    return Subject(
        name="mobilenetv2",
        title="I-SplitEE's exits on MobileNetV2",
        backbone=lambda: mobilenetv2(None, side=None if side == image_side else side),
        heads={f"features.{n - 1}": lambda classes: PooledHead(classes, norm=True) for n in (3, 6, 9, 12, 15, 18)},
        classifier_features=FEATURES,
        exit_weights=(1.0, 1.0, 1.0, 0.7, 0.7, 0.7, 0.5),
        preprocessing=Preprocessing(color="rgb", height=image_side, width=image_side, mean=(0.5,), std=(0.5,)),
        epochs=20,
        lr=1e-2,
        backbone_lr=1.5e-4,
        weight_decay=5e-4,
    )
