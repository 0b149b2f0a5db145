"""An Open Inference Protocol v2 server over gRPC: only converts; a `Service` says what is answered.

Beside it stands gRPC's own health protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent import futures
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, cast
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb
from typing_extensions import Self

from offramp.errors import InputError, PortError
from offramp.runtime.batching import MAX_BATCH, MAX_WAIT_MS, Batcher
from offramp.runtime.repository import Repository
from offramp.runtime.tail import Tail
from offramp.serving.access import Access
from offramp.serving.health import Health
from offramp.serving.refusal import Refusal, refusal
from offramp.serving.service import DRAIN_S, MAX_ELEMENTS, SPARE, Observer, Question, RequestTracer, Service
from offramp.serving.tls import ServerTls
from offramp.serving.wire import DATATYPES, MAX_PORT, endpoint, from_request, grpc_options, response_message

__all__ = ["METHODS", "SERVICE", "Client", "GrpcServer", "answer"]

SERVICE = "inference.GRPCInferenceService"
#: What answers everybody.
_HEALTH = ("ServerLive", "ServerReady")


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
        max_elements: See `Service`.
        tls: Its certificate; without one it speaks in the clear.
        access: Who may ask, and how often; health answers everybody.
        observer: Told of every inference request, such as `ServerMetrics`.
        tracer: Follows every inference request, such as a `ServerTracer`.

    Attributes:
        service: What it says; another transport may say the same, see `HttpServer`.
        port: Where it listens.

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
        max_elements: int = MAX_ELEMENTS,
        tls: ServerTls | None = None,
        access: Access | None = None,
        observer: Observer | None = None,
        tracer: RequestTracer | None = None,
    ) -> None:
        if not 0 <= port <= MAX_PORT:
            raise PortError(f"a port is 0 to {MAX_PORT}, not {port}")
        repository = Repository([served]) if isinstance(served, Tail) else served
        with ExitStack() as undone:
            self._batcher = Batcher(
                workers=workers,
                queue=queue,
                max_batch=max_batch,
                max_wait_ms=max_wait_ms,
                observers=[watching for watching in (observer, tracer) if watching is not None],
            )
            undone.callback(self._batcher.close)
            self.service = Service(
                repository,
                self._batcher,
                limit=workers + queue,
                max_elements=max_elements,
                observer=observer,
                tracer=tracer,
            )
            self._server = _grpc_server(workers + queue + SPARE, max_message_mb)
            undone.callback(self._server.stop, None)
            self._health = Health([SERVICE])
            methods = {SERVICE: _handlers(self.service, access), self._health.name: self._health.handlers()}
            for service, handlers in methods.items():
                self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
                # Those that gRPC knows by name are found faster.
                self._server.add_registered_method_handlers(service, handlers)
            self.port = _bound(self._server, endpoint(host, port), tls)
            self._server.start()
            undone.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ready(self) -> bool:
        """Whether it takes requests: until it is drained."""
        return self.service.ready

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Takes no more requests, says that it is not ready, and waits until those under way are answered.

        Returns:
            Whether they were, within `timeout_s`.
        """
        self._health.end()
        return self.service.drain(timeout_s)

    def close(self, grace_s: float = 1.0) -> None:
        """Refuses new requests, lets those under way end within `grace_s` seconds, and stops."""
        self._health.end()
        self._server.stop(grace_s).wait()
        self._batcher.close()

    def wait(self) -> None:
        """Blocks until the server is closed."""
        self._server.wait_for_termination()


class Client(Protocol):
    """Who asks."""

    def peer(self) -> str:
        """The address, in gRPC's way."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """The request's headers."""


class Caller(Client, Protocol):
    """A client that may leave: what is needed of gRPC's own context."""

    def is_active(self) -> bool:
        """Whether somebody still waits for the answer."""


def answer(service: Service, access: Access | None, name: str, content: bytes, caller: Caller) -> Any:
    """What one of `METHODS` answers.

    Messages are read here, not by gRPC: what strangers send is not looked at, and what cannot be read has a code
    and a text like every other refusal.

    Args:
        service: Says it.
        access: Who may ask; health answers everybody.
        name: The method's.
        content: The request as it came.
        caller: Whose it is.

    Returns:
        The response's message, or a `Refusal`.
    """
    method, message = METHODS[name]
    try:
        if access is not None and name not in _HEALTH:
            authorization = dict(caller.invocation_metadata()).get("authorization")
            access.check(_host(caller.peer()), cast("str | None", authorization))
        return method(service, _parsed(message, content), caller)
    except Exception as error:
        client = _host(caller.peer())
        asked = name == "ModelInfer"  # refused before anybody knew which model
        return service.failed("", error, client) if asked else refusal(error, client=client)


def _grpc_server(threads: int, max_message_mb: int) -> grpc.Server:
    options = [
        *grpc_options(max_message_mb),
        # Without this option Linux lets two servers share a port, each getting some of the calls.
        ("grpc.so_reuseport", 0),
        # Whoever waits long for an answer may ask now and then whether the connection is alive.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
    ]
    pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="offramp-grpc")
    return grpc.server(pool, options=options)


def _bound(server: grpc.Server, address: str, tls: ServerTls | None) -> int:
    """The port that a server listens on from now on."""
    why: Exception | None = None
    try:
        port: int = (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, tls.credentials())
        )
    except RuntimeError as error:
        port, why = 0, error
    if port == 0:
        raise PortError(f"cannot listen on {address}; is the port in use? Choose another one") from why
    return port


def _handlers(service: Service, access: Access | None) -> dict[str, grpc.RpcMethodHandler]:
    return {name: _handler(service, access, name) for name in METHODS}


def _handler(service: Service, access: Access | None, name: str) -> grpc.RpcMethodHandler:
    def handle(content: bytes, context: grpc.ServicerContext) -> Any:
        response = answer(service, access, name, content, context)
        if isinstance(response, Refusal):
            context.abort(response.code, response.text)
        return response

    return grpc.unary_unary_rpc_method_handler(
        handle, response_serializer=lambda response: response.SerializeToString()
    )


def _host(peer: str) -> str:
    """The address in gRPC's way to name a peer: `ipv4:10.0.0.7:40112`, `ipv6:%5Bfe80::1%5D:40112`."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")


def _parsed(message: Any, content: bytes) -> Any:
    try:
        return message.FromString(content)
    except DecodeError as error:
        raise InputError(f"this is no {message.DESCRIPTOR.name}") from error


def _server_live(service: Service, request: Any, caller: Caller) -> Any:
    return pb.ServerLiveResponse(live=True)


def _server_ready(service: Service, request: Any, caller: Caller) -> Any:
    return pb.ServerReadyResponse(ready=service.ready)


def _model_ready(service: Service, request: Any, caller: Caller) -> Any:
    return pb.ModelReadyResponse(ready=service.model_ready(request.name, request.version))


def _server_metadata(service: Service, request: Any, caller: Caller) -> Any:
    return pb.ServerMetadataResponse(name=service.name, version=service.version, extensions=service.extensions)


def _model_metadata(service: Service, request: Any, caller: Caller) -> Any:
    found = service.model(request.name, request.version)
    response = pb.ModelMetadataResponse(name=found.name, versions=found.versions, platform=found.platform)
    for specs, target in ((found.inputs, response.inputs), (found.outputs, response.outputs)):
        for spec in specs:
            target.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=[-1, *spec.shape])
    return response


def _repository_index(service: Service, request: Any, caller: Caller) -> Any:
    response = pb.RepositoryIndexResponse()
    for entry in service.index(ready=request.ready):
        response.models.add(name=entry.name, version=entry.version, state=entry.state)
    return response


def _model_infer(service: Service, request: Any, caller: Caller) -> Any:
    parameters, model = request.parameters, request.model_name
    with service.traced(model, caller.invocation_metadata):
        try:
            question = Question(
                model=model,
                tensors=from_request(request),
                version=request.model_version,
                digest=parameters["digest"].string_param if "digest" in parameters else None,
                final="final" in parameters and parameters["final"].bool_param,
                outputs=tuple([output.name for output in request.outputs]) if request.outputs else (),
                client=_host(caller.peer()) if service.logs_answers else "",
            )
            answer = service.infer(question, caller.is_active)
        except Exception as error:
            return service.failed(model, error, _host(caller.peer()))
        return response_message(
            model, answer.version, request.id, answer.tensors, answer.server_ms, answer.queue_ms
        )


#: The protocol's methods that we have; the others are UNIMPLEMENTED.
METHODS: dict[str, tuple[Callable[[Service, Any, Caller], Any], Any]] = {
    "ServerLive": (_server_live, pb.ServerLiveRequest),
    "ServerReady": (_server_ready, pb.ServerReadyRequest),
    "ModelReady": (_model_ready, pb.ModelReadyRequest),
    "ServerMetadata": (_server_metadata, pb.ServerMetadataRequest),
    "ModelMetadata": (_model_metadata, pb.ModelMetadataRequest),
    "RepositoryIndex": (_repository_index, pb.RepositoryIndexRequest),
    "ModelInfer": (_model_infer, pb.ModelInferRequest),
}
