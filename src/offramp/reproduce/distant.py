"""A bundle at work between two processes: an edge, and a server behind an emulated link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from offramp.bundle.bundle import Bundle
from offramp.errors import OfframpError
from offramp.policy.base import Policy
from offramp.policy.cascade import ThresholdCascade
from offramp.policy.fixed import EdgeOnly, ServerOnly
from offramp.policy.i_splitee import ISplitEE
from offramp.report.live import run_policies
from offramp.report.rows import Row, summarise
from offramp.runtime.evaluation import batches
from offramp.runtime.gate import Gate
from offramp.runtime.labelled import Labelled
from offramp.runtime.result import Result
from offramp.runtime.stages import Stages
from offramp.serving.link import LinkSettings
from offramp.serving.process import served

__all__ = ["TOLERANCE", "Distant", "at_a_distance", "deepest_split"]

#: How far a probability that came over the link may be from the one computed here.
TOLERANCE = 1e-5
#: The most of the network's multiply-accumulates that the cascade's edge computes.
EDGE_SHARE = 2 / 3


@dataclass(frozen=True)
class Distant:
    """What each policy did, over the link.

    Attributes:
        rows: One per policy.
        link: The link in words.
        slowdown: How many times slower than this machine the edge was made.
        furthest: The largest difference of any probability from the one computed here.
    """

    rows: tuple[Row, ...]
    link: str
    slowdown: float
    furthest: float


def at_a_distance(
    bundle: Bundle, test: Labelled, link: LinkSettings, slowdown: float, console: Console
) -> Distant:
    """Runs images through an edge and a server process behind a link under four policies.

    Args:
        bundle: The bundle.
        test: The images.
        link: The link to emulate.
        slowdown: Emulates an edge this many times slower.
        console: Gets the progress.

    Raises:
        OfframpError: An answer that differs from the one computed here, or that the server's side did not give.
    """
    split = deepest_split(bundle)
    policies: dict[str, Policy] = {
        "edge only": EdgeOnly(),
        "server only": ServerOnly(),
        f"cascade, split {split}": ThresholdCascade(split=split),
        "I-SplitEE": ISplitEE(alpha=None),
    }
    with served(bundle.path, link) as address:
        found = run_policies(
            bundle, address, policies, _images(test), console, slowdown=slowdown, deadline_ms=30_000
        )
    furthest = max(_furthest(bundle, test, name, results) for name, results in found.items())
    rows = tuple(summarise(name, results, test.labels) for name, results in found.items())
    return Distant(rows, link.words, slowdown, furthest)


def deepest_split(bundle: Bundle) -> int:
    """The deepest split before the last with at most two thirds of the multiply-accumulates on the edge, or 0."""
    macs = np.cumsum([stage.graph.macs for stage in bundle.manifest.stages])
    within = np.flatnonzero(macs[:-1] <= EDGE_SHARE * macs[-1])
    return int(within[-1]) if len(within) else 0


def _images(test: Labelled) -> NDArray[np.generic]:
    assert not isinstance(test.inputs, dict)  # images are one input
    return test.inputs


def _furthest(bundle: Bundle, test: Labelled, name: str, results: Sequence[Result]) -> float:
    stages, gate = Stages(bundle), Gate(bundle.tuning)
    furthest = 0.0
    for result, x in zip(results, _images(test), strict=True):
        if result.status != "ok" or result.probabilities is None:
            raise OfframpError(f"{name}: input {result.index} is {result.status}: {result.error}")
        expected = _here(stages, gate, x[None], result)
        furthest = max(furthest, float(np.abs(expected - result.probabilities).max()))
    if furthest > TOLERANCE:
        raise OfframpError(f"{name}: an answer differs by {furthest:.1e} from the one computed here")
    return furthest


def _here(stages: Stages, gate: Gate, image: NDArray[np.generic], result: Result) -> NDArray[np.float64]:
    """The probabilities of the exit that answered, with the cut encoded as it was, all within this process."""
    manifest, action = stages.bundle.manifest, result.action
    assert action is not None
    assert result.exit is not None
    (tensors,) = batches(manifest, image, 1)
    for i in range(result.exit + 1):
        if result.where == "server" and i == action.split + 1:
            tensors, _ = stages.encode(action.split, action.mode, tensors)
            tensors, _ = stages.decode(action.split, action.mode, tensors)
        tensors, _ = stages.stage(i, tensors)
    logits = tensors[0] if result.exit == manifest.last else stages.exit(result.exit, tensors)[0]
    return gate.belief(result.exit, logits[0]).probabilities
