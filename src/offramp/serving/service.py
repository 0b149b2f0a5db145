"""The Open Inference Protocol v2 as a plain object, for any transport: no sockets, no messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import metadata
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import TensorSpec
from offramp.errors import ConfigError, InputError, ServerUnavailableError
from offramp.runtime.batching import Batcher, BatchObserver
from offramp.runtime.repository import Repository
from offramp.runtime.tail import TailReply, TailRequest
from offramp.runtime.telling import Teller
from offramp.serving.refusal import Refusal, refusal

__all__ = [
    "DRAIN_S",
    "MAX_ELEMENTS",
    "SPARE",
    "Answer",
    "IndexEntry",
    "ModelDescription",
    "Observer",
    "Question",
    "RequestTracer",
    "Served",
    "Service",
]

#: What 64 MiB of float32 hold.
MAX_ELEMENTS = 2**24
#: Places beyond the requests under way: for health and metadata while every other one computes or waits.
SPARE = 2
#: Seconds that requests under way have at the end.
DRAIN_S = 30.0
#: What a request is called whose model is not here: what clients invent would fill the memory.
_UNKNOWN = "unknown"
_UNTRACED = nullcontext()
_log = logging.getLogger("offramp.server")


class Served(NamedTuple):
    """An inference request that has its answer or its refusal; bytes are those of the tensors."""

    model: str
    code: str
    received_bytes: int = 0
    sent_bytes: int = 0
    reply: TailReply | None = None


class Observer(BatchObserver, Protocol):
    """Told of every inference request, and of what happens to it on its way."""

    def served(self, request: Served) -> None:
        """A request has its answer or its refusal."""


class RequestTracer(BatchObserver, Protocol):
    """Follows requests through the server.

    Attributes:
        fields: The headers that say where a request's trace began, in small letters.
    """

    fields: frozenset[str]

    def request(self, model: str, headers: Mapping[str, str]) -> AbstractContextManager[object]:
        """Around a request, in its thread."""

    def current(self) -> object | None:
        """What a job of the request in this thread takes along; None if it is not to be followed."""

    def ended(self, code: str, digest: str = "", reply: TailReply | None = None) -> None:
        """The request in this thread has its answer or its refusal."""


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
        client: Where it comes from, for the log.
    """

    model: str
    tensors: Mapping[str, NDArray[np.generic]]
    version: str = ""
    digest: str | None = None
    final: bool = False
    outputs: tuple[str, ...] = ()
    client: str = ""


class Answer(NamedTuple):
    """An inference response: the digest that answered, tensors by name, computing time and time in the queue."""

    version: str
    tensors: Mapping[str, NDArray[np.generic]]
    server_ms: float
    queue_ms: float = 0.0


class Service:
    """What a server says; transports only convert. Safe to use from several threads.

    Args:
        repository: What is served; it may change meanwhile.
        batcher: Runs it.
        limit: Requests that may be under way at the same time; transports hold no more than these in memory.
        max_elements: Elements of all tensors of a request together.
        observer: Told of every inference request.
        tracer: Follows every inference request.

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
        tracer: RequestTracer | None = None,
    ) -> None:
        if max_elements < 1:
            raise ConfigError(f"a request holds at least one element, not at most {max_elements}")
        self._repository, self._batcher = repository, batcher
        self._observer, self._tracer, self._tell = observer, tracer, Teller()
        self._max_elements = max_elements
        self.limit, self.draining = limit, False

    @property
    def ready(self) -> bool:
        """Whether it takes requests: until it is drained."""
        return not self.draining

    @property
    def logs_answers(self) -> bool:
        """Whether the log wants to know of requests that were answered."""
        return _log.isEnabledFor(logging.DEBUG)

    @property
    def under_way(self) -> int:
        """Inference requests that wait or compute."""
        return self._batcher.under_way

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

    def traced(
        self, model: str, headers: Callable[[], Iterable[tuple[str, str | bytes]]]
    ) -> AbstractContextManager[object]:
        """Around an inference request, in its thread, from reading it to having its answer or its refusal.

        Args:
            model: As the caller names it.
            headers: Gives those of the request, names in small letters; asked only if somebody follows.
        """
        if self._tracer is None:
            return _UNTRACED
        fields = self._tracer.fields
        about = {name: value for name, value in headers() if name in fields and isinstance(value, str)}
        return self._followed(self._tracer, self._known(model), about)

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
        elements = sum([tensor.size for tensor in question.tensors.values()])
        if elements > self._max_elements:
            raise InputError(f"{elements} tensor elements; one request may hold {self._max_elements}")
        digest = question.digest or question.version or None
        tail = self._repository.find(question.model, digest)
        reply = self._batcher.infer(
            tail,
            TailRequest(question.model, question.tensors, None, question.final),
            wanted,
            None if self._tracer is None else self._tell(self._tracer.current),
        )
        assert reply.exits is not None  # a Tail always says
        assert reply.server_ms is not None
        tensors: dict[str, NDArray[np.generic]] = {"logits": reply.logits, "exit": reply.exits}
        if question.outputs:
            unknown = [name for name in question.outputs if name not in tensors]
            if unknown:
                raise InputError(f"no output {', '.join(unknown)}; there are {', '.join(tensors)}")
            tensors = {name: tensors[name] for name in question.outputs}
        self._answered(question, tensors, tail.bundle.digest, reply)
        return Answer(tail.bundle.digest, tensors, reply.server_ms, reply.queue_ms or 0.0)

    def failed(self, model: str, error: Exception, client: str = "") -> Refusal:
        """Counts and logs an inference request that has no answer; gives what its caller may know of it."""
        known = self._known(model)
        found = refusal(error, model=known, client=client)
        if self._observer is not None:
            self._tell(self._observer.served, Served(known, found.code.name))
        if self._tracer is not None:
            self._tell(self._tracer.ended, found.code.name)
        return found

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Takes no more requests, says that it is not ready, and waits until those under way are answered.

        Returns:
            Whether they were, within `timeout_s`.
        """
        self.draining = True
        until = time.monotonic() + timeout_s
        while self._batcher.under_way and time.monotonic() < until:
            time.sleep(0.01)
        return not self._batcher.under_way

    def _known(self, model: str) -> str:
        return model if model in self._repository.models else _UNKNOWN

    def _answered(
        self, question: Question, tensors: Mapping[str, NDArray[np.generic]], digest: str, reply: TailReply
    ) -> None:
        """Tells observer, tracer and log."""
        if self._observer is not None:
            received, sent = (sum(t.nbytes for t in some.values()) for some in (question.tensors, tensors))
            self._tell(self._observer.served, Served(question.model, "OK", received, sent, reply))
        if self._tracer is not None:
            self._tell(self._tracer.ended, "OK", digest, reply)
        if self.logs_answers:
            times = {"server_ms": reply.server_ms, "queue_ms": reply.queue_ms, "batch": reply.batch}
            about = {"model": question.model, "digest": digest, "code": "OK", "client": question.client}
            _log.debug("request answered", extra={**about, **times})

    @contextmanager
    def _followed(self, tracer: RequestTracer, model: str, headers: Mapping[str, str]) -> Iterator[None]:
        """Around a request that a tracer follows, as far as it can."""
        around = self._tell(tracer.request, model, headers)
        if around is not None:
            self._tell(around.__enter__)
        try:
            yield
        finally:
            if around is not None:  # no error comes as far as here: it has become a refusal
                self._tell(around.__exit__, None, None, None)
