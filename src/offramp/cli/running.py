"""`offramp serve | run`: a bundle at work."""

from __future__ import annotations

import logging
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console

from offramp.cli.costs import COST_HELP, parse_cost
from offramp.cli.credentials import (
    CaOption,
    CertOption,
    ClientCaOption,
    EdgeTokenOption,
    KeyOption,
    RateOption,
    TlsCertOption,
    TlsKeyOption,
    TokenFileOption,
    edge_credentials,
    server_access,
    server_tls,
)
from offramp.cli.extras import needs_extra
from offramp.cli.observing import (
    LogFormatOption,
    LogLevelOption,
    MetricsHostOption,
    MetricsPortOption,
    TracesOption,
    counting,
    edge_tracer,
    observed,
    server_tracer,
)
from offramp.cli.options import BundleArgument, ServerOption, SlowdownOption
from offramp.cli.signals import asked_to
from offramp.errors import ConfigError, OfframpError, ServerBusyError

if TYPE_CHECKING:
    from offramp.runtime.repository import BundleFolders
    from offramp.runtime.result import Result

__all__ = ["run", "serve"]

_log = logging.getLogger("offramp.cli")


def serve(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles' directories, or folders that hold bundles.")
    ],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8001,
    http_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The same as REST, and Prometheus metrics; none if left out."),
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

    from offramp.bundle.bundle import Bundle
    from offramp.runtime.repository import BundleFolders, Repository
    from offramp.runtime.stages import Stages
    from offramp.runtime.tail import Tail
    from offramp.runtime.warming import measured_sizes
    from offramp.serving.process import listening
    from offramp.serving.server import GrpcServer

    def load(bundle: Bundle) -> Tail:
        stages = Stages(bundle, threads=threads, provider=provider)
        return Tail(stages, sizes=measured_sizes(stages, max(1, max_batch)))

    tls = server_tls(tls_cert, tls_key, client_ca)
    access = server_access(host, tls, token_file, rate)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    repository = Repository()
    folders = BundleFolders(bundles, repository, load)
    for error in folders.reread()[1]:
        raise error
    with ExitStack() as stack:
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
            print(f"offramp serve: {scheme}://{host}:{http.port}/metrics", flush=True)
        names = ", ".join(repository.models)
        with asked_to(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as requests:
            print(f"offramp serve: {listening(f'{host}:{server.port}')}, models {names}", flush=True)
            _log.info("serving", extra={"grpc_port": server.port, "models": names})
            while requests.get() == signal.SIGHUP:
                _reread(folders)
        print("offramp serve: stopping; requests under way are answered", flush=True)
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
    print(f"offramp serve: {', '.join(changes) or 'nothing changed'}", flush=True)


def run(
    bundle: BundleArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images, .npy or .npz files, folders, patterns such as `'photos/**/*.jpg'`; `-` reads paths from "
            "the standard input, one per line; `camera:0`.",
        ),
    ],
    server: ServerOption = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME[,OPTION=VALUE...]",
            help="`i-splitee`, `splitee`, `splitee-s`, `uee-ucb`, `dynamic-split`, `cascade`, `random`, "
            "`edge-only`, `server-only`, `split-K`, `split-K-all`; options such as `i-splitee,audit=0.05`.",
        ),
    ] = "cascade",
    alpha: Annotated[
        float | None, typer.Option(min=0, max=1, help="The gates' threshold; the bundle's own if left out.")
    ] = None,
    deadline_ms: Annotated[float, typer.Option(help="Milliseconds that one input may take.")] = 1000.0,
    link_rate: Annotated[
        str | None,
        typer.Option(
            help="The link's rate, such as 10mbit, as `offramp profile` measures it: cuts are compressed where "
            "`offramp modes --write` found that it pays."
        ),
    ] = None,
    cost: Annotated[str, typer.Option(metavar="NAME=VALUE,...", help=COST_HELP)] = "",
    under_way: Annotated[
        int,
        typer.Option(
            min=1,
            help="Inputs at once: the next ones' heads run while answers are awaited. 1 has the lowest latency.",
        ),
    ] = 1,
    edge_slowdown: SlowdownOption = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="For policies that draw.")] = 0,
    state: Annotated[
        Path | None,
        typer.Option(help="A file that keeps what the policy learned: read if it is there, written at the end."),
    ] = None,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: EdgeTokenOption = None,
    out: Annotated[Path | None, typer.Option(help="A file for the JSON lines, instead of the output.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on behind the last whole line in --out, if there is one: nothing is run twice. Give the same "
            "inputs again.",
        ),
    ] = False,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = "127.0.0.1",
    traces: TracesOption = False,
    log_format: LogFormatOption = "text",
    log_level: LogLevelOption = "warning",
) -> None:
    """Runs inputs through the edge: one JSON line per input on the output, a summary on the error output.

    Without --server everything is answered here. Exits with 1 if any input failed.
    """
    from offramp.bundle.bundle import Bundle
    from offramp.connect import Edge
    from offramp.policy.memory import load_state, save_state
    from offramp.policy.registry import make_policy, parse_policy
    from offramp.report.lines import LineSink, take_up
    from offramp.report.live import run_inputs
    from offramp.runtime.board_energy import find_board_energy
    from offramp.runtime.live_sources import CAMERA
    from offramp.runtime.sources import find_inputs, read_inputs
    from offramp.serving.link import parse_rate

    if resume and out is None:
        raise ConfigError("--resume goes on with a file of results; name it with --out")
    bits = 0.0 if link_rate is None else parse_rate(link_rate)
    if resume and any(name.startswith(CAMERA) for name in inputs):
        raise ConfigError("a camera's frames do not come again, so --resume cannot leave out those that are done")
    sources, loaded = find_inputs(inputs), Bundle.load(bundle)
    name, options = parse_policy(policy)
    if alpha is not None:
        if "alpha" in options:
            raise ConfigError(f"--alpha {alpha} and {policy!r} both name the gates' threshold; leave one out")
        options["alpha"] = alpha
    chosen = make_policy(name, seed=seed, **options)
    done = take_up(out) if out is not None and resume else []
    with (
        observed("run", traces, log_format, log_level) as spans,
        Edge(
            loaded,
            server=server,
            policy=chosen,
            credentials=edge_credentials(ca, cert, key, token_file),
            deadline_ms=deadline_ms,
            link_mbps=bits / 1e6 or None,
            cost=parse_cost(cost, [stage.depth for stage in loaded.manifest.stages]),
            slowdown=edge_slowdown,
            tracer=edge_tracer(spans),
        ) as edge,
        counting(edge, metrics_host, metrics_port) as count,
        _sink(out, resume) as file,
    ):
        if state is not None and state.exists():
            load_state(chosen, state, edge.bundle.digest)
        try:
            samples = read_inputs(sources, loaded.manifest.inputs, loaded.manifest.preprocessing, done=done)
            lines, counts = LineSink(file, first=len(done)), Counter[str]()

            def sink(name: str, result: Result) -> None:
                count(result)  # whoever sees the line finds it counted
                counts[result.status] += 1
                lines(name, result)

            board = find_board_energy()
            console = Console(stderr=True, quiet=log_format == "json")  # the summary is none
            failed = run_inputs(edge, samples, sink, console, under_way=under_way, board=board)
        finally:
            _log.info("run ended", extra=dict(counts))
            if state is not None:
                save_state(chosen, state, edge.bundle.digest)
    if failed:
        raise typer.Exit(1)


@contextmanager
def _sink(out: Path | None, resume: bool) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        file = out.open("a" if resume else "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from error
    try:
        yield file
    finally:
        with suppress(OSError):  # what cannot be written was said when it was tried
            file.close()
