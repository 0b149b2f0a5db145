"""The traces that studies of exits have left, network by network: every distortion, and held-out images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.datasets.distortion import Distortion
from offramp.errors import TraceError
from offramp.replay.trace import Trace
from offramp.reproduce.traces import HELD_OUT

__all__ = ["NETWORKS", "Network", "Recorded", "recorded"]


@dataclass(frozen=True)
class Network:
    """A network whose traces are at hand.

    Attributes:
        name: How its files' names begin.
        title: What it is called in tables.
        study: The command that makes its traces.
        depths: Per exit ℓ as its paper counts layers; None for the traces' own.
    """

    name: str
    title: str
    study: str
    depths: tuple[int, ...] | None = None


#: I-SplitEE counts MobileNetV2's blocks, and the convolutions and linear layers of other networks.
NETWORKS = (
    Network("mobilenetv2-cifar10", "MobileNetV2", "mobilenetv2", (3, 6, 9, 12, 15, 18, 19)),
    Network("resnet56-cifar10", "ResNet-56", "resnet56"),
)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A network's traces.

    Attributes:
        network: The network.
        levels: The test images' traces by distortion, "none" first.
        held_out: The trace of held-out images under the same distortions; None where there is none.
    """

    network: Network
    levels: Mapping[str, Trace]
    held_out: Trace | None

    @property
    def plain(self) -> Trace:
        """The trace of undistorted images."""
        return self.levels["none"]

    @property
    def depths(self) -> tuple[int, ...]:
        """ℓ at the end of every stage."""
        return self.network.depths or self.plain.meta.depths


def recorded(
    folder: Path, network: Network, distortions: Sequence[Distortion | None], limit: int | None
) -> Recorded:
    """Reads a network's traces, and refuses those that do not belong together.

    Args:
        folder: Where they are: `NAME[-KIND-SIGMA].npz`, and `NAME-held-out.npz` if there is one.
        network: The network.
        distortions: Which ones; None is the undistorted one.
        limit: At most so many samples of each, the first ones.

    Raises:
        TraceError: No folder, a file that is missing or no trace, a trace of another bundle, other exits or
            thresholds or another distortion than its name says, or without confidences or labels.
    """
    if not folder.is_dir():
        raise TraceError(f"there is no folder {folder} with traces; give it by --traces")
    levels: dict[str, Trace] = {}
    for distortion in distortions:
        suffix = f"-{distortion.kind}-{distortion.sigma:g}" if distortion else ""
        path = folder / f"{network.name}{suffix}.npz"
        levels[str(distortion or "none")] = _checked(path, _load(path, network, limit), levels, distortion)
    path = folder / f"{network.name}{HELD_OUT}.npz"
    held_out = _checked(path, _load(path, network, None), levels) if path.is_file() else None
    return Recorded(network, levels, held_out)


def _load(path: Path, network: Network, limit: int | None) -> Trace:
    if not path.is_file():
        raise TraceError(f"there is no {path}; `offramp reproduce {network.study}` makes the traces")
    trace = Trace.load(path)
    if limit is None:
        return trace
    few = slice(limit)
    confidence = None if trace.confidence is None else trace.confidence[few]
    return dataclasses.replace(
        trace, prediction=trace.prediction[few], confidence=confidence, label=trace.label[few]
    )


def _checked(
    path: Path, trace: Trace, others: Mapping[str, Trace], distortion: Distortion | str | None = ""
) -> Trace:
    """The trace; `distortion` is what it has to be of, "" if that does not matter."""
    if trace.confidence is None or (trace.label < 0).any():
        raise TraceError(f"{path} has no confidences, or samples without a label; this study needs both")
    if not trace.meta.thresholds:
        raise TraceError(f"{path} does not tell the bundle's thresholds; trace the bundle again")
    if distortion != "" and trace.meta.distortion != str(distortion or ""):
        raise TraceError(
            f"{path} was traced under {trace.meta.distortion or 'no distortion'}, which is not what its name says"
        )
    first = next(iter(others.values()), trace)
    for what in ("digest", "exits", "depths", "thresholds", "confidence"):
        ours, theirs = getattr(first.meta, what), getattr(trace.meta, what)
        if ours != theirs:
            raise TraceError(f"{path} is of another bundle than the traces before it: {what} {theirs}, not {ours}")
    return trace
