"""The bundle's graphs as ONNX Runtime sessions, with checked inputs and measured times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from offramp.bundle.bundle import Bundle
from offramp.bundle.manifest import Graph, TensorSpec
from offramp.errors import ActionError, BundleShapeError, ConfigError, InputError, StageError

__all__ = ["PROVIDERS", "Stages", "check_tensor"]

Array = NDArray[np.generic]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Stages:
    """The stages, exits and codecs that a copy of a bundle holds, ready to run.

    Args:
        bundle: The verified bundle.
        threads: Threads per session; on small networks one is fastest, and many sessions share the cores.
        provider: "cpu" or "cuda".
        slowdown: Emulates a device this many times slower, by sleeping after each run. For experiments.
        clock: Gives seconds.
        sleep: Sleeps for seconds.

    Raises:
        ConfigError: An unknown or missing provider, or a slowdown below 1.
        StageError: A graph that ONNX Runtime cannot load.
        BundleShapeError: A graph whose tensors are not the manifest's.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        provider: str = "cpu",
        slowdown: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not slowdown >= 1:
            raise ConfigError(f"a slowdown is at least 1, not {slowdown}")
        if threads < 1:
            raise ConfigError(f"a session needs at least one thread, not {threads}")
        if PROVIDERS.get(provider) not in ort.get_available_providers():
            here = [name for name, full in PROVIDERS.items() if full in ort.get_available_providers()]
            raise ConfigError(f"provider {provider!r} is not available here; available: {', '.join(here)}")
        self.bundle, self.slowdown = bundle, slowdown
        self._clock, self._sleep = clock, sleep
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions: dict[str, ort.InferenceSession] = {}
        for graph in bundle.held_graphs():
            content = bundle.read(graph)
            with _runtime_errors(f"ONNX Runtime cannot load {graph.file}"):
                session = ort.InferenceSession(content, options, providers=[PROVIDERS[provider]])
            _check_session(session, graph)
            self._sessions[graph.file] = session

    def stage(self, index: int, tensors: Sequence[Array]) -> tuple[list[Array], float]:
        """Runs one stage; gives the tensors of its cut and the milliseconds it took.

        Raises:
            ActionError: A stage that this copy does not hold.
            StageError: ONNX Runtime failed.
        """
        if not 0 <= index < self.bundle.held:
            raise ActionError(f"stage {index} is not held here; stages 0 to {self.bundle.held - 1} are")
        return self._run(self.bundle.manifest.stages[index].graph, tensors)

    def exit(self, index: int, tensors: Sequence[Array]) -> tuple[Array, float]:
        """Runs the head of an early exit on its cut; gives logits (N, classes) and milliseconds.

        Raises:
            ActionError: A cut without an exit, or one that this copy does not hold.
            StageError: ONNX Runtime failed.
        """
        found = self.bundle.manifest.exits[index] if 0 <= index < self.bundle.held else None
        if found is None or found.graph is None:
            raise ActionError(f"there is no early exit {index} here")
        outputs, spent = self._run(found.graph, tensors)
        return outputs[0], spent

    def encode(self, cut: int, mode: str, tensors: Sequence[Array]) -> tuple[list[Array], float]:
        """The tensors of a cut as they travel in a mode; gives milliseconds too.

        Raises:
            ActionError: The cut has no such mode.
            StageError: ONNX Runtime failed.
        """
        if mode == "float":
            return list(tensors), 0.0
        return self._run(self._codec(cut, mode, encode=True), tensors)

    def decode(self, cut: int, mode: str, tensors: Sequence[Array]) -> tuple[list[Array], float]:
        """The inverse of `encode`."""
        if mode == "float":
            return list(tensors), 0.0
        return self._run(self._codec(cut, mode, encode=False), tensors)

    def wire(self, cut: int, mode: str) -> tuple[TensorSpec, ...]:
        """What crosses at a cut in a mode.

        Raises:
            ActionError: The cut has no such mode.
        """
        return self.bundle.manifest.cut(cut) if mode == "float" else self._codec(cut, mode, encode=True).outputs

    def _codec(self, cut: int, mode: str, *, encode: bool) -> Graph:
        codec = self.bundle.manifest.codec(cut, mode)
        if codec is None:
            modes = ", ".join(self.bundle.manifest.modes(cut))
            raise ActionError(f"cut {cut} has no mode {mode!r}; it has {modes}")
        return codec.encoder if encode else codec.decoder

    def _run(self, graph: Graph, tensors: Sequence[Array]) -> tuple[list[Array], float]:
        feed = {spec.name: tensor for spec, tensor in zip(graph.inputs, tensors, strict=True)}
        start = self._clock()
        with _runtime_errors(f"{graph.file} failed"):
            outputs: list[Array] = self._sessions[graph.file].run(None, feed)
        spent = self._clock() - start
        if self.slowdown > 1:
            self._sleep(spent * (self.slowdown - 1))
            spent = self._clock() - start
        return outputs, spent * 1e3


def check_tensor(tensor: Array, spec: TensorSpec) -> None:
    """Checks a batch (N, …) against what a graph takes.

    Raises:
        InputError: Another dtype or shape, or values that are not finite.
    """
    if tensor.dtype != np.dtype(spec.dtype) or tensor.shape[1:] != spec.shape or tensor.ndim < 1:
        raise InputError(
            f"tensor {spec.name!r}: expected {spec.dtype} of shape (N, {', '.join(map(str, spec.shape))}), "
            f"got {tensor.dtype} of shape {tensor.shape}"
        )
    if spec.dtype == "float32":
        # A finite sum means finite terms; only an overflowing one needs the slower look.
        with np.errstate(over="ignore", invalid="ignore"):
            total = float(np.add.reduce(tensor, axis=None))
        if not math.isfinite(total) and not np.isfinite(tensor).all():
            raise InputError(f"tensor {spec.name!r} holds NaN or infinity")


def _check_session(session: ort.InferenceSession, graph: Graph) -> None:
    def shapes(values: Sequence[ort.NodeArg]) -> list[tuple[str, tuple[int, ...]]]:
        return [(v.name, tuple(v.shape[1:])) for v in values]

    for found, named in (
        (session.get_inputs(), graph.inputs),
        (session.get_outputs(), graph.outputs),
    ):
        if shapes(found) != [(t.name, t.shape) for t in named]:
            raise BundleShapeError(
                f"{graph.file} has {shapes(found)}, the manifest says {[(t.name, t.shape) for t in named]}"
            )


@contextmanager
def _runtime_errors(what: str) -> Iterator[None]:
    """ONNX Runtime's exceptions, which share no base class, as a `StageError`."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(f"{what}: {reason}") from error
