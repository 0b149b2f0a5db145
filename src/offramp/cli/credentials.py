"""Options about certificates, tokens and rates, on either side of the wire. A token is never an option's value."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.errors import ConfigError

if TYPE_CHECKING:
    from offramp.serving.access import Access
    from offramp.serving.tls import Credentials, ServerTls

__all__ = [
    "CaOption",
    "CertOption",
    "ClientCaOption",
    "EdgeTokenOption",
    "KeyOption",
    "RateOption",
    "TlsCertOption",
    "TlsKeyOption",
    "TokenFileOption",
    "edge_credentials",
    "server_access",
    "server_tls",
]

_TOKEN_HELP = "without it OFFRAMP_TOKEN in the environment."
TlsCertOption = Annotated[Path | None, typer.Option(metavar="FILE", help="TLS: the server's certificate, PEM.")]
TlsKeyOption = Annotated[Path | None, typer.Option(metavar="FILE", help="TLS: its private key, PEM.")]
ClientCaOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Mutual TLS: only clients whose certificate this one signed, PEM."),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help=f"Only clients that show one of these tokens, one per line; {_TOKEN_HELP}"),
]
RateOption = Annotated[
    float | None,
    typer.Option(help="Requests per second and client address; more are refused. No limit if left out."),
]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="TLS: who must have signed the server's certificate, PEM."),
]
CertOption = Annotated[
    Path | None, typer.Option("--cert", metavar="FILE", help="Mutual TLS: the edge's own certificate, PEM.")
]
KeyOption = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Mutual TLS: its private key, PEM.")]
EdgeTokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help=f"A file with the token to show the server; {_TOKEN_HELP}"),
]


def server_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """What `--tls-cert`, `--tls-key` and `--client-ca` say.

    Raises:
        ConfigError: Some are missing, or cannot be used.
    """
    from offramp.serving.tls import ServerTls

    if cert is not None and key is not None:
        return ServerTls(cert, key, client_ca)
    if cert is not None or key is not None or client_ca is not None:
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    return None


def server_access(host: str, tls: ServerTls | None, token_file: Path | None, rate: float | None) -> Access | None:
    """What `--token-file`, OFFRAMP_TOKEN and `--rate` say; warns of tokens that travel readable.

    Raises:
        ConfigError: Tokens that cannot be read, or a rate that cannot be.
    """
    from offramp.serving.access import Access, read_tokens
    from offramp.serving.tls import is_loopback

    tokens = read_tokens(token_file, os.environ)
    if tokens and tls is None and not is_loopback(host):
        warnings.warn(
            f"tokens travel readable to {host}: without --tls-cert, something in front must speak TLS",
            stacklevel=2,
        )
    return Access(tokens, rate=rate) if tokens or rate is not None else None


def edge_credentials(ca: Path | None, cert: Path | None, key: Path | None, token_file: Path | None) -> Credentials:
    """What `--ca`, `--cert`, `--key`, `--token-file` and OFFRAMP_TOKEN say.

    Raises:
        ConfigError: Files that cannot be used, or several tokens.
    """
    from offramp.serving.access import read_tokens
    from offramp.serving.tls import Credentials

    tokens = read_tokens(token_file, os.environ)
    if len(tokens) > 1:
        raise ConfigError(f"{token_file} holds {len(tokens)} tokens; an edge shows one")
    return Credentials(ca, cert, key, *tokens)
