"""An Open Inference Protocol v2 server over gRPC: converts and reports. A `Batcher` runs what it serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent import futures
from importlib import metadata
from types import TracebackType
from typing import Any, NoReturn

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from typing_extensions import Self

from offramp.errors import (
    DeadlineError,
    DigestMismatchError,
    InputError,
    OfframpError,
    PortError,
    ServerBusyError,
    ServerRefusedError,
    ServerUnavailableError,
)
from offramp.runtime.batching import MAX_BATCH, MAX_WAIT_MS, Batcher
from offramp.runtime.repository import Repository
from offramp.runtime.tail import Tail, TailReply, TailRequest
from offramp.serving.wire import DATATYPES, MAX_PORT, from_request, grpc_options, response_message

__all__ = ["GrpcServer"]

_log = logging.getLogger("offramp.server")

#: Our errors as gRPC status codes; anything else is INTERNAL and says nothing of the inside.
_CODES = {
    ServerRefusedError: grpc.StatusCode.NOT_FOUND,
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    DigestMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    ServerBusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    ServerUnavailableError: grpc.StatusCode.UNAVAILABLE,
}
Observer = Callable[[str, str, TailReply | None], None]
#: Threads kept for health and metadata while every other one computes or waits.
_SPARE = 2


class GrpcServer:
    """Serves tails on a port until closed.

    Args:
        served: A tail, or a repository of several, which may change meanwhile.
        host: The address to listen on.
        port: The port; 0 takes a free one, see `port`.
        workers: Batches that compute at the same time; one per core is fastest.
        queue: Requests under way beyond one per worker; more are refused with RESOURCE_EXHAUSTED.
        max_batch: See `Batcher`; 1 is no batching.
        max_wait_ms: See `Batcher`.
        max_message_mb: The largest message in MiB.
        observer: Told of every inference request: model, gRPC code, and the reply if there is one.

    Raises:
        PortError: The port cannot be listened on.
        ConfigError: Fewer than one worker, or another setting that cannot be.
    """

    def __init__(
        self,
        served: Tail | Repository,
        *,
        host: str = "127.0.0.1",
        port: int = 8001,
        workers: int = 1,
        queue: int = 64,
        max_batch: int = MAX_BATCH,
        max_wait_ms: float = MAX_WAIT_MS,
        max_message_mb: int = 64,
        observer: Observer | None = None,
    ) -> None:
        if not 0 <= port <= MAX_PORT:
            raise PortError(f"a port is 0 to {MAX_PORT}, not {port}")
        repository = Repository([served]) if isinstance(served, Tail) else served
        self._batcher = Batcher(workers=workers, queue=queue, max_batch=max_batch, max_wait_ms=max_wait_ms)
        self._service = _Service(repository, self._batcher, observer)
        pool = futures.ThreadPoolExecutor(workers + queue + _SPARE, thread_name_prefix="offramp-grpc")
        # Without this option Linux lets two servers share a port, each getting some of the calls.
        options = [*grpc_options(max_message_mb), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(pool, options=options)
        rpc.add_GRPCInferenceServiceServicer_to_server(self._service, self._server)
        address = f"{host}:{port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            self.port = 0
            self._close_pool(pool)
            raise PortError(f"cannot listen on {address}; is the port in use? Choose another one") from error
        if self.port == 0:
            self._close_pool(pool)
            raise PortError(f"cannot listen on {address}; is the port in use? Choose another one")
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ready(self) -> bool:
        """Whether it takes requests: until it is drained."""
        return not self._service.draining

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Takes no more requests, says that it is not ready, and waits until those under way are answered.

        Returns:
            Whether they were, within `timeout_s`.
        """
        self._service.draining = True
        until = time.monotonic() + timeout_s
        while self._batcher.under_way and time.monotonic() < until:
            time.sleep(0.01)
        return not self._batcher.under_way

    def close(self, grace_s: float = 1.0) -> None:
        """Refuses new requests, lets those under way end within `grace_s` seconds, and stops."""
        self._server.stop(grace_s).wait()
        self._batcher.close()

    def wait(self) -> None:
        """Blocks until the server is closed."""
        self._server.wait_for_termination()

    def _close_pool(self, pool: futures.ThreadPoolExecutor) -> None:
        self._server.stop(None)
        pool.shutdown(wait=False)
        self._batcher.close()


class _Service(rpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, repository: Repository, batcher: Batcher, observer: Observer | None) -> None:
        self._repository, self._batcher, self._observer = repository, batcher, observer
        self.draining = False

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=not self.draining)

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        versions = self._repository.models.get(request.name, {})
        found = request.version in versions if request.version else bool(versions)
        return pb.ModelReadyResponse(ready=found and not self.draining)

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return pb.ServerMetadataResponse(name="offramp", version=metadata.version("offramp"))

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        try:
            return self._described(request)
        except Exception as error:
            _abort(context, error)

    def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        response = pb.RepositoryIndexResponse()
        for name, versions in self._repository.models.items():
            for digest in versions:
                response.models.add(name=name, version=digest, state="UNAVAILABLE" if self.draining else "READY")
        return response

    def _described(self, request: Any) -> Any:
        tail = self._repository.find(request.name, request.version or None)
        # The bundle's digest is the version: an edge can tell at once whether both hold the same.
        versions = [request.version] if request.version else self._repository.models.get(request.name, ())
        response = pb.ModelMetadataResponse(name=request.name, versions=versions, platform="onnx_offramp")
        model = tail.models[request.name]
        for specs, target in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
            for spec in specs:
                target.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=[-1, *spec.shape])
        return response

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        try:
            return self._inferred(request, context)
        except Exception as error:
            if self._observer is not None:
                self._observer(self._known(request.model_name), _code(error).name, None)
            _abort(context, error)

    def _known(self, model: str) -> str:
        """A name that may be counted: what clients invent would fill the memory."""
        return model if model in self._repository.models else "unknown"

    def _inferred(self, request: Any, context: grpc.ServicerContext) -> Any:
        if self.draining:
            raise ServerUnavailableError("the server is about to stop; ask another one")
        parameters = request.parameters
        digest = parameters["digest"].string_param if "digest" in parameters else None
        # The protocol's own way to choose a version; it is empty where the client leaves the choice to us.
        tail = self._repository.find(request.model_name, digest or request.model_version or None)
        asked = TailRequest(
            model=request.model_name,
            tensors=from_request(request),
            final="final" in parameters and parameters["final"].bool_param,
        )
        reply = self._batcher.infer(tail, asked, context.is_active)
        if self._observer is not None:
            self._observer(request.model_name, "OK", reply)
        assert reply.exits is not None  # a Tail always says
        assert reply.server_ms is not None
        tensors: dict[str, NDArray[np.generic]] = {"logits": reply.logits, "exit": reply.exits}
        if request.outputs:
            wanted = [output.name for output in request.outputs]
            unknown = [name for name in wanted if name not in tensors]
            if unknown:
                raise InputError(f"no output {', '.join(unknown)}; there are {', '.join(tensors)}")
            tensors = {name: tensors[name] for name in wanted}
        return response_message(request.model_name, tail.bundle.digest, request.id, tensors, reply.server_ms)


def _code(error: Exception) -> grpc.StatusCode:
    known = _CODES.get(type(error)) if isinstance(error, OfframpError) else None
    return known or grpc.StatusCode.INTERNAL


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """Ends a call with one of our errors' status codes; anything else says nothing of the inside."""
    code = _code(error)
    if code is not grpc.StatusCode.INTERNAL:
        context.abort(code, str(error))
    _log.error("request failed", exc_info=None if isinstance(error, OfframpError) else error)
    context.abort(grpc.StatusCode.INTERNAL, "the server could not run this request")
    raise AssertionError("abort raises")  # pragma: no cover
