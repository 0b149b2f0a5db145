"""The command line: `offramp demo | train | inspect | profile | serve | run | link | export`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from offramp import __version__
from offramp.errors import ConfigError, MissingExtraError, OfframpError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Train a network sparse from the start, let easy inputs leave early, split the rest between a device "
    "and a server. Start with `offramp demo`.",
)

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's directory.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="A server that holds the same bundle.")
]
SlowdownOption = Annotated[
    float, typer.Option("--edge-slowdown", help="Emulate an edge this many times slower than this machine.")
]


def main() -> None:
    """Runs the command line; our errors become one line and exit code 2 (misuse) or 1 (failure)."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except OfframpError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"offramp {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where bundles, report and results go.")] = Path("offramp-demo"),
    seed: Annotated[int, typer.Option(min=0, help="For everything random.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images per policy, at most.")] = 300,
    rate: Annotated[str, typer.Option(help="The emulated link's rate, or `unlimited`.")] = "10mbit",
    delay: Annotated[str, typer.Option(help="Its delay one way: half of the round trip.")] = "10ms",
    jitter: Annotated[str, typer.Option(help="Its jitter.")] = "0ms",
    edge_slowdown: Annotated[
        float | None,
        typer.Option(
            help="Emulate an edge this many times slower than this machine. Chosen so that the whole network "
            "on the edge takes as long as asking the server, if left out."
        ),
    ] = None,
) -> None:
    """The main job on real digits: train sparse, exit early, split the rest between two processes.

    Trains the same network sparse, dense and narrow, writes a bundle, starts a server behind an emulated
    link, runs the same images under every policy, and writes a report. Takes about two minutes on two cores.
    """
    with _needs_extra("demo", "train"):
        from offramp.demo import DemoSettings, run_demo
        from offramp.recipes import EPOCHS
    from offramp.serving.link import parse_delay, parse_rate

    settings = DemoSettings(
        out=out,
        seed=seed,
        epochs=EPOCHS if epochs is None else epochs,
        images=images,
        rate_bps=parse_rate(rate),
        delay_s=parse_delay(delay),
        jitter_s=parse_delay(jitter),
        edge_slowdown=edge_slowdown,
    )
    run_demo(settings, Console())


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The bundle's directory; an older bundle there is replaced.")],
    data: Annotated[
        str, typer.Option(help="`mnist-subset`, `mnist`, or a folder with one folder of images per class.")
    ] = "mnist-subset",
    kind: Annotated[str, typer.Option(help="`sparse`, `dense`, or `narrow`.")] = "sparse",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    size: Annotated[int, typer.Option(help="For a folder: the side that its images are resized to.")] = 32,
    grey: Annotated[
        bool, typer.Option("--grey", help="For a folder: one grey channel instead of colour.")
    ] = False,
    max_drop: Annotated[float, typer.Option(help="Accuracy that each gate may cost, as a fraction.")] = 0.005,
    seed: Annotated[int, typer.Option(min=0, help="For everything random.")] = 0,
) -> None:
    """Trains the built-in network with two early exits on digits or your own images; writes a bundle."""
    with _needs_extra("train", "train"):
        from offramp import recipes
    if kind not in recipes.KINDS:
        raise ConfigError(f"--kind is one of {', '.join(recipes.KINDS)}, not {kind!r}")
    if not 0 <= max_drop <= 1:
        raise ConfigError(f"--max-drop is a fraction between 0 and 1, not {max_drop}")
    splits = recipes.load_splits(data, size=size, color=not grey, seed=seed)
    console = Console(stderr=True)
    done = recipes.train(
        next(k for k in recipes.KINDS if k == kind),
        splits,
        out,
        epochs=recipes.EPOCHS if epochs is None else epochs,
        seed=seed,
        max_drop=max_drop,
        progress=console.is_terminal,
    )
    if done.sparsity is not None:
        typer.echo(str(done.sparsity))
    exits = ", ".join(f"exit {i} {a:.1%}" for i, a in enumerate(done.accuracy))
    typer.echo(f"{out}: {exits} on {len(splits.test):,} test images, trained in {done.fit.train_s:.1f} s")


@app.command()
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Shows what a bundle holds: stages, exits, cuts and what they send. Verifies every file."""
    from offramp.bundle.bundle import Bundle
    from offramp.report.inspection import inspection, inspection_text

    facts = inspection(Bundle.load(bundle))
    typer.echo(json.dumps(facts, indent=1) if as_json else inspection_text(facts))


@app.command()
def profile(
    bundle: BundleArgument,
    server: ServerOption = None,
    runs: Annotated[int, typer.Option(min=3, help="Runs per median.")] = 50,
    edge_slowdown: SlowdownOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Measures every stage here, and with --server the link, and predicts the latency of every split."""
    from offramp.bundle.bundle import Bundle
    from offramp.connect import connect
    from offramp.report.profile import measure, profile_text
    from offramp.runtime.stages import Stages

    loaded = Bundle.load(bundle)
    channel = None if server is None else connect(server, loaded)
    try:
        facts = measure(Stages(loaded, slowdown=edge_slowdown), channel, runs=runs)
    finally:
        if channel is not None:
            channel.close()
    facts["edge_slowdown"] = edge_slowdown
    typer.echo(json.dumps(facts, indent=1) if as_json else profile_text(loaded, facts))
    if edge_slowdown > 1 and not as_json:
        typer.echo(f"The edge is emulated, {edge_slowdown:g}x slower than this machine.")


@app.command()
def serve(
    bundle: BundleArgument,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8001,
    http_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Health and Prometheus metrics over HTTP; none if left out."),
    ] = None,
    provider: Annotated[str, typer.Option(help="Where to compute: `cpu` or `cuda`.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads per request.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Requests that compute at once; one per core if left out.")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are refused.")] = 64,
    max_message_mb: Annotated[int, typer.Option(min=1, max=2047, help="The largest message in MiB.")] = 64,
) -> None:
    """Serves a bundle's tails over gRPC (Open Inference Protocol v2) until stopped.

    The whole network is the model `NAME`; what follows cut K is `NAME-tail-K`, and `NAME-tail-K-uint8` takes
    the cut in that mode.
    """
    import os

    from offramp.bundle.bundle import Bundle
    from offramp.runtime.stages import Stages
    from offramp.runtime.tail import Tail
    from offramp.serving.process import listening
    from offramp.serving.server import GrpcServer

    tail = Tail(Stages(Bundle.load(bundle), threads=threads, provider=provider))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ExitStack() as stack:
        metrics = None
        if http_port is not None:
            with _needs_extra("serve --http-port", "serve"):
                from offramp.serving.http import HttpServer, Metrics
            metrics = Metrics()
            http = stack.enter_context(HttpServer(metrics, host=host, port=http_port))
            print(f"offramp serve: http://{host}:{http.port}/metrics", flush=True)
        server = stack.enter_context(
            GrpcServer(
                tail,
                host=host,
                port=grpc_port,
                workers=workers or cores,
                queue=queue,
                max_message_mb=max_message_mb,
                observer=metrics,
            )
        )
        names = ", ".join(tail.models)
        print(f"offramp serve: {listening(f'{host}:{server.port}')}, models {names}", flush=True)
        server.wait()


@app.command()
def run(
    bundle: BundleArgument,
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Images, .npy or .npz files, folders.")],
    server: ServerOption = None,
    policy: Annotated[
        str,
        typer.Option(
            help="`i-splitee`, `cascade`, `random`, `edge-only`, `server-only`, `split-K`, `split-K-all`."
        ),
    ] = "cascade",
    alpha: Annotated[
        float | None, typer.Option(min=0, max=1, help="The gates' threshold; the bundle's own if left out.")
    ] = None,
    deadline_ms: Annotated[float, typer.Option(help="Milliseconds that one input may take.")] = 1000.0,
    edge_slowdown: SlowdownOption = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="For policies that draw.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A file for the JSON lines, instead of the output.")] = None,
) -> None:
    """Runs inputs through the edge: one JSON line per input on the output, a summary on the error output.

    Without --server everything is answered here. Exits with 1 if any input failed.
    """
    from offramp.connect import Edge
    from offramp.policy.registry import make_policy
    from offramp.report.live import run_files
    from offramp.runtime.sources import find_inputs

    files = find_inputs(inputs)
    chosen = make_policy(policy, alpha=alpha, seed=seed)
    with (
        Edge(bundle, server=server, policy=chosen, deadline_ms=deadline_ms, slowdown=edge_slowdown) as edge,
        _sink(out) as sink,
    ):
        results = run_files(edge, files, sink, Console(stderr=True))
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


@app.command()
def link(
    to: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server at the far end.")],
    listen: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 0,
    rate: Annotated[str, typer.Option(help="Such as 10mbit, 500kbit, or `unlimited`.")] = "unlimited",
    delay: Annotated[str, typer.Option(help="One way: half of what a round trip takes longer.")] = "0ms",
    jitter: Annotated[str, typer.Option(help="The delay varies by at most this.")] = "0ms",
    outage: Annotated[
        list[str] | None, typer.Option(help="START+DURATION such as 5s+2s; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The jitter's seed.")] = 0,
) -> None:
    """Emulates a link: passes TCP connections on with a rate, a delay, jitter and outages, until stopped."""
    import asyncio

    from offramp.serving.channel import parse_address
    from offramp.serving.link import LinkSettings, parse_delay, parse_outage, parse_rate, pass_on
    from offramp.serving.process import listening

    settings = LinkSettings(
        rate_bps=parse_rate(rate),
        delay_s=parse_delay(delay),
        jitter_s=parse_delay(jitter),
        outages=tuple(parse_outage(o) for o in outage or ()),
        seed=seed,
    )
    far_end = parse_address(to)

    asyncio.run(
        pass_on(
            settings, far_end, listen, lambda address: print(f"offramp link: {listening(address)}", flush=True)
        )
    )


@app.command()
def export(
    bundle: BundleArgument,
    edge: Annotated[Path, typer.Option(metavar="DIR", help="Where the edge copy goes.")],
    stages: Annotated[str, typer.Option(metavar="0..K", help="The stages that it holds, such as 0..1.")],
) -> None:
    """Writes a smaller copy of a bundle for an edge: its first stages, with their exits and codecs."""
    from offramp.bundle.bundle import Bundle
    from offramp.tables import bytes_text

    first, dots, last = stages.partition("..")
    if first != "0" or not dots or not last.isdecimal():
        raise ConfigError(f"--stages is 0..K, such as 0..1, not {stages!r}")
    whole = Bundle.load(bundle)
    copy = whole.edge_copy(edge, int(last) + 1)
    typer.echo(
        f"{edge}: stages {stages}, {bytes_text(copy.stored_bytes())} of {bytes_text(whole.stored_bytes())}, "
        f"digest {copy.digest[:16]}…"
    )


def _sink(out: Path | None) -> Any:
    if out is None:
        return nullcontext(sys.stdout)
    try:
        return out.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from error


@contextmanager
def _needs_extra(command: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("offramp"):
            raise
        raise MissingExtraError(
            f"`offramp {command}` needs {error.name}, which is not installed: pip install 'offramp[{extra}]'"
        ) from error


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
