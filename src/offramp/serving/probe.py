"""What answers at an address where gRPC finds nobody: it says "unavailable" whatever the reason."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

from offramp.errors import AccessError, ProtocolError
from offramp.serving.tls import Credentials

__all__ = ["probe"]

#: The client's first bytes on an HTTP/2 connection and an empty SETTINGS frame (RFC 9113 §3.4, §6.5).
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


def probe(host: str, port: int, credentials: Credentials, timeout_s: float) -> None:
    """Raises an error if somebody is there who will never answer; silence and refusal mean a server that is away.

    Raises:
        ProtocolError: What answers does not speak gRPC, or speaks it over TLS only.
        AccessError: The server's certificate is not valid here, or the edge's not there.
    """
    address = f"{host}:{port}"
    context = credentials.context()
    head = b""
    with contextlib.suppress(OSError), _connected(host, port, timeout_s) as peer:
        if context is None:
            head = _greeted(peer)
        else:
            with _encrypted(peer, host, context, address) as secured:
                try:
                    head = _greeted(secured)
                except TimeoutError:
                    return
                except OSError:
                    head = b""
                if not head:  # with TLS 1.3 a client is turned away after the handshake
                    raise AccessError(
                        f"{address} ended the connection over TLS: it wants another certificate of the edge "
                        "(`--cert` and `--key`)"
                    )
    if head and (len(head) < 4 or head[3] != _SETTINGS):
        raise ProtocolError(
            f"{address} answers, but not with gRPC; is it the gRPC port of an Open Inference Protocol server?"
        )
    if not head and context is None and _speaks_tls(host, port, timeout_s):
        raise ProtocolError(f"{address} wants TLS; give `ca` (`--ca`), who must have signed its certificate")


@contextlib.contextmanager
def _connected(host: str, port: int, timeout_s: float) -> Iterator[socket.socket]:
    with socket.create_connection((host, port), timeout_s) as peer:
        peer.settimeout(timeout_s)
        yield peer


def _encrypted(peer: socket.socket, host: str, context: ssl.SSLContext, address: str) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(peer, server_hostname=host)
    except ssl.SSLEOFError:  # so ends a link whose far end is away
        raise
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason or "no TLS"
        raise AccessError(f"{address}: no connection over TLS: {reason}") from error


def _greeted(peer: socket.socket) -> bytes:
    peer.sendall(_HTTP2_HELLO)
    return peer.recv(9)


def _speaks_tls(host: str, port: int, timeout_s: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    context.set_alpn_protocols(["h2"])
    try:
        with _connected(host, port, timeout_s) as peer, context.wrap_socket(peer):
            return True
    except OSError:
        return False
