"""The same schedules where the machine's own wall clock jumps by days, for edge and server alike."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def jumping(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("jumping") / "jumping.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "jumping.c"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def test_the_clock_really_jumps(jumping):
    code = (
        "import time; seen = set(); end = time.monotonic() + 0.5\n"
        "while time.monotonic() < end: seen.add(round(time.time() - time.monotonic(), -3))\n"
        "print(len(seen))"
    )
    said = subprocess.run([sys.executable, "-c", code], env=jumping, capture_output=True, text=True, check=True)
    assert int(said.stdout) >= 4


def test_fault_schedules_under_a_clock_that_jumps(jumping):
    arguments = [sys.executable, HERE / "soak.py", "--seed", "100", "--schedules", "6", "--jobs", "1"]
    said = subprocess.run(arguments, env=jumping, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "6 of 6" in said.stdout
