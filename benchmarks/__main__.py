"""Runs every benchmark, one after another, each in a process of its own: `python -m benchmarks [--quick]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ALL", "main"]

ALL = (
    "sparse.layers",
    "sparse.training",
    "sparse.size",
    "sparse.crossover",
    "bundle.chain",
    "bundle.codecs",
    "bundle.int8",
    "policy.decisions",
    "serving.roundtrip",
    "serving.batching",
    "serving.queueing",
    "serving.wakeups",
    "serving.reveal",
    "serving.memory",
    "serving.observed",
    "edge.install",
    "edge.pipeline",
    "exits.width",
    "exits.cached",
    "exits.side",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs them all; gives 1 if any failed, after the others have had their turn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run every benchmark.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: do they run at all?")
    flags = ["--quick"] if parser.parse_args(argv).quick else []
    failed = []
    for name in ALL:
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
        if subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
