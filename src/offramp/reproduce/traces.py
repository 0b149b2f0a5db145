"""Traces of a bundle on plain, noisy and blurred test images, made side by side and kept."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from offramp.bundle.bundle import Bundle
from offramp.datasets.distortion import NOISE_LEVELS, Distortion
from offramp.errors import ConfigError, OfframpError, TraceError
from offramp.replay.record import own_thresholds, record
from offramp.replay.trace import Trace
from offramp.runtime.labelled import Labelled
from offramp.runtime.stages import Stages

__all__ = ["BLUR_LEVELS", "DISTORTIONS", "HELD_OUT", "trace_all", "trace_held_out"]

#: What the trace of held-out images is called behind the network's name.
HELD_OUT = "-held-out"

#: Standard deviations in pixels (I-SplitEE's levels, arXiv 2401.10541; its code states no unit).
BLUR_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Undistorted first.
DISTORTIONS: tuple[Distortion | None, ...] = (
    None,
    *(Distortion("gaussian_noise", sigma) for sigma in NOISE_LEVELS),
    *(Distortion("gaussian_blur", sigma) for sigma in BLUR_LEVELS),
)


def trace_all(
    bundle: Bundle,
    test: Labelled,
    distortions: Sequence[Distortion | None],
    folder: Path,
    stem: str,
    *,
    workers: int,
    console: Console,
) -> dict[str, Trace]:
    """One trace per distortion, written to `folder/stem[-kind-sigma].npz`; by the distortion, "" for none.

    The first one is made alone and says what each step costs; the others, made side by side, repeat it. A file
    that is there and of the same bundle, thresholds and data is not made again.

    Args:
        bundle: The bundle.
        test: Images and labels.
        distortions: What is done to the images.
        folder: Where to.
        stem: How the files' names begin.
        workers: How many are made at once, with one thread each.
        console: Gets the progress.

    Raises:
        ConfigError: A folder that cannot be written to.
        OfframpError: As `record` and `Trace.save` say.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from error
    files = {str(d or ""): folder / f"{stem}{f'-{d.kind}-{d.sigma:g}' if d else ''}.npz" for d in distortions}
    found = {key: trace for key, path in files.items() if (trace := _kept(path, bundle, test)) is not None}
    left = [d for d in distortions if str(d or "") not in found]
    if found:
        console.print(f"{len(found)} of {len(files)} traces found in {folder}")
    stop = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"traces of {stem}", total=len(left) * len(test.labels))

        def made(distortion: Distortion | None) -> tuple[str, Trace]:
            def told(n: int) -> None:
                if stop.is_set():
                    raise OfframpError("stopped")
                progress.advance(task, n)

            return str(distortion or ""), record(Stages(bundle), test, distortion=distortion, on_batch=told)

        def keep(key: str, trace: Trace) -> None:
            trace.save(files[key])
            found[key] = Trace.load(files[key])

        if left and not found:
            keep(*made(left.pop(0)))
        with ThreadPoolExecutor(workers) as pool:
            try:
                for key, trace in pool.map(made, left):
                    keep(key, _timed_as(trace, next(iter(found.values()))))
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    return {key: found[key] for key in files}


def trace_held_out(
    bundle: Bundle, held_out: Labelled, distortions: Sequence[Distortion | None], path: Path
) -> Trace:
    """One trace of held-out images, with the distortions in turn, written to `path`.

    Sample i is under distortion i modulo their number, so that any part of the samples has about as many of each:
    gates that are to hold in such a world can be chosen by it.

    Args:
        bundle: The bundle.
        held_out: Images that neither training nor a test has seen, and labels; at least one per distortion.
        distortions: What is done to the images.
        path: Where to.

    Raises:
        OfframpError: As `record` and `Trace.save` say.
    """
    images, stages, every = np.asarray(held_out.inputs), Stages(bundle), len(distortions)
    traces = [
        record(stages, Labelled(images[i::every], held_out.labels[i::every], held_out.what), distortion=distortion)
        for i, distortion in enumerate(distortions)
    ]
    order = np.argsort(np.concatenate([np.arange(len(t)) * every + i for i, t in enumerate(traces)]))
    told = ", ".join(str(d or "none") for d in distortions)
    trace = Trace(
        np.concatenate([t.prediction for t in traces])[order],
        np.concatenate([t.confidence for t in traces if t.confidence is not None])[order],
        np.concatenate([t.label for t in traces])[order],
        traces[0].meta.model_copy(update={"distortion": f"in turn {told}"}),
    )
    trace.save(path)
    return trace


def _timed_as(trace: Trace, first: Trace) -> Trace:
    costs = {"stage_ms": first.meta.stage_ms, "exit_ms": first.meta.exit_ms}
    return dataclasses.replace(trace, meta=trace.meta.model_copy(update=costs))


def _kept(path: Path, bundle: Bundle, test: Labelled) -> Trace | None:
    try:
        trace = Trace.load(path)
    except TraceError:
        return None
    meta = trace.meta
    same = (meta.digest, meta.data, meta.thresholds) == (bundle.digest, test.what, own_thresholds(bundle))
    return trace if same and len(trace) == len(test.labels) else None
