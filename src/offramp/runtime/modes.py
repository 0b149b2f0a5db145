"""What every mode of every cut costs and saves: bytes, time, and accuracy on labelled data. Needs no torch."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.feed import by_name
from offramp.bundle.manifest import Tuning, travel_key
from offramp.errors import ConfigError
from offramp.runtime.evaluation import batches, class_indices, sample_count
from offramp.runtime.stages import Stages

__all__ = ["ModeFigures", "measure_modes", "retuned_modes"]

Array = NDArray[np.generic]

#: Samples that are compressed, and timed, alone.
_ALONE = 100
#: zlib's number for the format that gRPC's gzip has; the level is its default.
_GZIP = 31


@dataclass(frozen=True)
class ModeFigures:
    """One mode of one cut.

    Attributes:
        cut: The cut; −1 is the input.
        mode: Its mode.
        payload_bytes: What one sample's tensors take in it.
        gzip_bytes: What gzip makes of that, the mean over samples.
        encode_ms: The encoder's median time for one sample.
        decode_ms: The decoder's.
        gzip_ms: What gzip takes on both sides, the median over samples.
        accuracy: Of the last exit, where every sample crosses the cut in this mode.
        changed: The share of predictions that differ from those in float.
    """

    cut: int
    mode: str
    payload_bytes: int
    gzip_bytes: float
    encode_ms: float
    decode_ms: float
    gzip_ms: float
    accuracy: float
    changed: float

    @property
    def gzip_below_mbps(self) -> float:
        """The link's rate in Mbit/s below which compression gains more time than it takes; 0 for never."""
        saved = self.payload_bytes - self.gzip_bytes
        return max(0.0, 8e-3 * saved / self.gzip_ms) if self.gzip_ms else 0.0


def measure_modes(
    stages: Stages,
    inputs: Any,
    labels: NDArray[np.integer],
    *,
    batch: int = 100,
    on_batch: Callable[[int], None] = lambda n: None,
) -> list[ModeFigures]:
    """Sends all samples across every cut in every mode, as far as this machine is concerned.

    Args:
        stages: The whole bundle's sessions.
        inputs: (N, …), as `exit_logits` takes them.
        labels: (N,) class indices.
        batch: Inputs that run at once.
        on_batch: Told how many inputs have been run since it was last told.

    Returns:
        By cut, ascending, and mode; float is first.

    Raises:
        ConfigError: An edge copy that lacks stages, no samples, or not one label per input.
        InputError: Inputs of wrong names, shape or dtype, of different lengths, or not finite, or labels that are
            no class indices.
        StageError: ONNX Runtime failed.
    """
    bundle = stages.bundle
    manifest, last = bundle.manifest, bundle.manifest.last
    if bundle.held <= last:
        raise ConfigError(f"{bundle.path} is an edge copy; the modes' accuracy needs the whole bundle")
    count = sample_count(by_name(inputs, manifest.inputs))
    true = class_indices(labels, count, manifest.final_exit().logits.shape[-1])
    ways = [(cut, mode) for cut in range(-1, last) for mode in manifest.modes(cut)]
    said: dict[tuple[int, str], list[Array]] = {way: [] for way in ways}
    alone: dict[tuple[int, str], list[tuple[float, ...]]] = {way: [] for way in ways}
    done = 0
    for given in batches(manifest, inputs, batch):
        tensors = given
        for cut in range(-1, last):
            for mode in manifest.modes(cut):
                packed, _ = stages.encode(cut, mode, tensors)
                # In float every cut leads to the same answer.
                if (cut, mode) == (-1, "float") or mode != "float":
                    said[cut, mode].append(_tail(stages, cut, stages.decode(cut, mode, packed)[0]))
                for i in range(min(len(tensors[0]), _ALONE - done)):
                    alone[cut, mode].append(_alone(stages, cut, mode, [t[i : i + 1] for t in tensors]))
            tensors, _ = stages.stage(cut + 1, tensors)
        done += len(given[0])
        on_batch(len(given[0]))
    answers = {way: np.concatenate(said[way] or said[-1, "float"]) for way in ways}
    plain = answers[-1, "float"]
    rows = []
    for (cut, mode), timed in alone.items():
        gzip_bytes, encode_ms, decode_ms, gzip_ms = zip(*timed, strict=True)
        rows.append(
            ModeFigures(
                cut=cut,
                mode=mode,
                payload_bytes=sum(spec.bytes for spec in stages.wire(cut, mode)),
                gzip_bytes=statistics.mean(gzip_bytes),
                encode_ms=statistics.median(encode_ms),
                decode_ms=statistics.median(decode_ms),
                gzip_ms=statistics.median(gzip_ms),
                accuracy=float((answers[cut, mode] == true).mean()),
                changed=float((answers[cut, mode] != plain).mean()),
            )
        )
    return rows


def retuned_modes(tuning: Tuning, figures: Sequence[ModeFigures], *, max_loss: float = 0.01) -> Tuning:
    """A tuning whose usual mode sends the fewest bytes, over all cuts, of those that lose little at every cut.

    Modes that not every cut has are not considered, since elsewhere the cut would travel as `float`. When
    compression pays is written down for every mode.

    Args:
        tuning: What else stays.
        figures: As `measure_modes` gives them, of data that the network has not learnt from.
        max_loss: Accuracy that the usual mode may cost at any cut behind the input, as a fraction.

    Raises:
        ConfigError: `max_loss` outside [0, 1], or no figures.
    """
    if not 0 <= max_loss <= 1:
        raise ConfigError(f"max_loss is a fraction between 0 and 1, not {max_loss!r}")
    if not figures:
        raise ConfigError("no modes were measured")
    cuts = {f.cut for f in figures if f.cut >= 0} or {-1}
    rows = [f for f in figures if f.cut in cuts]
    plain = figures[0].accuracy
    sent = {
        mode: sum(f.payload_bytes for f in rows if f.mode == mode)
        for mode in dict.fromkeys(f.mode for f in rows)
        if {f.cut for f in rows if f.mode == mode} == cuts
        and all(plain - f.accuracy <= max_loss for f in rows if f.mode == mode)
    }
    pays = {travel_key(f.cut, f.mode): round(f.gzip_below_mbps, 3) for f in figures if f.gzip_below_mbps > 0}
    return tuning.model_copy(update={"mode": min(sent, key=sent.__getitem__), "gzip_below_mbps": pays})


def _tail(stages: Stages, cut: int, tensors: Sequence[Array]) -> Array:
    """The last exit's predictions from a cut."""
    for i in range(cut + 1, stages.bundle.manifest.last + 1):
        tensors, _ = stages.stage(i, tensors)
    predictions: Array = tensors[0].argmax(axis=1)
    return predictions


def _alone(stages: Stages, cut: int, mode: str, tensors: Sequence[Array]) -> tuple[float, float, float, float]:
    """Of one sample: the compressed bytes, and the milliseconds of encoder, decoder and compression."""
    packed, encode_ms = stages.encode(cut, mode, tensors)
    _, decode_ms = stages.decode(cut, mode, packed)
    content = b"".join(t.tobytes() for t in packed)
    start = time.perf_counter()
    squeezed = zlib.compress(content, wbits=_GZIP)
    zlib.decompress(squeezed, wbits=_GZIP)
    return len(squeezed), encode_ms, decode_ms, (time.perf_counter() - start) * 1e3
