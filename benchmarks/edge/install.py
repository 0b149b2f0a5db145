"""What an edge device installs, and how soon it answers: a wheel in a fresh environment, without torch and onnx.

Two environments: one with the versions of constraints.txt, one with the newest that the registry has. The time to
the first answer runs from the start of a process to its answer, files in the page cache, on one core; beside it
the same stages by onnxruntime alone. Needs the package registry.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bundle.networks import mobilenetv2, resnet56
from benchmarks.timing import ms_text, one_core, parser, ratio_text, write_json
from offramp.bundle.export import export
from offramp.tables import bytes_text, table_text

ROOT = Path(__file__).parents[2]
#: At most 230 MB, and one second to the first answer.
SIZE_BAR, START_BAR_MS = 230e6, 1000.0
FORBIDDEN = {"torch", "onnx"}
_PARTS = ("import_ms", "load_ms", "run_ms")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "edge-install")
    made.add_argument(
        "--python", default=sys.executable, help="whose environments are made; this one's if left out"
    )
    arguments = made.parse_args(argv)
    one_core()
    rounds = 3 if arguments.quick else 20
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bundles = _bundles(place, quick=arguments.quick)
        wheel = _wheel(place)
        environments = []
        for name, pins in (("constraints.txt", ["-c", str(ROOT / "constraints.txt")]), ("newest", [])):
            python = _environment(place / name, arguments.python, [*pins, str(wheel)])
            starts = [start for b in bundles.items() for start in _starts(python, *b, rounds)]
            environments.append({"versions": name, **_contents(python), "starts": starts})
    print(_sizes(environments))
    print(_times(environments))
    bars = {"size_bytes": SIZE_BAR, "start_ms": START_BAR_MS}
    print(f"written: {write_json(arguments, {'bars': bars, 'environments': environments})}")


def _bundles(place: Path, *, quick: bool) -> dict[str, Path]:
    networks = (
        {"ResNet-56": resnet56()} if quick else {"ResNet-56": resnet56(), "MobileNetV2, 224²": mobilenetv2(224)}
    )
    paths = {}
    for number, (name, (net, example)) in enumerate(networks.items()):
        paths[name] = export(net, example, place / f"network-{number}.bundle").path
    return paths


def _wheel(place: Path) -> Path:
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(place / "dist"), str(ROOT))
    (wheel,) = (place / "dist").glob("offramp-*.whl")
    return wheel


def _environment(path: Path, python: str, what: Sequence[str]) -> Path:
    """A fresh environment without pip, with what is asked for; gives its Python."""
    _run(python, "-m", "venv", "--without-pip", str(path))
    inside = path / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", str(inside), "install", *what)
    return inside


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _contents(python: Path) -> dict[str, Any]:
    """Which packages an environment has, and their bytes with the bytecode that pip compiled."""
    site = Path(_run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    packages = {}
    for found in importlib.metadata.distributions(path=[str(site)]):
        files = [Path(str(file.locate())) for file in found.files or ()]
        size = sum(file.stat().st_size for file in files if file.is_file())
        packages[found.metadata["Name"]] = {"version": found.version, "bytes": size}
    unwanted = FORBIDDEN & set(packages)
    if unwanted:
        raise RuntimeError(f"an edge must not need {', '.join(sorted(unwanted))}")
    total = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    version = _run(str(python), "-c", "import platform; print(platform.python_version())").strip()
    return {"python": version, "bytes": total, "packages": packages}


def _starts(python: Path, name: str, bundle: Path, rounds: int) -> list[dict[str, Any]]:
    """Cold starts of both, in turn; the first of each, just after the install, is kept apart."""
    taken: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    for _ in range(rounds + 1):
        for kind, samples in taken.items():
            command = [str(python), "-I", str(Path(__file__).with_name("first_answer.py")), kind, str(bundle)]
            start = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                line = process.stdout.readline()
                total = (time.perf_counter() - start) * 1e3
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)} failed")
            samples.append({"total_ms": total, **json.loads(line)})
    bare = [sample["total_ms"] for sample in taken["bare"][1:]]
    return [
        {
            "network": name,
            "candidate": kind,
            "first_ms": samples[0]["total_ms"],
            **_percentiles([sample["total_ms"] for sample in samples[1:]]),
            **{part: float(np.median([sample[part] for sample in samples[1:]])) for part in _PARTS},
            "ratio": float(np.median([s["total_ms"] / b for s, b in zip(samples[1:], bare, strict=True)])),
        }
        for kind, samples in taken.items()
    ]


def _percentiles(samples: Sequence[float]) -> dict[str, float]:
    low, middle, high = (float(v) for v in np.percentile(samples, (10, 50, 90)))
    return {"median_ms": middle, "p10_ms": low, "p90_ms": high}


def _sizes(environments: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for found in environments:
        largest = sorted(found["packages"].items(), key=lambda item: -item[1]["bytes"])[:6]
        named = ", ".join(f"{name} {value['version']} {value['bytes'] / 1e6:.0f}" for name, value in largest)
        met = "met" if found["bytes"] <= SIZE_BAR else "missed"
        size = bytes_text(found["bytes"])
        rows.append([found["python"], found["versions"], size, f"≤ {bytes_text(SIZE_BAR)} {met}", named])
    return table_text("An edge's packages", ["Python", "versions", "size", "bar", "the largest, MB"], rows)


def _times(environments: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for found in environments:
        for start in found["starts"]:
            ours = start["candidate"] == "ours"
            met = "met" if start["median_ms"] <= START_BAR_MS else "missed"
            rows.append(
                [
                    found["versions"],
                    start["network"],
                    "Edge" if ours else "onnxruntime alone",
                    ms_text(start["median_ms"], start["p10_ms"], start["p90_ms"]),
                    *(f"{start[part]:.0f}" for part in _PARTS),
                    f"{start['first_ms']:.0f}",
                    ratio_text(start["ratio"]),
                    f"≤ {START_BAR_MS:.0f} {met}" if ours else "-",
                ]
            )
    heads = ["versions", "network", "by", "ms (10th-90th)", "import", "load", "run", "first", "to bare", "bar"]
    return table_text("From a process's start to its first answer", heads, rows)


if __name__ == "__main__":
    main()
