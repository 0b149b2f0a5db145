"""The edge's way to a server: Open Inference Protocol v2 over gRPC. Any such server will do."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from offramp.errors import (
    AccessError,
    AddressError,
    DeadlineError,
    DigestMismatchError,
    OfframpError,
    ProtocolError,
    ServerBusyError,
    ServerRefusedError,
    ServerUnavailableError,
)
from offramp.runtime.tail import TailReply, TailRequest
from offramp.serving.probe import probe
from offramp.serving.tls import Credentials
from offramp.serving.wire import MAX_PORT, from_outputs, grpc_options, request_message

__all__ = ["GrpcChannel", "parse_address"]

#: gRPC's status codes as our errors; any other code is a `ServerRefusedError`.
_ERRORS: dict[grpc.StatusCode, type[OfframpError]] = {
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.CANCELLED: ServerUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerBusyError,
    grpc.StatusCode.FAILED_PRECONDITION: DigestMismatchError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
    grpc.StatusCode.UNAUTHENTICATED: AccessError,
    grpc.StatusCode.PERMISSION_DENIED: AccessError,
}
#: A connection on which nothing comes back for so long is given up. Where its way is gone without a word (another
#: network, a router that forgot it), the system would try for a quarter of an hour.
_SILENT_MS = 20_000
#: Inference changes nothing on the server, so a request whose connection broke, or that found none, may be sent
#: once more; gRPC does it while the deadline allows. Late, refused and misunderstood requests are not repeated.
_RETRIES = {
    "name": [{"service": "inference.GRPCInferenceService", "method": "ModelInfer"}],
    "retryPolicy": {
        "maxAttempts": 2,
        "initialBackoff": "0.005s",
        "maxBackoff": "0.005s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE"],
    },
}


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT".

    Raises:
        AddressError: Anything else.
    """
    host, colon, port = address.strip().rpartition(":")
    known = host and "/" not in host and _may_be_a_host(host)
    if not colon or not known or not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
        raise AddressError(f"a server's address is HOST:PORT, such as 127.0.0.1:8001, not {address!r}")
    return host.strip("[]"), int(port)


def _may_be_a_host(name: str) -> bool:
    """Whether it can be looked up; sockets raise no OSError where it cannot."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return name.isprintable()


class GrpcChannel:
    """One connection to a server; it mends itself. Safe to use from several threads.

    A request whose connection breaks is sent once more if its deadline allows.

    Args:
        address: HOST:PORT.
        max_message_mb: The largest message in MiB.
        credentials: For servers that speak TLS or want a token.

    Raises:
        AddressError: The address is no HOST:PORT.
        ConfigError: A token would travel readable.
    """

    def __init__(self, address: str, *, max_message_mb: int = 64, credentials: Credentials | None = None) -> None:
        self._host, self._port = parse_address(address)
        self.address = address
        options = [
            *grpc_options(max_message_mb),
            # The circuit breaker spaces the attempts; gRPC's own pause grows to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            # In spite of its name this is the time that one attempt to connect may take.
            ("grpc.min_reconnect_backoff_ms", 5000),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.keepalive_time_ms", _SILENT_MS),
            ("grpc.keepalive_timeout_ms", _SILENT_MS),
            ("grpc.http2.ping_timeout_ms", _SILENT_MS),
            # Connections are shared between channels otherwise, their backoff with them.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.service_config", json.dumps({"methodConfig": [_RETRIES]})),
            # A request that is larger is not kept for a second attempt; gRPC's own limit is 256 KiB.
            ("grpc.per_rpc_retry_buffer_size", max_message_mb * 2**20),
        ]
        self._credentials = credentials or Credentials()
        self._metadata = self._credentials.metadata
        self._channel = self._credentials.channel(address, self._host, options)
        self._stub = rpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, request: TailRequest, timeout_s: float | None = None) -> TailReply:
        """Sends a cut and waits for the answer.

        Args:
            request: The cut.
            timeout_s: Seconds until a `DeadlineError`.

        Raises:
            ServerError: See `offramp.errors`; one for each way in which there is no answer.
        """
        message = request_message(request.model, request.tensors, request.digest, request.final)
        response = self._call(
            self._stub.ModelInfer, message, timeout_s, gzip=request.gzip, headers=request.headers
        )
        tensors = from_outputs(response)
        logits = tensors.get("logits")
        if logits is None or logits.dtype != np.float32:
            raise ProtocolError(
                f"{self.address} answered with {', '.join(tensors) or 'nothing'}; expected FP32 logits"
            )
        exits = tensors.get("exit")
        if exits is not None and exits.dtype.kind not in "iu":
            raise ProtocolError(f"{self.address} names the exit that answered as {exits.dtype}; expected INT64")
        parameters = response.parameters
        return TailReply(
            logits=cast("NDArray[np.float32]", logits),
            exits=None if exits is None else exits.astype(np.int64, copy=False).reshape(-1),
            server_ms=parameters["server_ms"].double_param if "server_ms" in parameters else None,
            queue_ms=parameters["queue_ms"].double_param if "queue_ms" in parameters else None,
        )

    def check(self, model: str, digest: str, timeout_s: float = 2.0) -> None:
        """Asks whether the server is there, speaks the protocol, and holds the same bundle.

        Args:
            model: The bundle's name.
            digest: The bundle's digest.
            timeout_s: Seconds to wait.

        Raises:
            ServerUnavailableError: Nobody is there, for now.
            ProtocolError: What answers does not speak the protocol.
            AccessError: The server does not take the token or certificate, or shows none that `ca` has signed.
            ServerRefusedError: The server does not hold the bundle.
            DigestMismatchError: The server holds another version of it.
        """
        try:
            found = self._call(self._stub.ModelMetadata, pb.ModelMetadataRequest(name=model), timeout_s)
        except (ServerUnavailableError, DeadlineError) as error:
            probe(self._host, self._port, self._credentials, timeout_s)
            raise ServerUnavailableError(f"no server at {self.address}: {error}") from error
        # Servers of other makes number their versions; ours names the digest.
        digests = [version for version in found.versions if len(version) == len(digest)]
        if digests and digest not in digests:
            raise DigestMismatchError(
                f"{self.address} holds another version of {model!r} (digest {digests[0][:12]}…, "
                f"here {digest[:12]}…); give edge and server the same bundle"
            )

    def ping_ms(self, timeout_s: float = 2.0) -> float:
        """Milliseconds of an empty round trip.

        Raises:
            ServerError: There is no answer.
        """
        start = time.perf_counter()
        self._call(self._stub.ServerLive, pb.ServerLiveRequest(), timeout_s)
        return (time.perf_counter() - start) * 1e3

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _call(
        self,
        method: Any,
        message: Any,
        timeout_s: float | None,
        *,
        gzip: bool = False,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Any:
        try:
            return method(
                message,
                timeout=timeout_s,
                metadata=(*(self._metadata or ()), *headers) if headers else self._metadata,
                compression=grpc.Compression.Gzip if gzip else None,
            )
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            kind = _ERRORS.get(code, ServerRefusedError)
            if kind is DeadlineError:
                details = f"no answer within {(timeout_s or 0) * 1e3:.0f} ms"
            raise kind(f"{self.address}: {details or code.name}") from error
        except ValueError as error:  # gRPC's word for a closed channel
            raise ServerUnavailableError(f"{self.address}: {error}") from error
