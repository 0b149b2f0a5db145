"""The Open Inference Protocol v2 as a plain object, for any transport: no sockets, no messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import TensorSpec
from offramp.errors import ConfigError, InputError, ServerUnavailableError
from offramp.runtime.batching import Batcher
from offramp.runtime.repository import Repository
from offramp.runtime.tail import TailReply, TailRequest
from offramp.serving.refusal import Refusal, refusal

__all__ = ["MAX_ELEMENTS", "Answer", "IndexEntry", "ModelDescription", "Observer", "Question", "Service"]

#: What 64 MiB of float32 hold.
MAX_ELEMENTS = 2**24
#: Told of every inference request: model, gRPC code, and the reply if there is one.
Observer = Callable[[str, str, TailReply | None], None]


class ModelDescription(NamedTuple):
    """A model's metadata; a version is a bundle's digest, the newest stands first."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class IndexEntry(NamedTuple):
    """A model of the repository's index."""

    name: str
    version: str
    state: str


class Question(NamedTuple):
    """An inference request.

    Attributes:
        model: As `tail_name` gives it.
        tensors: By name, each (N, …).
        version: The protocol's own way to choose a digest; empty leaves the choice to the server.
        digest: The edge's way; it goes first.
        final: Go to the last exit.
        outputs: The names of the tensors wanted, in their order; all if empty.
    """

    model: str
    tensors: Mapping[str, NDArray[np.generic]]
    version: str = ""
    digest: str | None = None
    final: bool = False
    outputs: tuple[str, ...] = ()


class Answer(NamedTuple):
    """An inference response: the digest that answered, tensors by name, and the computing time."""

    version: str
    tensors: Mapping[str, NDArray[np.generic]]
    server_ms: float


class Service:
    """What a server says; transports only convert. Safe to use from several threads.

    Args:
        repository: What is served; it may change meanwhile.
        batcher: Runs it.
        limit: Requests that may be under way at the same time; transports hold no more than these in memory.
        max_elements: Elements of all tensors of a request together.
        observer: Told of every inference request.

    Raises:
        ConfigError: A limit below one.
    """

    def __init__(
        self,
        repository: Repository,
        batcher: Batcher,
        *,
        limit: int,
        max_elements: int = MAX_ELEMENTS,
        observer: Observer | None = None,
    ) -> None:
        if max_elements < 1:
            raise ConfigError(f"a request holds at least one element, not at most {max_elements}")
        self._repository, self._batcher, self._observer = repository, batcher, observer
        self._max_elements = max_elements
        self.limit, self.draining = limit, False

    @property
    def ready(self) -> bool:
        """Whether it takes requests: until it is drained."""
        return not self.draining

    @property
    def name(self) -> str:
        """The server's name."""
        return "offramp"

    @property
    def version(self) -> str:
        """The server's version."""
        return metadata.version("offramp")

    @property
    def extensions(self) -> tuple[str, ...]:
        """The protocol's extensions that it speaks."""
        return ("binary_tensor_data", "model_repository")

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether a model takes requests, in a version or any."""
        versions = self._repository.models.get(model, {})
        return self.ready and (version in versions if version else bool(versions))

    def model(self, model: str, version: str = "") -> ModelDescription:
        """A model's metadata.

        Raises:
            ServerRefusedError: Nothing here offers it.
            DigestMismatchError: Only other versions are here.
        """
        tail = self._repository.find(model, version or None)
        # The bundle's digest is the version: an edge can tell at once whether both hold the same.
        versions = (version,) if version else tuple(self._repository.models.get(model, ()))
        found = tail.models[model]
        return ModelDescription(model, versions, "onnx_offramp", found.inputs, found.outputs)

    def index(self, *, ready: bool = False) -> tuple[IndexEntry, ...]:
        """Every model in every version; only those that take requests if `ready`."""
        if ready and not self.ready:
            return ()
        state = "READY" if self.ready else "UNAVAILABLE"
        return tuple(
            IndexEntry(name, digest, state)
            for name, versions in self._repository.models.items()
            for digest in versions
        )

    def infer(self, question: Question, wanted: Callable[[], bool] = lambda: True) -> Answer:
        """Answers one request, perhaps together with others.

        Args:
            question: The request.
            wanted: Asked after a wait: does the caller still want an answer?

        Raises:
            OfframpError: There is no answer; `failed` says what the caller may know of it.
        """
        if self.draining:
            raise ServerUnavailableError("the server is about to stop; ask another one")
        elements = sum(tensor.size for tensor in question.tensors.values())
        if elements > self._max_elements:
            raise InputError(f"{elements} tensor elements; one request may hold {self._max_elements}")
        digest = question.digest or question.version or None
        tail = self._repository.find(question.model, digest)
        reply = self._batcher.infer(
            tail, TailRequest(question.model, question.tensors, None, question.final), wanted
        )
        if self._observer is not None:
            self._observer(question.model, "OK", reply)
        assert reply.exits is not None  # a Tail always says
        assert reply.server_ms is not None
        tensors: dict[str, NDArray[np.generic]] = {"logits": reply.logits, "exit": reply.exits}
        if question.outputs:
            unknown = [name for name in question.outputs if name not in tensors]
            if unknown:
                raise InputError(f"no output {', '.join(unknown)}; there are {', '.join(tensors)}")
            tensors = {name: tensors[name] for name in question.outputs}
        return Answer(tail.bundle.digest, tensors, reply.server_ms)

    def failed(self, model: str, error: Exception) -> Refusal:
        """Counts and logs an inference request that has no answer; gives what its caller may know of it."""
        found = refusal(error)
        if self._observer is not None:
            # What clients invent would fill the memory.
            self._observer(model if model in self._repository.models else "unknown", found.code.name, None)
        return found

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no more requests, says that it is not ready, and waits until those under way are answered.

        Returns:
            Whether they were, within `timeout_s`.
        """
        self.draining = True
        until = time.monotonic() + timeout_s
        while self._batcher.under_way and time.monotonic() < until:
            time.sleep(0.01)
        return not self._batcher.under_way
