"""The server's side of a split as a plain object: tensors of a cut in, logits out. No sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import Manifest, TensorSpec
from offramp.errors import DigestMismatchError, InputError, ServerRefusedError
from offramp.runtime.gate import Gate
from offramp.runtime.passage import Batch, Job
from offramp.runtime.stages import Stages, check_tensor

__all__ = ["BatchSizes", "Channel", "Tail", "TailModel", "TailReply", "TailRequest", "tail_models", "tail_name"]


def tail_name(bundle: str, cut: int, mode: str) -> str:
    """The wire's name for what takes a cut in a mode: `digits`, `digits-tail-0`, `digits-tail-0-uint8`.

    Cut −1 is the input; `digits-uint8` takes the input in a mode.
    """
    stem = bundle if cut == -1 else f"{bundle}-tail-{cut}"
    return stem if mode == "float" else f"{stem}-{mode}"


@dataclass(frozen=True)
class TailModel:
    """One of the models that a bundle offers on the wire."""

    name: str
    cut: int
    mode: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def tail_models(manifest: Manifest) -> tuple[TailModel, ...]:
    """Every model that a bundle offers on the wire: each cut in each of its modes, the inputs first."""
    logits = TensorSpec(name="logits", dtype="float32", shape=manifest.final_exit().logits.shape)
    answered = TensorSpec(name="exit", dtype="int64", shape=())
    found = []
    for cut in range(-1, manifest.last):
        for mode in manifest.modes(cut):
            codec = manifest.codec(cut, mode)
            inputs = manifest.cut(cut) if codec is None else codec.encoder.outputs
            found.append(TailModel(tail_name(manifest.name, cut, mode), cut, mode, inputs, (logits, answered)))
    return tuple(found)


class TailRequest(NamedTuple):
    """A cut that travels.

    Attributes:
        model: As `tail_name` gives it.
        tensors: By name, each (N, …).
        digest: The sender's bundle; None is accepted.
        final: Go to the last exit; otherwise the server's exits may answer too.
        gzip: Whether the transport compresses the tensors.
        headers: What travels beside it, such as a `traceparent`; names in small letters.
    """

    model: str
    tensors: Mapping[str, NDArray[np.generic]]
    digest: str | None = None
    final: bool = False
    gzip: bool = False
    headers: tuple[tuple[str, str], ...] = ()


class TailReply(NamedTuple):
    """An answer.

    Attributes:
        logits: (N, classes).
        exits: (N,), which exit answered; None if the server does not say, which means the last.
        server_ms: Computing time on the server; None if it does not say.
        queue_ms: How long it waited for a worker before; None if it did not, or the server does not say.
        batch: The most samples that ran beside each other in a stage of its, its own included; only where it was
            computed.
    """

    logits: NDArray[np.float32]
    exits: NDArray[np.int64] | None = None
    server_ms: float | None = None
    queue_ms: float | None = None
    batch: int | None = None


class Channel(Protocol):
    """The way to a tail; `Tail` itself is one, without a network."""

    def infer(self, request: TailRequest, timeout_s: float | None = None) -> TailReply:
        """The answer to a request; raises a `ServerError` if there is none."""

    def close(self) -> None:
        """Lets go of what the channel holds."""


class BatchSizes(NamedTuple):
    """How many samples a server should run beside each other in a stage.

    Attributes:
        eager: Up to so many a batch is filled whenever somebody waits: each is cheaper for the others.
        most: Beyond `eager`, up to so many, but only as the line grows: hardly cheaper, so all wait for all.
    """

    eager: int
    most: int


class Tail:
    """Runs a bundle from any cut to the end, leaving at its own exits where it may.

    Args:
        stages: The bundle's sessions; all stages must be held.
        sizes: For each stage, as `measured_sizes` finds them; None lets a server fill its batches.
        clock: Gives seconds.

    Raises:
        ServerRefusedError: The bundle is an edge copy that lacks stages.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        sizes: Sequence[BatchSizes] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        bundle = stages.bundle
        if bundle.held <= bundle.manifest.last:
            raise ServerRefusedError(
                f"{bundle.path} is an edge copy with {bundle.held} of {bundle.manifest.last + 1} stages; "
                "a server needs the whole bundle"
            )
        self.stages, self.bundle, self.sizes, self._clock = stages, bundle, sizes, clock
        self._gate = Gate(bundle.tuning)
        self.models: Mapping[str, TailModel] = {model.name: model for model in tail_models(bundle.manifest)}

    def infer(self, request: TailRequest, timeout_s: float | None = None) -> TailReply:
        """Answers one request, alone.

        Raises:
            ServerRefusedError: An unknown model.
            DigestMismatchError: The sender has another version of the bundle.
            InputError: Tensors of wrong name, shape or dtype, or not finite.
            StageError: ONNX Runtime failed.
        """
        start = self._clock()
        job = self.admit(request)
        self.batch(job).run()
        return TailReply(*job.answer, (self._clock() - start) * 1e3)

    def admit(self, request: TailRequest) -> Job:
        """A checked and decoded request, ready for a batch.

        Raises:
            ServerRefusedError, DigestMismatchError, InputError, StageError: As `infer` says.
        """
        model = self.models.get(request.model)
        if model is None:
            raise ServerRefusedError(f"no model {request.model!r} here; there are {', '.join(self.models)}")
        if request.digest is not None and request.digest != self.bundle.digest:
            raise DigestMismatchError(
                f"the server holds digest {self.bundle.digest[:12]}…, the edge {request.digest[:12]}…; "
                "give both the same bundle"
            )
        tensors, _ = self.stages.decode(model.cut, model.mode, self._checked(model, request.tensors))
        return Job(model.cut + 1, tensors, request.final)

    def batch(self, job: Job) -> Batch:
        """A job on its way; others may join it."""
        return Batch(self.stages, self._gate, job)

    def close(self) -> None:
        """Nothing to let go of."""

    def _checked(self, model: TailModel, given: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        try:
            tensors = [given[spec.name] for spec in model.inputs]
        except KeyError:
            tensors = []
        if len(tensors) != len(given) or not tensors:
            names = ", ".join(spec.name for spec in model.inputs)
            raise InputError(f"{model.name} takes {names}; got {', '.join(given) or 'nothing'}")
        batch = len(tensors[0]) if tensors[0].ndim else 0
        for tensor, spec in zip(tensors, model.inputs, strict=True):
            check_tensor(tensor, spec)
            if batch == 0 or len(tensor) != batch:
                raise InputError(f"{model.name}: every tensor needs the same batch of at least one")
        return tensors
