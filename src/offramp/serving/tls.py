"""TLS on both sides of the wire: certificates from files, checked before they are used."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from offramp.errors import ConfigError

__all__ = ["Credentials", "ServerTls", "is_loopback"]


@dataclass(frozen=True)
class ServerTls:
    """A server's certificate, for gRPC and HTTP; PEM files, read when a server starts.

    Attributes:
        cert: The certificate, with those between it and the root if there are any.
        key: Its private key, without a password.
        client_ca: Who must have signed a client's certificate; without it clients need none.

    Raises:
        ConfigError: A file that cannot be read, or a key that is not the certificate's.
    """

    cert: str | Path
    key: str | Path
    client_ca: str | Path | None = None

    def __post_init__(self) -> None:
        self.context()

    def context(self) -> ssl.SSLContext:
        """For servers of Python's own kind."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load_pair(context, self.cert, self.key)
        if self.client_ca is not None:
            _load_ca(context, self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC."""
        return grpc.ssl_server_credentials(
            [(_read(self.key), _read(self.cert))],
            root_certificates=None if self.client_ca is None else _read(self.client_ca),
            require_client_auth=self.client_ca is not None,
        )


@dataclass(frozen=True)
class Credentials:
    """How an edge knows its server, and the server the edge.

    Attributes:
        ca: A PEM file with who must have signed the server's certificate; without it there is no TLS.
        cert: The edge's own certificate, for servers that want one.
        key: Its private key, without a password.
        token: What the server wants to be shown.

    Raises:
        ConfigError: A file that cannot be read, a certificate without its key or without `ca`, or a key that is
            not the certificate's.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("a certificate and its key belong together; give both, or neither")
        if self.cert is not None and self.ca is None:
            raise ConfigError(
                "a certificate of the edge is shown over TLS only; give `ca` as well, who signed the server's"
            )
        self.context()

    def context(self) -> ssl.SSLContext | None:
        """For connections of Python's own kind; None without TLS."""
        if self.ca is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load_ca(context, self.ca)
        if self.cert is not None and self.key is not None:
            _load_pair(context, self.cert, self.key)
        context.set_alpn_protocols(["h2"])
        return context

    def channel(self, address: str, host: str, options: Sequence[tuple[str, object]]) -> grpc.Channel:
        """A gRPC channel.

        Raises:
            ConfigError: A token that would travel readable to another machine.
        """
        if self.ca is None:
            if self.token is not None and not is_loopback(host):
                raise ConfigError(
                    f"a token is not sent to {host} where everybody on the way could read it; give `ca` for TLS"
                )
            return grpc.insecure_channel(address, options=options)
        credentials = grpc.ssl_channel_credentials(
            _read(self.ca),
            None if self.key is None else _read(self.key),
            None if self.cert is None else _read(self.cert),
        )
        return grpc.secure_channel(address, credentials, options=options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What goes along with every call."""
        return None if self.token is None else (("authorization", f"Bearer {self.token}"),)


def is_loopback(host: str) -> bool:
    """Whether what goes to this host stays on this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _read(file: str | Path) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error


def _load_pair(context: ssl.SSLContext, cert: str | Path, key: str | Path) -> None:
    _read(cert), _read(key)
    try:
        # Without a password given, OpenSSL would ask at the terminal.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"{cert} and {key} are no certificate and its private key, both PEM and without a password"
        ) from error


def _load_ca(context: ssl.SSLContext, file: str | Path) -> None:
    _read(file)
    try:
        context.load_verify_locations(file)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{file} holds no certificates in PEM form") from error
