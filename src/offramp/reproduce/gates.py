"""Which gates a study plays with: thresholds that held-out data chose, and the paper's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offramp.bundle.manifest import CLOSED
from offramp.exits.thresholds import FITTING_SHARE, certified_threshold
from offramp.replay.trace import Trace
from offramp.reproduce.recorded import Recorded
from offramp.tables import table_text

__all__ = ["PAPERS_ALPHA", "Gates", "gates_of", "gates_table", "robust_thresholds"]

#: I-SplitEE's (arXiv 2401.10541).
PAPERS_ALPHA = 0.5
#: What an exit that answers alone may lose on distorted held-out images, and the probability of more.
_MAX_DROP, _DELTA = 0.02, 0.1


@dataclass(frozen=True)
class Gates:
    """Thresholds that everybody in a table plays with.

    Attributes:
        name: In file and table.
        words: How they were chosen.
        thresholds: Per early exit.
    """

    name: str
    words: str
    thresholds: tuple[float, ...]

    def on(self, trace: Trace) -> Trace:
        """The trace of a bundle with these thresholds."""
        return dataclasses.replace(
            trace, meta=trace.meta.model_copy(update={"thresholds": (*self.thresholds, None)})
        )


def gates_of(recorded: Recorded) -> list[Gates]:
    """The bundle's own gates, the paper's, and, with held-out traces, those for a distorted world."""
    own = tuple(CLOSED if t is None else t for t in recorded.plain.meta.thresholds[:-1])
    found = [
        Gates("bundle", "the bundle's own, chosen on undistorted held-out images for the cascade", own),
        Gates("paper", f"the paper's α = {PAPERS_ALPHA:g}", (PAPERS_ALPHA,) * len(own)),
    ]
    if recorded.held_out is not None:
        words = (
            f"chosen on distorted held-out images, exit by exit: at most {100 * _MAX_DROP:g} points lost by that "
            f"exit alone, with confidence {100 * (1 - _DELTA):g} %"
        )
        found.append(Gates("distorted", words, robust_thresholds(recorded.held_out)))
    return found


def robust_thresholds(held_out: Trace, max_drop: float = _MAX_DROP, delta: float = _DELTA) -> tuple[float, ...]:
    """Per early exit the lowest threshold certified for it alone, as an arm plays it.

    The samples are split as for the bundle's temperatures, a fifth for candidates and the others for tests, so
    that no temperature was fitted on an image that tests (`certified_threshold`, arXiv 2110.01052).

    Args:
        held_out: Held-out samples under the distortions to come.
        max_drop: Accuracy that the exit may lose against the last one, as a fraction.
        delta: The probability that it loses more.
    """
    assert held_out.confidence is not None
    sure = held_out.confidence.astype(np.float64).T
    right = (held_out.prediction == held_out.label[:, None]).T
    shuffled = np.random.default_rng(0).permutation(len(held_out))
    few = max(1, len(held_out) // FITTING_SHARE)
    fitting, testing = shuffled[:few], shuffled[few:]
    return tuple(
        certified_threshold(
            sure[k : k + 1, testing], right[[k, -1]][:, testing], sure[k : k + 1, fitting], max_drop, delta
        )
        for k in range(len(sure) - 1)
    )


def gates_table(gates: Sequence[Gates], recorded: Recorded) -> str:
    """One row per choice of gates: threshold and share of held-out samples (else none) that leave, by exit."""
    held_out = recorded.held_out
    heads = ["gates", *(f"exit {e}" for e in recorded.plain.meta.exits[:-1])]
    rows = [[g.name, *(_cell(held_out, k, t) for k, t in enumerate(g.thresholds))] for g in gates]
    caption = "; ".join(f"{g.name}: {g.words}" for g in gates)
    if held_out is not None:
        what = f"{held_out.meta.data} under the study's distortions in turn"
        caption += f". In brackets the share of {what} that is sure there"
    return table_text(f"{recorded.network.title}: gates", heads, rows, caption=caption)


def _cell(held_out: Trace | None, column: int, threshold: float) -> str:
    told = f"{threshold:.4f}" if threshold <= 1 else "closed"
    if held_out is None or held_out.confidence is None:
        return told
    return f"{told} ({float((held_out.confidence[:, column] >= threshold).mean()):.1%})"


def facts(gates: Sequence[Gates]) -> Mapping[str, object]:
    """The gates as JSON values."""
    return {g.name: {"chosen": g.words, "thresholds": list(g.thresholds)} for g in gates}
