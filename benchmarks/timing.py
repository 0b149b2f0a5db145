"""What the benchmarks share: one core, an interleaved timer, the machine's facts, the JSON that is written."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "RESULTS",
    "Timing",
    "compare",
    "machine",
    "ms_text",
    "one_core",
    "parser",
    "ratio_text",
    "write_json",
]

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("offramp", "numpy", "onnxruntime", "torch", "onnx", "grpcio", "protobuf", "tritonclient")


@dataclass(frozen=True)
class Timing:
    """The samples of one candidate, and of the baseline in the same rounds.

    Attributes:
        samples_ms: Per round the milliseconds of one call.
        baseline_ms: The same of the baseline; the candidate's own if it is the baseline.
    """

    samples_ms: tuple[float, ...]
    baseline_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median over rounds."""
        return self.percentile_ms(50)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Per round, this candidate's time over the baseline's."""
        return tuple(a / b for a, b in zip(self.samples_ms, self.baseline_ms, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the per-round ratios: below 1 is faster than the baseline."""
        return float(np.median(self.ratios))

    @property
    def speedup(self) -> float:
        """The median of the per-round ratios the other way round: above 1 is faster than the baseline."""
        return float(np.median([1 / r for r in self.ratios]))

    def over(self, rival: Timing) -> float:
        """The median of the per-round speedups over another candidate of the same rounds."""
        return float(np.median([b / a for a, b in zip(self.samples_ms, rival.samples_ms, strict=True)]))

    def percentile_ms(self, percent: float) -> float:
        """A percentile over rounds."""
        return float(np.percentile(self.samples_ms, percent))

    def to_dict(self) -> dict[str, Any]:
        """Median, spread and ratio as JSON values."""
        low, high = (float(v) for v in np.percentile(self.ratios, (10, 90)))
        return {
            "median_ms": self.median_ms,
            "p10_ms": self.percentile_ms(10),
            "p90_ms": self.percentile_ms(90),
            "ratio": self.ratio,
            "ratio_p10": low,
            "ratio_p90": high,
            "rounds": len(self.samples_ms),
        }


def compare(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    baseline: str | None = None,
    sample_ms: float = 2.0,
    budget_s: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times candidates against each other, round by round (A B C A B C …), so that a disturbance hits all.

    Args:
        candidates: What to call, by name.
        rounds: Samples of each candidate.
        baseline: Whose time the others are divided by; the first one's if left out.
        sample_ms: The least time of one sample; fast candidates are called repeatedly for it.
        budget_s: No new round begins after this many seconds, once there are 5 rounds.
        clock: Gives seconds.
    """
    base = next(iter(candidates)) if baseline is None else baseline
    repetitions = {name: _repetitions(call, sample_ms, clock) for name, call in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    begin = clock()
    for done in range(rounds):
        if done >= 5 and clock() - begin > budget_s:
            break
        for name, call in candidates.items():
            times = range(repetitions[name])
            start = clock()
            for _ in times:
                call()
            samples[name].append((clock() - start) * 1e3 / len(times))
    return {name: Timing(tuple(taken), tuple(samples[base])) for name, taken in samples.items()}


def _repetitions(call: Callable[[], object], sample_ms: float, clock: Callable[[], float]) -> int:
    """Warms a candidate up; gives the calls that one sample needs."""
    fastest = float("inf")
    for _ in range(3):
        start = clock()
        call()
        fastest = min(fastest, (clock() - start) * 1e3)
    # A tenth to spare: the warm-up's calls are slower than those that count.
    return 1 if fastest >= sample_ms else max(1, int(1.1 * sample_ms / fastest) + 1)


def one_core(*, torch_too: bool = True) -> int | None:
    """Pins this process to one core and torch to one thread; gives the core, None where it cannot be."""
    if torch_too:
        import torch

        torch.set_num_threads(1)
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        return None
    return core


def machine() -> dict[str, Any]:
    """What the figures were taken on: processor, cores, versions."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """The arguments of every benchmark: `--quick` and `--json`.

    Args:
        doc: The benchmark's docstring.
        name: `package-name`, which names the JSON file too.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name.replace('-', '.')}", description=(doc or "").partition("\n")[0]
    )
    made.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: does it run at all?")
    made.add_argument("--json", type=Path, metavar="PATH", help=f"default: {RESULTS / name}.json")
    made.set_defaults(name=name)
    return made


def write_json(arguments: argparse.Namespace, figures: Mapping[str, Any]) -> Path:
    """Writes a benchmark's figures with the machine's facts; a quick run leaves the full run's file alone.

    Args:
        arguments: As `parser` gives them.
        figures: JSON values.
    """
    usual = RESULTS / f"{arguments.name}{'-quick' if arguments.quick else ''}.json"
    path: Path = arguments.json or usual
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": arguments.name,
        "quick": arguments.quick,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        **figures,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def ms_text(middle: float, low: float, high: float) -> str:
    """A median with its spread: 1.23 (1.20-1.31)."""
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def ratio_text(ratio: float) -> str:
    """A ratio: 3.97x."""
    return f"{ratio:.3g}x"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
