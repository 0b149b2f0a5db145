"""The bundle's graphs as ONNX Runtime sessions, with checked inputs and measured times."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from offramp.bundle.bundle import Bundle
from offramp.bundle.feed import example
from offramp.bundle.manifest import Graph, TensorSpec
from offramp.errors import ActionError, BundleShapeError, ConfigError, InputError, StageError

__all__ = ["PROVIDERS", "Stages", "check_tensor"]

Array = NDArray[np.generic]

_ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_DTYPES = {name: np.dtype(name) for name in _ELEMENTS.values()}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Stages:
    """The stages, exits and codecs that a copy of a bundle holds, ready to run.

    Args:
        bundle: The verified bundle.
        threads: Threads per session; on small networks one is fastest, and many sessions share the cores.
        provider: "cpu" or "cuda".
        slowdown: Emulates a device this many times slower, for experiments: each run sleeps until it has
            taken this many times what the same graph takes here undisturbed, a median measured now.
        clock: Gives seconds.
        sleep: Sleeps for seconds.

    Raises:
        ConfigError: An unknown or missing provider, or a slowdown below 1 or infinite.
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
        if not 1 <= slowdown < math.inf:
            raise ConfigError(f"a slowdown is at least 1 and finite, not {slowdown}")
        if threads < 1:
            raise ConfigError(f"a session needs at least one thread, not {threads}")
        if PROVIDERS.get(provider) not in ort.get_available_providers():
            here = [name for name, full in PROVIDERS.items() if full in ort.get_available_providers()]
            raise ConfigError(f"provider {provider!r} is not available here; available: {', '.join(here)}")
        self.bundle, self.slowdown = bundle, slowdown
        self._held = [stage.graph for stage in bundle.manifest.stages[: bundle.held]]
        self._clock, self._sleep = clock, sleep
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if provider == "cpu":
            _share_arena(options)
        #: By file: the session, and the names of what goes in and comes out.
        self._sessions: dict[str, tuple[ort.InferenceSession, list[str], list[str]]] = {}
        for graph in bundle.held_graphs():
            content = bundle.read(graph)
            try:
                session = ort.InferenceSession(content, options, providers=[PROVIDERS[provider]])
            except Exception as error:
                raise _stage_error(error, f"ONNX Runtime cannot load {graph.file}") from error
            _check_session(session, graph)
            names = [t.name for t in graph.inputs], [t.name for t in graph.outputs]
            self._sessions[graph.file] = (session, *names)
        #: Seconds that a run of each graph is stretched to; nothing without a slowdown.
        self._pace: dict[str, float] = {}
        if slowdown > 1:
            self._pace = {g.file: slowdown * self._undisturbed_s(g) for g in bundle.held_graphs()}

    def stage(self, index: int, tensors: Sequence[Array]) -> tuple[list[Array], float]:
        """Runs one stage; gives the tensors of its cut and the milliseconds it took.

        Raises:
            ActionError: A stage that this copy does not hold.
            StageError: ONNX Runtime failed.
        """
        if not 0 <= index < len(self._held):
            raise ActionError(f"stage {index} is not held here; stages 0 to {len(self._held) - 1} are")
        return self._run(self._held[index], tensors)

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
        session, inputs, outputs_named = self._sessions[graph.file]
        feed = dict(zip(inputs, tensors, strict=True))
        start = self._clock()
        try:
            outputs: list[Array] = session.run(outputs_named, feed)
        except Exception as error:
            raise _stage_error(error, f"{graph.file} failed") from error
        spent = self._clock() - start
        pace = self._pace.get(graph.file, 0.0)
        if pace > spent:
            self._sleep(pace - spent)
            spent = self._clock() - start
        return outputs, spent * 1e3

    def _undisturbed_s(self, graph: Graph, runs: int = 15) -> float:
        tensors = example(graph.inputs)
        return statistics.median(self._run(graph, tensors)[1] for _ in range(runs)) / 1e3


def check_tensor(tensor: Array, spec: TensorSpec) -> None:
    """Checks a batch (N, …) against what a graph takes.

    Raises:
        InputError: Another dtype or shape, or values that are not finite.
    """
    if tensor.dtype != _DTYPES[spec.dtype] or tensor.shape[1:] != spec.shape or tensor.ndim < 1:
        raise InputError(
            f"tensor {spec.name!r}: expected {spec.dtype} of shape (N, {', '.join(map(str, spec.shape))}), "
            f"got {tensor.dtype} of shape {tensor.shape}"
        )
    if spec.dtype == "float32":
        flat = tensor.reshape(-1)
        # A finite sum of squares means finite terms; only an overflowing one needs the slower look.
        if not math.isfinite(np.dot(flat, flat)) and not np.isfinite(flat).all():
            raise InputError(f"tensor {spec.name!r} holds NaN or infinity")


def _share_arena(options: ort.SessionOptions) -> None:
    """Lets the sessions made from now on work in the same memory, as the layers of one graph do.

    With an arena of its own each session finds its memory cold: the stages between have evicted it.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # From ONNX Runtime 1.23 on, an arena registered earlier stays with the sessions that have it; before, there is
    # one for the whole process, and registering another is this error.
    with contextlib.suppress(RuntimeError):
        ort.create_and_register_allocator(memory, None)
    options.add_session_config_entry("session.use_env_allocators", "1")


def _check_session(session: ort.InferenceSession, graph: Graph) -> None:
    for found, named in ((session.get_inputs(), graph.inputs), (session.get_outputs(), graph.outputs)):
        has = [(v.name, _ELEMENTS.get(v.type, v.type), tuple(v.shape[1:])) for v in found]
        says = [(t.name, t.dtype, t.shape) for t in named]
        if has != says:
            raise BundleShapeError(f"{graph.file} has {has}, the manifest says {says}")


def _stage_error(error: Exception, what: str) -> Exception:
    """ONNX Runtime's exceptions, which share no base class, as a `StageError`; others as they are."""
    if not type(error).__module__.startswith("onnxruntime"):
        return error
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return StageError(f"{what}: {reason}")
