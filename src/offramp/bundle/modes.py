"""The modes of every cut, fitted to what crosses there for a few inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from offramp.bundle.codec import make_codec
from offramp.bundle.feed import by_name
from offramp.bundle.manifest import TensorSpec
from offramp.bundle.partition import tensor_spec
from offramp.bundle.quantiser import MODES, fit_quantiser
from offramp.bundle.shapes import session
from offramp.errors import InputError
from offramp.exits.sampling import samples_kept

__all__ = ["check_samples", "fitted_codecs"]

Array = NDArray[np.generic]

#: Samples that run at once: early features may be large.
_BATCH = 8


def check_samples(samples: Any, specs: Sequence[TensorSpec]) -> list[Array]:
    """Inputs as arrays in order, if a network can take them.

    Args:
        samples: As `by_name` takes them.
        specs: The network's inputs.

    Raises:
        InputError: Other names, shapes or element types than the network's, no samples, or not as many of each.
    """
    arrays = list(by_name(samples, specs).values())
    for spec, x in zip(specs, arrays, strict=True):
        if x.dtype != spec.dtype or x.shape[1:] != spec.shape or not len(x) or len(x) != len(arrays[0]):
            raise InputError(
                f"expected {len(arrays[0])} samples of {spec.name} as {spec.dtype} of shape "
                f"(N, {', '.join(map(str, spec.shape))}), got {x.dtype} of shape {x.shape}"
            )
    return arrays


def fitted_codecs(
    stages: Sequence[ModelProto], samples: Any
) -> Iterator[tuple[int, str, tuple[ModelProto, ModelProto]]]:
    """By cut, the input (−1) included, and mode: the encoder and the decoder.

    Floats are quantised; tensors of other types travel as they are, and cuts without floats have no modes.

    Args:
        stages: The stages of a cut graph.
        samples: Inputs (N, …) as `by_name` takes them; of many, a few are drawn.

    Raises:
        InputError: As `check_samples` says, or a cut takes values that are not finite.
    """
    specs = [[tensor_spec(value) for value in stage.graph.input] for stage in stages]
    crossing = _crossing(stages, check_samples(samples, specs[0]))
    for cut, (tensors, arrays) in enumerate(zip(specs, crossing, strict=True), start=-1):
        floats = [
            x.astype(np.float32) if t.dtype == "float32" else None for t, x in zip(tensors, arrays, strict=True)
        ]
        if not all(x is None or np.isfinite(x).all() for x in floats):
            raise InputError(f"cut {cut} takes values that are not finite on these samples; give other samples")
        for mode, how in MODES.items() if any(x is not None for x in floats) else ():
            fits = [None if x is None else fit_quantiser(x, how) for x in floats]
            yield cut, mode, make_codec(tensors, fits, mode)


def _crossing(stages: Sequence[ModelProto], inputs: Sequence[Array]) -> list[list[Array]]:
    """Per cut what crosses for a few of the inputs, the inputs first; of large tensors fewer samples."""
    chosen = np.random.default_rng(0).permutation(len(inputs[0]))[: max(samples_kept(x.shape[1:]) for x in inputs)]
    sessions = [session(stage) for stage in stages[:-1]]
    found: list[list[list[Array]]] = [[[] for _ in stage.graph.input] for stage in stages]
    for start in range(0, len(chosen), _BATCH):
        tensors = [x[chosen[start : start + _BATCH]] for x in inputs]
        for i, stage in enumerate(stages):
            for kept, x in zip(found[i], tensors, strict=True):
                kept.append(x[: max(0, samples_kept(x.shape[1:]) - start)])
            if i < len(sessions):
                feed = {t.name: x for t, x in zip(stage.graph.input, tensors, strict=True)}
                tensors = sessions[i].run([t.name for t in stage.graph.output], feed)
    return [[np.concatenate(kept) for kept in cut] for cut in found]
