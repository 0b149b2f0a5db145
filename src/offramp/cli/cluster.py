"""`offramp serve --engine ray`: the options that belong to it, those that it cannot honour, and its run."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.extras import needs_extra
from offramp.cli.messages import print_error, say
from offramp.cli.signals import asked_to
from offramp.errors import ConfigError, OfframpError

if TYPE_CHECKING:
    from offramp.serving.access import Access
    from offramp.serving.replica import ReplicaSettings

__all__ = [
    "EngineOption",
    "RayAddressOption",
    "ReplicasOption",
    "check_engine",
    "check_ray_port",
    "parse_replicas",
    "serve_on_ray",
]

EngineOption = Annotated[
    str,
    typer.Option(
        metavar="offramp|ray", help="What stands before the tails: our own server, or Ray Serve's with replicas."
    ),
]
ReplicasOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|A..B", help="Ray: how many replicas; 1..4 are as many as the load needs. 1 if left out."
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT|auto|local",
        help="Ray: the cluster to join. RAY_ADDRESS in the environment if left out, and without that one that is "
        "started here, for as long as this runs.",
    ),
]
#: Whoever says so knows that everybody who reaches a machine of the cluster reaches the port.
_EVERYWHERE = ("0.0.0.0", "::", "[::]")
_NO_TLS = "Ray Serve's gRPC server takes no certificate; let what stands before it speak TLS"
_OURS_ALONE = {
    "--http-port": "Ray Serve's HTTP server is not ours; its health, metrics and dashboard are Ray's",
    "--tls-cert": _NO_TLS,
    "--tls-key": _NO_TLS,
    "--client-ca": _NO_TLS,
    "--rate": "every replica would count for itself; limit clients where they come in",
    "--traces": "replicas send none; Ray has traces of its own",
    "--log-format": "replicas log by Ray's own rules",
    "--log-level": "replicas log by Ray's own rules",
}


def check_engine(engine: str, only_ours: Mapping[str, object], only_ray: Mapping[str, object]) -> None:
    """Refuses an unknown engine, and options that the chosen one would not honour.

    Args:
        engine: As it was typed.
        only_ours: The values of options that Ray cannot honour; None if left out.
        only_ray: The values of options for Ray alone; None if left out.

    Raises:
        ConfigError: There is one.
    """
    if engine not in ("offramp", "ray"):
        raise ConfigError(f"--engine is offramp or ray, not {engine!r}")
    for option, value in (only_ray if engine == "offramp" else only_ours).items():
        if value is not None:
            why = f": {_OURS_ALONE[option]}" if engine == "ray" else ""
            raise ConfigError(f"{option} goes with --engine {'ray' if engine == 'offramp' else 'offramp'}{why}")


def parse_replicas(text: str | None) -> tuple[int, int]:
    """The fewest and the most replicas of "2" or "1..4"; one if None.

    Raises:
        ConfigError: Anything else.
    """
    first, dots, last = ("1" if text is None else text).partition("..")
    if not (first.isdecimal() and (last.isdecimal() if dots else True)):
        raise ConfigError(f"--replicas is a number such as 2, or a range such as 1..4, not {text!r}")
    fewest, most = int(first), int(last if dots else first)
    if not 1 <= fewest <= most:
        raise ConfigError(f"--replicas A..B are at least one and at most more than that, not {text!r}")
    return fewest, most


def check_ray_port(host: str, port: int) -> None:
    """Refuses addresses on which Ray Serve cannot listen.

    Raises:
        ConfigError: One address of several, or a free port.
    """
    if host not in _EVERYWHERE:
        raise ConfigError(
            f"Ray Serve listens on every address of every machine, not on {host} alone; if that is meant, "
            "say --host 0.0.0.0"
        )
    if port == 0:
        raise ConfigError("every machine of the cluster listens on the same port; name it with --grpc-port")


def serve_on_ray(
    settings: ReplicaSettings,
    access: Access | None,
    *,
    host: str,
    port: int,
    replicas: str | None,
    address: str | None,
) -> None:
    """Serves until a signal says otherwise; SIGHUP replaces the replicas by some that read the bundles again.

    Raises:
        ConfigError: An address, port or number of replicas that cannot be.
        MissingExtraError: Ray is not installed.
        OfframpError: As `RayServer` says.
    """
    fewest, most = parse_replicas(replicas)
    check_ray_port(host, port)
    with needs_extra("serve --engine ray", "ray"):
        from offramp.serving.ray import RayServer

    from offramp.serving.process import listening

    cluster = address or os.environ.get("RAY_ADDRESS") or "local"
    with (
        asked_to(signal.SIGHUP) as told,  # while Ray starts, which takes seconds, and at the end it stops nothing
        RayServer(settings, access, port=port, fewest=fewest, most=most, address=cluster) as server,
    ):
        with asked_to(signal.SIGTERM, signal.SIGINT, queue=told) as requests:
            names = ", ".join(server.models)
            say(f"offramp serve: {listening(f'{host}:{port}')}, models {names}")
            while requests.get() == signal.SIGHUP:
                try:
                    server.reread()
                except OfframpError as error:
                    print_error(error)
                else:
                    say("offramp serve: every replica has read the bundles again")
        say("offramp serve: stopping; requests under way are answered")
        server.drain()
