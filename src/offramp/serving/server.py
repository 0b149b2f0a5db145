"""An Open Inference Protocol v2 server over gRPC: converts, limits, reports. What it serves is a `Tail`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent import futures
from importlib import metadata
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NoReturn

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from typing_extensions import Self

from offramp.errors import (
    ConfigError,
    DigestMismatchError,
    InputError,
    OfframpError,
    PortError,
    ServerBusyError,
    ServerRefusedError,
)
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
}
Observer = Callable[[str, str, TailReply | None], None]
#: Threads kept for health and metadata while every other one computes or waits.
_SPARE = 2


class GrpcServer:
    """Serves a tail on a port until closed.

    Args:
        tail: What is served.
        host: The address to listen on.
        port: The port; 0 takes a free one, see `port`.
        workers: Requests that compute at the same time; one per core is fastest.
        queue: Requests that may wait for a worker; more are refused with RESOURCE_EXHAUSTED.
        max_message_mb: The largest message in MiB.
        observer: Told of every inference request: model, gRPC code, and the reply if there is one.

    Raises:
        PortError: The port cannot be listened on.
        ConfigError: Fewer than one worker.
    """

    def __init__(
        self,
        tail: Tail,
        *,
        host: str = "127.0.0.1",
        port: int = 8001,
        workers: int = 1,
        queue: int = 64,
        max_message_mb: int = 64,
        observer: Observer | None = None,
    ) -> None:
        if not 0 <= port <= MAX_PORT:
            raise PortError(f"a port is 0 to {MAX_PORT}, not {port}")
        if workers < 1 or queue < 0:
            raise ConfigError(f"a server needs at least one worker, not {workers} (queue {queue})")
        pool = futures.ThreadPoolExecutor(workers + queue + _SPARE, thread_name_prefix="offramp-grpc")
        # Without this option Linux lets two servers share a port, each getting some of the calls.
        options = [*grpc_options(max_message_mb), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(pool, options=options)
        rpc.add_GRPCInferenceServiceServicer_to_server(_Service(tail, workers, queue, observer), self._server)
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

    def close(self, grace_s: float = 1.0) -> None:
        """Refuses new requests, lets those under way end within `grace_s` seconds, and stops."""
        self._server.stop(grace_s).wait()

    def wait(self) -> None:
        """Blocks until the server is closed."""
        self._server.wait_for_termination()

    def _close_pool(self, pool: futures.ThreadPoolExecutor) -> None:
        self._server.stop(None)
        pool.shutdown(wait=False)


class _Service(rpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, tail: Tail, workers: int, queue: int, observer: Observer | None) -> None:
        self._tail, self._observer = tail, observer
        # Tokens in queues: taking one is a tenth of what a semaphore costs.
        self._places: SimpleQueue[None] = SimpleQueue()
        self._workers: SimpleQueue[None] = SimpleQueue()
        for tokens, count in ((self._places, workers + queue), (self._workers, workers)):
            for _ in range(count):
                tokens.put(None)

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return pb.ModelReadyResponse(ready=request.name in self._tail.models)

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return pb.ServerMetadataResponse(name="offramp", version=metadata.version("offramp"))

    def ModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        try:
            return self._described(request)
        except Exception as error:
            _abort(context, error)

    def _described(self, request: Any) -> Any:
        model = self._tail.models.get(request.name)
        if model is None:
            raise ServerRefusedError(f"no model {request.name!r} here; there are {', '.join(self._tail.models)}")
        # The bundle's digest is the version: an edge can tell at once whether both hold the same.
        response = pb.ModelMetadataResponse(
            name=model.name, versions=[self._tail.bundle.digest], platform="onnx_offramp"
        )
        for specs, target in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
            for spec in specs:
                target.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=[-1, *spec.shape])
        return response

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        try:
            return self._inferred(request)
        except Exception as error:
            if self._observer is not None:
                self._observer(self._known(request.model_name), _code(error).name, None)
            _abort(context, error)

    def _known(self, model: str) -> str:
        """A name that may be counted: what clients invent would fill the memory."""
        return model if model in self._tail.models else "unknown"

    def _inferred(self, request: Any) -> Any:
        try:
            self._places.get_nowait()
        except Empty:
            raise ServerBusyError("the server's queue is full; try again later") from None
        try:
            parameters = request.parameters
            asked = TailRequest(
                model=request.model_name,
                tensors=from_request(request),
                digest=parameters["digest"].string_param if "digest" in parameters else None,
                final="final" in parameters and parameters["final"].bool_param,
            )
            self._workers.get()
            try:
                reply = self._tail.infer(asked)
            finally:
                self._workers.put(None)
        finally:
            self._places.put(None)
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
        return response_message(request.model_name, self._tail.bundle.digest, request.id, tensors, reply.server_ms)


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
