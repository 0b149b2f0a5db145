"""`offramp serve`: bundles for many edges."""

from __future__ import annotations

import logging
import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.cluster import EngineOption, RayAddressOption, ReplicasOption, check_engine, serve_on_ray
from offramp.cli.credentials import (
    ClientCaOption,
    RateOption,
    TlsCertOption,
    TlsKeyOption,
    TokenFileOption,
    server_access,
    server_tls,
)
from offramp.cli.extras import needs_extra
from offramp.cli.messages import say
from offramp.cli.observing import (
    LogFormatOption,
    LogLevelOption,
    TracesOption,
    observed,
    server_tracer,
)
from offramp.cli.signals import asked_to
from offramp.errors import OfframpError, ServerBusyError

if TYPE_CHECKING:
    from offramp.runtime.repository import BundleFolders

__all__ = ["serve"]

_log = logging.getLogger("offramp.cli")


def serve(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles' directories, or folders that hold bundles.")
    ],
    host: Annotated[
        str, typer.Option(help="The address to listen on: this machine only, or 0.0.0.0 for every one.")
    ] = "127.0.0.1",
    grpc_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Inference over gRPC; 0 takes a free port.")
    ] = 8001,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="The same as REST, health checks and Prometheus metrics; none if left out."
        ),
    ] = None,
    provider: Annotated[str, typer.Option(help="Where to compute: `cpu` or `cuda`.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads per batch.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Batches that compute at once; one per core if left out.")
    ] = None,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests under way beyond one per worker; more are refused.")
    ] = 64,
    max_batch: Annotated[
        int,
        typer.Option(
            min=0,
            help="Samples that run together at most; 0 or 1 turns batching off. At its start the server measures "
            "which sizes are worth it to each stage.",
        ),
    ] = 16,
    max_wait_ms: Annotated[
        float,
        typer.Option(
            min=0,
            help="While every worker is busy: milliseconds that others may go first so that more share a batch; "
            "0 is strictly by arrival. Nobody waits while a worker is free.",
        ),
    ] = 2.0,
    max_message_mb: Annotated[int, typer.Option(min=1, max=2047, help="The largest message in MiB.")] = 64,
    max_elements: Annotated[int, typer.Option(min=1, help="Tensor elements of a request at most.")] = 2**24,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    client_ca: ClientCaOption = None,
    token_file: TokenFileOption = None,
    rate: RateOption = None,
    engine: EngineOption = "offramp",
    replicas: ReplicasOption = None,
    ray_address: RayAddressOption = None,
    traces: TracesOption = False,
    log_format: LogFormatOption = "text",
    log_level: LogLevelOption = "warning",
) -> None:
    """Serves the tails of bundles over gRPC (Open Inference Protocol v2) until stopped.

    The whole network is the model `NAME`; what follows cut K is `NAME-tail-K`, and `NAME-tail-K-uint8` takes
    the cut in that mode. Requests at any cut share the stages that they have in common, as batches.

    SIGHUP reads the directories again: a bundle that changed is served beside its previous version, so that edges
    that hold that one go on; new bundles come, those that are gone go, and no request is dropped. SIGTERM and
    Ctrl-C take no more requests, say that the server is not ready, answer what is under way, and leave.
    """
    import os

    from offramp.runtime.repository import BundleFolders, Repository
    from offramp.runtime.warming import warm_tail
    from offramp.serving.process import listening
    from offramp.serving.replica import ReplicaSettings
    from offramp.serving.server import GrpcServer
    from offramp.serving.wire import endpoint

    check_engine(
        engine,
        {
            "--http-port": http_port,
            "--tls-cert": tls_cert,
            "--tls-key": tls_key,
            "--client-ca": client_ca,
            "--rate": rate,
            "--traces": traces or None,
            "--log-format": None if log_format == "text" else log_format,
            "--log-level": None if log_level == "warning" else log_level,
        },
        {"--replicas": replicas, "--ray-address": ray_address},
    )
    if engine == "ray":
        settings = ReplicaSettings(
            tuple(str(path.absolute()) for path in bundles),
            threads=threads,
            provider=provider,
            workers=workers or 1,
            queue=queue,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            max_message_mb=max_message_mb,
            max_elements=max_elements,
        )
        access = server_access(host, None, token_file, None)
        serve_on_ray(settings, access, host=host, port=grpc_port, replicas=replicas, address=ray_address)
        return

    load = partial(warm_tail, threads=threads, provider=provider, max_batch=max_batch)
    tls = server_tls(tls_cert, tls_key, client_ca)
    access = server_access(host, tls, token_file, rate)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    repository = Repository()
    folders = BundleFolders(bundles, repository, load)
    with ExitStack() as stack:
        # From the start to the end, so that one while bundles are loaded, or at the end, stops nothing.
        told = stack.enter_context(asked_to(signal.SIGHUP))
        for error in folders.reread()[1]:
            raise error
        spans = stack.enter_context(observed("serve", traces, log_format, log_level))
        metrics = None
        if http_port is not None:
            with needs_extra("serve --http-port", "serve"):
                from offramp.observe.server_metrics import ServerMetrics
                from offramp.serving.http import HttpServer
            metrics = ServerMetrics()
        server = stack.enter_context(
            GrpcServer(
                repository,
                host=host,
                port=grpc_port,
                workers=workers or cores,
                queue=queue,
                max_batch=max(1, max_batch),
                max_wait_ms=max_wait_ms,
                max_message_mb=max_message_mb,
                max_elements=max_elements,
                tls=tls,
                access=access,
                observer=metrics,
                tracer=server_tracer(spans),
            )
        )
        if metrics is not None and http_port is not None:
            metrics.watch(server.service)
            http = stack.enter_context(
                HttpServer(
                    server.service,
                    metrics.registry,
                    host=host,
                    port=http_port,
                    max_message_mb=max_message_mb,
                    tls=tls,
                    access=access,
                )
            )
            scheme = "http" if tls is None else "https"
            say(f"offramp serve: {scheme}://{endpoint(host, http.port)}/metrics")
        names = ", ".join(repository.models)
        with asked_to(signal.SIGTERM, signal.SIGINT, queue=told) as requests:
            say(f"offramp serve: {listening(endpoint(host, server.port))}, models {names}")
            _log.info("serving", extra={"grpc_port": server.port, "models": names})
            while requests.get() == signal.SIGHUP:
                _reread(folders)
        say("offramp serve: stopping; requests under way are answered")
        _log.info("stopping", extra={"under_way": server.service.under_way})
        if not server.drain():
            raise ServerBusyError("requests that took too long were cut off")


def _reread(folders: BundleFolders) -> None:
    changes: list[str] = []
    errors: list[OfframpError] = []
    try:
        changes, errors = folders.reread()
    except OfframpError as clash:
        errors = [clash]
    for error in errors:
        _log.error("a bundle was not read again", extra={"reason": str(error)})
    _log.info("read again", extra={"changes": ", ".join(changes)})
    say(f"offramp serve: {', '.join(changes) or 'nothing changed'}")
