"""Health as gRPC's own protocol has it, `grpc.health.v1`: Kubernetes' gRPC probes ask it, and gRPC's clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1.health import OVERALL_HEALTH, SERVICE_NAME, HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from offramp.errors import InputError
from offramp.serving.refusal import refusal

__all__ = ["Health"]


class Health:
    """Says of a server, and of its services one by one, whether they take requests; until it ends, they do.

    Args:
        services: Their names. The server as a whole has the empty name, whatever these are.

    Attributes:
        name: The protocol's own name.
    """

    name: str = SERVICE_NAME

    def __init__(self, services: Sequence[str]) -> None:
        self._known = (OVERALL_HEALTH, *services)
        self._servicer = cast(Any, HealthServicer)()  # it has no types
        for service in self._known:
            self._servicer.set(service, HealthCheckResponse.SERVING)

    def end(self) -> None:
        """Says NOT_SERVING from now on, also to those that watch."""
        self._servicer.enter_graceful_shutdown()

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """The protocol's methods; watching takes no thread."""

        def check(content: bytes, context: grpc.ServicerContext) -> Any:
            return self._servicer.Check(_request(content, context), context)

        def watch(
            content: bytes, context: grpc.ServicerContext, send_response_callback: Callable[[Any], None]
        ) -> None:
            asked = _request(content, context)
            if asked.service not in self._known:
                # The servicer keeps every name that is watched for ever; strangers may invent many.
                asked = HealthCheckRequest(service="unknown")
            self._servicer.Watch(asked, context, send_response_callback)

        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        return {
            "Check": grpc.unary_unary_rpc_method_handler(check, response_serializer=_serialized),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, response_serializer=_serialized),
        }


def _request(content: bytes, context: grpc.ServicerContext) -> Any:
    # Read here for the reasons of the other messages: no stack trace in the log, a code and a text.
    try:
        return HealthCheckRequest.FromString(content)
    except DecodeError:
        refused = refusal(InputError("this is no HealthCheckRequest"))
        context.abort(refused.code, refused.text)


def _serialized(response: Any) -> bytes:
    content: bytes = response.SerializeToString()
    return content
