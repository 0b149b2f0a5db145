"""Errors as a client may see them: a code for each transport, and a text that says nothing of the inside."""

from __future__ import annotations

import logging
from typing import NamedTuple

import grpc

from offramp.errors import (
    AccessError,
    DeadlineError,
    DigestMismatchError,
    InputError,
    OfframpError,
    ServerBusyError,
    ServerRefusedError,
    ServerUnavailableError,
)

__all__ = ["HTTP_STATUS", "Refusal", "refusal"]

_log = logging.getLogger("offramp.server")

#: Our errors as gRPC status codes; anything else is INTERNAL and says nothing of the inside.
_CODES = {
    ServerRefusedError: grpc.StatusCode.NOT_FOUND,
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    DigestMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    ServerBusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    ServerUnavailableError: grpc.StatusCode.UNAVAILABLE,
    AccessError: grpc.StatusCode.UNAUTHENTICATED,
}
#: gRPC's codes over HTTP, as Google's `google/rpc/code.proto` maps them.
HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
#: Characters; gRPC sends texts as headers, and clients take 8 KiB of those.
_LONGEST = 500


class Refusal(NamedTuple):
    """Why there is no answer."""

    code: grpc.StatusCode
    text: str


def refusal(error: Exception, **about: str) -> Refusal:
    """An error's code and text; what is none of the caller's making is logged here, and not told.

    Args:
        error: Why there is no answer.
        **about: Fields for the log, such as model and client.
    """
    code = _CODES.get(type(error)) if isinstance(error, OfframpError) else None
    if code is None:
        about["code"] = grpc.StatusCode.INTERNAL.name
        _log.error("request failed", exc_info=None if isinstance(error, OfframpError) else error, extra=about)
        return Refusal(grpc.StatusCode.INTERNAL, "the server could not run this request")
    # A name that a client invented may hold anything; a header or a JSON text holds no lone surrogates.
    text = str(error).encode("utf-8", "replace").decode()
    found = Refusal(code, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
    _log.info("request refused", extra={"code": code.name, "reason": found.text, **about})
    return found
