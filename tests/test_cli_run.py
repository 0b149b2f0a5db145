"""`offramp run` in production: many inputs under way, sources that never end, runs that are killed and go on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image
from test_cli import assert_clear_error, lines, offramp

from offramp.runtime.board_energy import find_board_energy
from offramp.serving.process import running

COUNT = 120
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def served(digits_bundle) -> Iterator[str]:
    with running(["serve", str(digits_bundle), "--grpc-port", "0"]) as address:
        yield address


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory, digit_images) -> Path:
    path = tmp_path_factory.mktemp("pixels") / "pixels.npy"
    np.save(path, digit_images[0][:COUNT])
    return path


def start(*arguments: object, stdin: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "offramp", "run", *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def whole_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while whole_lines(path) < count and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)


# --- under way ------------------------------------------------------------------------------------------


def test_with_several_under_way_the_lines_are_the_same(digits_bundle, pixels, served, tmp_path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i, image in enumerate(np.load(pixels)[:12]):
        Image.fromarray(image).save(images / f"{i:02}.png")
    (images / "05.png").write_bytes(b"no image")
    found = []
    for under_way in (1, 4):
        command = ("run", digits_bundle, images, pixels, "--server", served, "--policy", "split-0")
        done = offramp(*command, "--under-way", under_way, "--deadline-ms", 60_000)
        assert_clear_error(done, 1, f"{12 + COUNT} inputs, 0 degraded, 1 failed")
        same = ("input", "index", "status", "label", "exit", "where", "payload_bytes", "cost")
        found.append([[line[key] for key in same] for line in lines(done)])
    assert found[0] == found[1]
    assert [line[1] for line in found[1]] == list(range(12 + COUNT))
    assert {line[5] for line in found[1]} == {"edge", "server", None}


def test_a_program_may_name_inputs_one_by_one(digits_bundle, pixels, served, tmp_path) -> None:
    """A result is out before the next path is there, also with several under way."""
    for i, image in enumerate(np.load(pixels)[:3]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    process = start(digits_bundle, "-", "--server", served, "--under-way", 4, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for i in range(3):
            process.stdin.write(f"{tmp_path}/{i}.png\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["input"] == f"{tmp_path}/{i}.png"
        process.stdin.close()
        process.wait(PATIENCE_S)
        assert "3 inputs, 0 degraded, 0 failed" in process.stderr.read()
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize(("number", "under_way"), [(signal.SIGINT, 1), (signal.SIGTERM, 4)])
def test_a_run_that_waits_for_inputs_stops_when_told(
    digits_bundle, pixels, served, tmp_path, number, under_way
) -> None:
    state = tmp_path / "state.json"
    command = (digits_bundle, "-", "--server", served, "--policy", "splitee,alpha=0.5", "--under-way", under_way)
    process = start(*command, "--state", state, stdin=subprocess.PIPE)
    try:
        process.stdin.write(f"{pixels}\n")
        process.stdin.flush()
        for _ in range(COUNT):
            assert process.stdout.readline()
        time.sleep(0.3)  # by then it waits
        process.send_signal(number)
        process.wait(PATIENCE_S)
        said = process.stderr.read()
        assert process.returncode == 128 + number
        assert "Traceback" not in said
        assert "Fatal" not in said
        assert f"{COUNT} inputs" in said
        assert json.loads(state.read_text())["state"]["plays"] == COUNT
    finally:
        process.kill()
        process.stdin.close()
        process.wait()
        process.stdout.close()
        process.stderr.close()


# --- going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("under_way", "kills"), [(1, 3), (4, 2)])
def test_killed_at_any_moment_nothing_is_lost_or_repeated(
    digits_bundle, pixels, served, tmp_path, under_way, kills
) -> None:
    out, rng = tmp_path / "out.jsonl", random.Random(under_way)
    command = (digits_bundle, pixels, "--out", out, "--resume", "--policy", "split-0", "--server", served)
    command += ("--under-way", under_way, "--edge-slowdown", 30, "--deadline-ms", 60_000)
    for _ in range(kills):
        before = whole_lines(out)
        process = start(*command)
        try:
            wait_for_lines(out, before + rng.randint(1, COUNT // (kills + 2)), process)
            time.sleep(rng.random() / 100)
            assert process.poll() is None, process.stderr.read()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
        # A kill tears a line in the kernel only by chance; here it does so every time.
        torn = out.read_bytes()[: -rng.randint(1, 200)]
        out.write_bytes(torn)
        assert before <= whole_lines(out) < COUNT
    assert offramp("run", *command).returncode == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["index"] for line in found] == list(range(COUNT))
    assert [line["input"] for line in found] == [f"{pixels}[{i}]" for i in range(COUNT)]
    expected = lines(offramp("run", digits_bundle, pixels, "--policy", "split-0", "--server", served))
    assert [line["label"] for line in found] == [line["label"] for line in expected]
    # Once more: there is nothing left to do.
    kept = out.read_bytes()
    done = offramp("run", *command)
    assert (done.returncode, done.stdout) == (0, "")
    assert out.read_bytes() == kept


def test_what_cannot_be_gone_on_with(digits_bundle, pixels, tmp_path) -> None:
    out = tmp_path / "out.jsonl"
    run = ("run", digits_bundle)
    assert_clear_error(offramp(*run, pixels, "--resume"), 2, "--out")
    assert_clear_error(offramp(*run, "camera:0", "--resume", "--out", out), 2, "do not come again")
    assert not out.exists()
    out.write_text("notes\n")
    assert_clear_error(offramp(*run, pixels, "--resume", "--out", out), 2, "line 0", "not the result 0 of a run")
    assert out.read_text() == "notes\n"
    assert offramp(*run, pixels, "--out", out).returncode == 0  # without --resume it begins anew
    kept = out.read_bytes()
    other = tmp_path / "other.npy"
    np.save(other, np.load(pixels))
    assert_clear_error(offramp(*run, other, "--resume", "--out", out), 2, "as input 0", "same order")
    assert out.read_bytes() == kept


# --- energy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted", [True, False])
def test_energy_is_said_where_it_is_measured(digits_bundle, pixels, tmp_path, monkeypatch, counted) -> None:
    zone = tmp_path / "class/powercap/intel-rapl:0"
    if counted:
        zone.mkdir(parents=True)
        for name, value in (("name", "package-0"), ("energy_uj", 5), ("max_energy_range_uj", 10**9)):
            (zone / name).write_text(f"{value}\n")
    monkeypatch.setattr("offramp.runtime.board_energy.find_board_energy", partial(find_board_energy, tmp_path))
    done = offramp("run", digits_bundle, pixels)
    assert done.returncode == 0, done.stderr
    said = "energy measured: 0 J, 0 mJ per input (package-0 by RAPL, with all else that ran meanwhile)"
    assert (said in done.stderr) is counted
    assert ("energy" in done.stderr) is counted


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_ends_the_run(digits_bundle, pixels) -> None:
    assert_clear_error(offramp("run", digits_bundle, pixels, "--out", "/dev/full"), 1, "pixels.npy[0]", "No space")


def test_whoever_reads_may_stop(digits_bundle, pixels) -> None:
    process = start(digits_bundle, pixels)
    assert process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.wait(PATIENCE_S)
    process.stderr.close()
    assert "Traceback" not in said


def test_a_state_that_cannot_be_kept_is_told_before_the_run(digits_bundle, pixels, tmp_path) -> None:
    """Also what an earlier run wrote is left alone then."""
    (out := tmp_path / "out.jsonl").write_text("earlier\n")
    command = ("run", digits_bundle, pixels, "--out", out, "--state")
    for state, words in ((tmp_path / "none" / "s.json", "cannot write"), ("/dev/zero", "it is no file")):
        assert_clear_error(offramp(*command, state), 1, str(state), words)
    assert out.read_text() == "earlier\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{bundle}", "{folder}/*.gif"], "no input matches"),
        (["{bundle}", "-", "-"], "twice"),
        (["{bundle}", "{pixels}", "--under-way", "0"], "--under-way"),
        (["{bundle}", "{pixels}", "--under-way", "many"], "--under-way"),
    ],
)
def test_bad_settings_have_a_clear_error(digits_bundle, pixels, tmp_path, arguments, words) -> None:
    names = {"bundle": digits_bundle, "folder": tmp_path, "pixels": pixels}
    assert_clear_error(offramp("run", *(a.format(**names) for a in arguments)), 2, words)
