"""Replicas behind Ray Serve's own gRPC server, on a cluster or on this machine. Needs the extra `ray`."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig
from typing_extensions import Self

from offramp.bundle.bundle import Bundle
from offramp.errors import ConfigError, ServerUnavailableError
from offramp.runtime.repository import bundle_folders
from offramp.runtime.tail import tail_models
from offramp.serving.access import Access
from offramp.serving.channel import parse_address
from offramp.serving.replica import APPLICATION, Replica, ReplicaSettings, deployment_options
from offramp.serving.server import METHODS, SERVICE
from offramp.serving.triton import check_whole

__all__ = ["RayServer", "add_servicer"]

_SERVICER = f"{__name__}.add_servicer"
_REACH_S = 5.0


def add_servicer(servicer: Any, server: Any) -> None:
    """The protocol's methods for Ray Serve's gRPC server, which hands the messages on as they came, unread."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class RayServer:
    """Serves bundles from replicas until closed; ends what it started, and nothing else.

    Args:
        settings: What every replica holds.
        access: Who may ask.
        port: Where every machine that has a replica listens.
        fewest: Replicas at least.
        most: Replicas at most; between both, as many as the load needs.
        address: The cluster: HOST:PORT, "auto" for the one of this machine, "local" for one that is started here.

    Attributes:
        models: What is served, by the wire's names.

    Raises:
        BundleError, ExportError: A bundle that cannot be read, or is an edge copy.
        AddressError: An address that is none.
        ConfigError: More replicas than this machine has processors for.
        ServerUnavailableError: There is no such cluster, it serves something else, or the replicas do not start.
    """

    def __init__(
        self,
        settings: ReplicaSettings,
        access: Access | None = None,
        *,
        port: int = 8001,
        fewest: int = 1,
        most: int = 1,
        address: str = "local",
    ) -> None:
        self.models: tuple[str, ...] = ()
        self._settings, self._access = settings, access
        self._options = deployment_options(settings, fewest, most)
        self._digests = self._read()
        with ExitStack() as stack:
            stack.enter_context(_cluster(address))
            if address == "local":
                _check_processors(fewest, self._options["ray_actor_options"]["num_cpus"])
            stack.enter_context(_ray_serve(port))
            self._deploy()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reread(self) -> None:
        """Replaces one replica after the other by one that has read the bundles as they are now.

        Raises:
            BundleError, ExportError: As above; everything stays as it was.
            ServerUnavailableError: The replicas do not start, or the cluster does not answer.
        """
        self._digests = self._read()
        self._deploy()

    def drain(self) -> None:
        """Takes no more requests, and waits until those under way are answered, for `DRAIN_S` seconds at most.

        Raises:
            ServerUnavailableError: The cluster does not answer.
        """
        with _told("the replicas do not end"):
            serve.delete(APPLICATION)

    def close(self) -> None:
        """Ends what was started."""
        self._stack.close()

    def _read(self) -> list[str]:
        folders = [folder for path in self._settings.bundles for folder in bundle_folders(Path(path))]
        bundles = [Bundle.load(folder) for folder in dict.fromkeys(folders)]
        for bundle in bundles:
            check_whole(bundle)  # here, since a rolling update that fails costs replicas
        self.models = tuple(
            dict.fromkeys(model.name for bundle in bundles for model in tail_models(bundle.manifest))
        )
        return [bundle.digest for bundle in bundles]

    def _deploy(self) -> None:
        deployment = serve.deployment(Replica).options(**self._options)
        application = deployment.bind(self._settings, self._access, self._digests)
        with _told("the replicas do not start"):
            # Without a route gRPC would not find it either.
            serve.run(application, name=APPLICATION, route_prefix="/")


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Joins a cluster, or starts one; ends what was started."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    local: Mapping[str, Any] = {"include_dashboard": False} if address == "local" else {}
    if address not in ("local", "auto"):
        _reach(address)  # Ray itself would try for minutes
    try:
        with _told(f"no Ray cluster at {address}"):
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **local)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _ray_serve(port: int) -> Iterator[None]:
    """Starts Ray Serve on a cluster that has none yet; ends it."""
    with _told("Ray Serve does not answer"):
        if _controller() is not None:
            others = ", ".join(serve.status().applications) or "no application yet"
            raise ServerUnavailableError(
                f"Ray Serve runs on this cluster already, with {others}; edges name no application, so there is "
                "room for ours alone, and ports are set when Ray Serve starts. `serve shutdown` ends what runs"
            )
    try:
        with _told(f"Ray Serve does not start on port {port}"):
            serve.start(
                proxy_location="EveryNode",
                # Ray Serve's HTTP server cannot be left out.
                http_options=HTTPOptions(host="127.0.0.1", port=0),
                grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[_SERVICER]),
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
        yield
    finally:
        with _told("Ray Serve does not end"):
            serve.shutdown()


def _controller() -> object:
    """Ray Serve's controller, if it runs."""
    try:
        return ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What Ray says becomes one line of ours."""
    try:
        yield
    except (RayError, RayServeException, ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise ServerUnavailableError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """An error of ours that a replica raised, or else Ray's last line."""
    texts = [str(error)]
    if ray.is_initialized() and _controller() is not None:
        for application in serve.status().applications.values():
            texts += [deployment.message for deployment in application.deployments.values()]
    for text in texts:
        if ours := re.findall(r"^offramp\.errors\.\w+: (.*)", text, re.MULTILINE):
            return str(ours[-1])
    lines = [line.strip() for line in texts[-1].splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _reach(address: str) -> None:
    host, port = parse_address(address)
    try:
        socket.create_connection((host, port), timeout=_REACH_S).close()
    except OSError as error:
        raise ServerUnavailableError(f"no Ray cluster at {address}: {error.strerror or error}") from error


def _check_processors(replicas: int, each: float) -> None:
    have = ray.cluster_resources().get("CPU", 0)
    if replicas * each > have:
        raise ConfigError(
            f"{replicas} replicas of {each} processors each need more than the {have:.0f} that are here; "
            "lower --replicas, --workers or --threads"
        )
