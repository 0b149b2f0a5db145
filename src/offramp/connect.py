"""Addresses to channels: what `Edge(server="host:port")` goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offramp.bundle.bundle import Bundle
from offramp.errors import ServerUnavailableError
from offramp.policy.base import Policy
from offramp.runtime.edge import Edge as LocalEdge
from offramp.runtime.tail import Channel
from offramp.serving.channel import GrpcChannel
from offramp.serving.tls import Credentials

__all__ = ["Edge", "connect"]


def connect(address: str, bundle: Bundle, credentials: Credentials | None = None) -> GrpcChannel:
    """A channel to the server at HOST:PORT, checked as far as it can be reached.

    A server that is not there yet is no error: the edge answers on its own until it is.

    Raises:
        AddressError: The address is no HOST:PORT.
        ProtocolError: What answers does not speak the Open Inference Protocol over gRPC.
        AccessError: The server does not take the credentials, or the edge not the server's.
        ServerRefusedError: The server does not hold the bundle.
        DigestMismatchError: The server holds another version of it.
    """
    channel = GrpcChannel(address, credentials=credentials)
    try:
        channel.check(bundle.manifest.name, bundle.digest)
    except ServerUnavailableError:
        pass
    except Exception:
        channel.close()
        raise
    return channel


class Edge(LocalEdge):
    """The edge loop, with the server given by its address; see `offramp.runtime.edge.Edge`.

    Args:
        bundle: A bundle, or the path of one; an edge copy will do.
        server: HOST:PORT, or any `Channel`; without one, everything stays on the edge.
        policy: Chooses for each input; the whole network on the edge if left out.
        credentials: For servers that speak TLS or want a token, given by their address.
        **options: As `offramp.runtime.edge.Edge` takes them.

    Raises:
        BundleError: The bundle cannot be trusted or read.
        ServerError: As `connect` says.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        server: str | Channel | None = None,
        policy: Policy | None = None,
        credentials: Credentials | None = None,
        **options: Any,
    ) -> None:
        loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        channel = connect(server, loaded, credentials) if isinstance(server, str) else server
        try:
            super().__init__(loaded, channel, policy, **options)
        except Exception:
            if channel is not None and isinstance(server, str):
                channel.close()
            raise
