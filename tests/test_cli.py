"""The command line, as a user meets it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.cli import main
from offramp.policy.registry import POLICIES, make_policy, parse_policy
from offramp.replay.trace import Trace
from offramp.runtime.stages import Stages
from offramp.serving.process import running

COMMANDS = (
    "demo",
    "train",
    "inspect",
    "cuts",
    "profile",
    "tune",
    "quantize",
    "trace",
    "replay",
    "serve",
    "run",
    "link",
    "export",
    "reproduce",
)


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def offramp(*arguments: object) -> Done:
    """Runs a command line within this process: the same entry point, without the start of an interpreter."""
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["offramp", *map(str, arguments)])
        patch.setenv("COLUMNS", "160")
        try:
            main()
        except SystemExit as left:
            return Done(left.code or 0, out.getvalue(), err.getvalue())
        finally:
            signal.signal(signal.SIGTERM, handler)
    raise AssertionError("a command line ends with an exit code")


def assert_clear_error(done: Done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def served(digits_bundle):
    with running(["serve", str(digits_bundle), "--grpc-port", "0"]) as address:
        yield address


@pytest.fixture
def images(tmp_path, digit_images) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, pixels in enumerate(digit_images[0][:5]):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def lines(done: Done) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_names_every_command_and_teaches():
    done = offramp("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout
    for command in COMMANDS:
        assert len(offramp(command, "--help").stdout.splitlines()) > 5


def test_help_loads_nothing_heavy():
    program = (
        "import atexit, sys\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'numpy'}\n"
        "atexit.register(lambda: print(heavy & set(sys.modules)))\n"
        "from offramp import cli\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "offramp", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("offramp ")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["run"], ["serve"], ["link", "--listen", "70000", "--to", "a:1"]]
)
def test_misuse_is_exit_code_2(arguments):
    assert_clear_error(offramp(*arguments), 2)


def test_inspect(digits_bundle):
    facts = json.loads(offramp("inspect", digits_bundle, "--json").stdout)
    assert len(facts["stages"]) == 3
    assert facts["stages"][0]["modes"]["float"] == 4 * facts["stages"][0]["modes"]["uint8"]
    table = offramp("inspect", digits_bundle).stdout
    assert facts["digest"][:16] in table
    assert "the last" in table


def test_run_writes_one_line_per_input_in_order_and_a_summary(digits_bundle, images, served):
    done = offramp("run", digits_bundle, images, "--server", served, "--policy", "i-splitee")
    assert done.returncode == 0, done.stderr
    found = lines(done)
    assert [Path(line["input"]).name for line in found] == [f"{i}.png" for i in range(5)]
    assert [line["index"] for line in found] == list(range(5))
    assert all(line["status"] == "ok" and line["action"] and line["cost"] > 0 for line in found)
    assert "5 inputs, 0 degraded, 0 failed" in done.stderr


def test_run_goes_on_from_what_was_learned(tmp_path, digits_bundle, images, served):
    state = tmp_path / "learned.json"
    command = ("run", digits_bundle, images, "--server", served, "--policy", "splitee", "--alpha", "0.5")
    for plays in (5, 10):
        done = offramp(*command, "--state", state)
        assert done.returncode == 0, done.stderr
        assert json.loads(state.read_text())["state"]["plays"] == plays
    # The first run has played every arm once; the second does not begin anew.
    assert [line["action"]["split"] for line in lines(done)][:3] != [0, 1, 2]
    other = offramp("run", digits_bundle, images, "--server", served, "--policy", "i-splitee", "--state", state)
    assert_clear_error(other, 1, "learned.json", "expected a state of i-splitee, got splitee's")
    assert json.loads(state.read_text())["state"]["plays"] == 10


@pytest.mark.parametrize(
    "policy",
    [*POLICIES, "split-1", "split-0-all", "i-splitee,audit=0.5,discount=0.9", "splitee,window=3,c=0.5,alpha=0.7"],
)
def test_run_takes_every_policy_with_its_options(digits_bundle, images, served, policy):
    done = offramp("run", digits_bundle, images, "--server", served, "--policy", policy, "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert all(line["status"] == "ok" and line["action"] and line["cost"] > 0 for line in lines(done))
    name, options = parse_policy(policy)
    assert "5 inputs, 0 degraded, 0 failed" in done.stderr
    assert make_policy(name, **options).name in done.stderr


def test_run_takes_a_drift_detector(digits_bundle, images, served, tmp_path):
    pytest.importorskip("river", reason="river is not installed: pip install 'offramp[drift]'")
    command = ("run", digits_bundle, images, "--server", served, "--state", tmp_path / "learned.json")
    done = offramp(*command, "--policy", "splitee,drift=adwin")
    assert done.returncode == 0, done.stderr
    # What was learned is the learner's: it goes on without a detector as well.
    assert offramp(*command, "--policy", "splitee").returncode == 0
    assert json.loads((tmp_path / "learned.json").read_text())["state"]["plays"] == 10


def test_run_refuses_a_state_of_another_bundle(digits_bundle, images, tmp_path):
    state = tmp_path / "learned.json"
    command = ("run", digits_bundle, images, "--policy", "splitee", "--state", state)
    assert offramp(*command).returncode == 0
    kept = json.loads(state.read_text())
    state.write_text(json.dumps({**kept, "digest": "0" * 64}))
    assert_clear_error(offramp(*command), 1, "learned.json", "another bundle", "start anew")
    assert json.loads(state.read_text())["digest"] == "0" * 64


def test_run_takes_images_pixels_and_inputs_alike(tmp_path, digits_bundle, digit_images, images):
    np.save(tmp_path / "pixels.npy", digit_images[0][:5])
    np.savez(tmp_path / "floats.npz", x=(digit_images[0][:5, None] / np.float32(255)).astype(np.float32))
    sources = [images, tmp_path / "pixels.npy", tmp_path / "floats.npz"]
    out = tmp_path / "lines.jsonl"
    done = offramp("run", digits_bundle, *sources, "--policy", "edge-only", "--out", out)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.stdout == ""
    probabilities = [line["probabilities"] for line in found]
    assert probabilities[:5] == probabilities[5:10]
    np.testing.assert_allclose(probabilities[10:], probabilities[:5], atol=1e-6)


def test_a_broken_input_fails_alone_and_nothing_is_lost(tmp_path, digits_bundle, images):
    (images / "2.png").write_bytes(b"no image")
    np.save(tmp_path / "nan.npy", np.full((1, 1, 28, 28), np.nan, np.float32))
    np.save(tmp_path / "shape.npy", np.zeros((2, 3, 28, 28), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    arrays = [tmp_path / f"{name}.npy" for name in ("nan", "shape", "objects")]
    done = offramp("run", digits_bundle, images, *arrays, "--policy", "edge-only")
    assert_clear_error(done, 1, "NaN", "expected float32", "not an image", "not an array")
    status = [line["status"] for line in lines(done)]
    assert status == ["ok", "ok", "failed", "ok", "ok", "failed", "failed", "failed", "failed"]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["run", "{bundle}", "missing.png"], 2, "missing.png"),
        (["run", "{bundle}", "{text}"], 2, "neither an image nor an array"),
        (["run", "{bundle}", "{empty}"], 2, "no inputs"),
        (["run", "{bundle}", "{images}", "--policy", "i-split"], 2, "did you mean 'i-splitee'"),
        (["run", "{bundle}", "{images}", "--policy", "i-splitee,audits=1"], 2, "did you mean 'audit'"),
        (["run", "{bundle}", "{images}", "--policy", "i-splitee,audit=1.5"], 2, "between 0 and 1"),
        (["run", "{bundle}", "{images}", "--policy", "i-splitee,mu=-1"], 2, "at least 0"),
        (["run", "{bundle}", "{images}", "--policy", "i-splitee,drift=advin"], 2, "did you mean 'adwin'"),
        (["run", "{bundle}", "{images}", "--policy", "i-splitee,published=true"], 2, "only a replay knows"),
        (["run", "{bundle}", "{images}", "--policy", "random,seed=1"], 2, "given by --seed"),
        (["run", "{bundle}", "{images}", "--policy", "split-0,alpha=1", "--alpha", "0"], 2, "leave one out"),
        (["run", "{bundle}", "{images}", "--alpha", "nan"], 2, "--alpha"),
        (["run", "{bundle}", "{images}", "--alpha", "1.5"], 2, "--alpha"),
        (["run", "{bundle}", "{images}", "--policy", "split-9"], 2, "split 9"),
        (["run", "{bundle}", "{images}", "--server", "nowhere"], 2, "HOST:PORT"),
        (["run", "{bundle}", "{images}", "--policy", "server-only"], 2, "no server"),
        (["run", "{empty}", "{images}"], 1, "manifest.json"),
        (["run", "{bundle}", "{images}", "--out", "{empty}/no/where"], 2, "cannot write"),
        (["run", "{bundle}", "{images}", "--deadline-ms", "0"], 2, "deadline"),
        (["inspect", "{text}"], 1, "no bundle directory"),
        (["inspect", "{bundle}", "--patterns", "{new}"], 2, ".svg or .png"),
        (["inspect", "{bundle}", "--patterns", "{new}.pdf"], 2, ".svg or .png"),
        (["inspect", "{bundle}", "--patterns", "{new}/patterns.svg"], 2, "cannot write"),
        (["inspect", "{text}", "--patterns", "{new}.svg"], 1, "no bundle directory"),
        (["profile", "{bundle}", "--server", "127.0.0.1:{closed}"], 1, "127.0.0.1"),
        (["serve", "{bundle}", "--provider", "abacus"], 2, "available: cpu"),
        (["serve", "{bundle}", "--engine", "spark"], 2, "offramp or ray"),
        (["serve", "{bundle}", "--replicas", "2"], 2, "--replicas goes with --engine ray"),
        (["serve", "{bundle}", "--ray-address", "auto"], 2, "--ray-address goes with --engine ray"),
        (["serve", "{bundle}", "--engine", "ray", "--http-port", "8000"], 2, "HTTP server is not ours"),
        (["serve", "{bundle}", "--engine", "ray", "--tls-cert", "{text}"], 2, "takes no certificate"),
        (["serve", "{bundle}", "--engine", "ray", "--client-ca", "{text}"], 2, "takes no certificate"),
        (["serve", "{bundle}", "--engine", "ray", "--rate", "5"], 2, "count for itself"),
        (["serve", "{bundle}", "--engine", "ray"], 2, "say --host 0.0.0.0"),
        (["serve", "{bundle}", "--engine", "ray", "--host", "0.0.0.0", "--grpc-port", "0"], 2, "the same port"),
        (["serve", "{bundle}", "--engine", "ray", "--replicas", "few"], 2, "a range such as 1..4"),
        (["serve", "{bundle}", "--engine", "ray", "--replicas", "0"], 2, "at least one"),
        (["serve", "{bundle}", "--engine", "ray", "--replicas", "4..2"], 2, "at least one"),
        (["serve", "{bundle}", "--engine", "ray", "--replicas", "2.."], 2, "a range such as 1..4"),
        (["link", "--to", "127.0.0.1:9", "--rate", "fast"], 2, "10mbit"),
        (["link", "--to", "127.0.0.1:9", "--delay", "10"], 2, "10ms"),
        (["link", "--to", "127.0.0.1:9", "--jitter", "1ms"], 2, "jitter"),
        (["link", "--to", "127.0.0.1:9", "--outage", "5s"], 2, "5s+2s"),
        (["link", "--to", "there"], 2, "HOST:PORT"),
        (["export", "{bundle}", "--edge", "{new}", "--stages", "1..2"], 2, "0..K"),
        (["export", "{bundle}", "--edge", "{new}", "--stages", "0..7"], 2, "goes to 0..2"),
        (["export", "{bundle}", "--edge", "{images}", "--stages", "0..0"], 1, "no bundle"),
        (["export", "{bundle}"], 2, "--edge DIR, --triton DIR or --kserve FILE"),
        (["export", "{bundle}", "--edge", "{new}"], 2, "--edge needs --stages"),
        (["export", "{bundle}", "--triton", "{new}", "--stages", "0..0"], 2, "--stages goes with --edge"),
        (["export", "{bundle}", "--triton", "{new}", "--max-batch", "0"], 2, "at least 1"),
        (["export", "{bundle}", "--triton", "{images}"], 1, "not an empty directory"),
        (["export", "{images}", "--triton", "{new}"], 1, "is it a bundle?"),
        (["export", "{bundle}", "--kserve", "{new}"], 2, "--storage-uri"),
        (["export", "{bundle}", "--kserve", "{new}", "--storage-uri", "here"], 2, "s3://bucket/path"),
        (["export", "{bundle}", "--kserve", "{empty}", "--storage-uri", "s3://a/b"], 1, "cannot write"),
        (["export", "{bundle}", "--triton", "{new}", "--image", "a/b"], 2, "--image goes with --kserve"),
        (["export", "{bundle}", "--triton", "{new}", "--knative"], 2, "--knative goes with --kserve"),
        (["train", "--out", "{new}", "--data", "missing"], 1, "mnist-subset"),
        (["train", "--out", "{new}", "--data", "{empty}"], 1, "no folders"),
        (["train", "--out", "{new}", "--kind", "thin"], 2, "narrow"),
        (["train", "--out", "{new}", "--max-drop", "2"], 2, "max-drop"),
        (["demo", "--out", "{text}"], 2, "is a file"),
        (["demo", "--out", "{new}", "--edge-slowdown", "0.5"], 2, "at least 1"),
        (["demo", "--out", "{new}", "--rate", "0mbit"], 2, "10mbit"),
    ],
)
def test_bad_input_has_a_clear_error(arguments, code, word, tmp_path, digits_bundle, images):
    text, empty = tmp_path / "text.txt", tmp_path / "empty"
    text.write_text("text")
    empty.mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers
        names = {
            "bundle": digits_bundle,
            "images": images,
            "text": text,
            "empty": empty,
            "new": tmp_path / "new",
            "closed": taken.getsockname()[1],
        }
        done = offramp(*(argument.format(**names) for argument in arguments))
    assert_clear_error(done, code, word)
    assert not (tmp_path / "new").exists()


def test_serve_on_a_port_in_use(digits_bundle, served):
    port = served.rpartition(":")[2]
    assert_clear_error(offramp("serve", digits_bundle, "--grpc-port", port), 1, port, "in use")


def test_serve_on_ray_without_ray_says_what_to_install(digits_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    done = offramp("serve", digits_bundle, "--engine", "ray", "--host", "0.0.0.0")
    assert_clear_error(done, 1, "needs ray", "pip install 'offramp[ray]'")


def test_run_refuses_a_server_with_another_digest(tmp_path, digits_bundle, images, served):
    copy = json.loads((digits_bundle / "manifest.json").read_text())
    other = tmp_path / "other.bundle"
    other.mkdir()
    for part in ("stages", "exits", "codecs"):
        (other / part).symlink_to(digits_bundle / part)
    done = offramp("export", digits_bundle, "--edge", other / "copy", "--stages", "0..2")
    assert done.returncode == 0, done.stderr
    # Another set of graphs, so another digest.
    copy["codecs"] = [codec for codec in copy["codecs"] if codec["mode"] != "uint2"]
    (other / "copy" / "manifest.json").write_text(json.dumps(copy))
    done = offramp("run", other / "copy", images, "--server", served, "--policy", "split-0")
    assert_clear_error(done, 1, "digest")


def test_edge_copy_runs_with_a_server(tmp_path, digits_bundle, images, served):
    edge = tmp_path / "edge.bundle"
    assert "stages 0..0" in offramp("export", digits_bundle, "--edge", edge, "--stages", "0..0").stdout
    done = offramp("run", edge, images, "--server", served, "--policy", "split-0-all")
    assert [line["where"] for line in lines(done)] == ["server"] * 5


def test_export_for_a_cluster(tmp_path, digits_bundle):
    repository, service = tmp_path / "repository", tmp_path / "service.yaml"
    done = offramp(
        "export", digits_bundle, "--triton", repository, "--max-batch", "8",
        "--kserve", service, "--storage-uri", "s3://models/digits",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "models digits, digits-uint8," in done.stdout
    assert "InferenceService digits; it expects the Triton repository at s3://models/digits" in done.stdout
    assert "max_batch_size: 8" in (repository / "digits-tail-1-uint4" / "config.pbtxt").read_text()
    assert service.read_text().startswith("apiVersion: serving.kserve.io/v1beta1")
    done = offramp("export", digits_bundle, "--kserve", service, "--storage-uri", "pvc://models", "--image", "a:1")
    assert "it expects the bundle at pvc://models" in done.stdout


def test_profile_predicts_every_split(digits_bundle, served):
    facts = json.loads(offramp("profile", digits_bundle, "--server", served, "--runs", "5", "--json").stdout)
    assert [split["split"] for split in facts["splits"]] == [-1, 0, 1, 2]
    for split in facts["splits"]:
        parts = split["edge_ms"] + split["link_ms"] + split["server_ms"]
        assert split["latency_ms"] == pytest.approx(parts)
    assert "Predicted latency" in offramp("profile", digits_bundle).stdout


def test_link_passes_on_with_a_delay(digits_bundle, images, served):
    with running(["link", "--to", served, "--delay", "30ms"]) as address:
        done = offramp("run", digits_bundle, images, "--server", address, "--policy", "server-only")
    found = lines(done)
    assert [line["status"] for line in found] == ["ok"] * 5
    assert min(line["latency_ms"]["link"] for line in found) >= 60


def test_serve_s_usual_settings_are_the_library_s():
    import inspect

    from offramp.cli.serving import serve
    from offramp.runtime.batching import Batcher
    from offramp.serving.server import GrpcServer

    typed = inspect.signature(serve).parameters
    for made in (Batcher, GrpcServer):
        for name in ("queue", "max_batch", "max_wait_ms"):
            assert typed[name].default == inspect.signature(made).parameters[name].default, name


def test_several_bundles_and_no_batching(digits_bundle, images, tmp_path):
    renamed = tmp_path / "models" / "numbers"
    shutil.copytree(digits_bundle, renamed)
    manifest = json.loads((renamed / "manifest.json").read_text())
    (renamed / "manifest.json").write_text(json.dumps({**manifest, "name": "numbers"}))
    options = ["--max-batch", "0", "--max-wait-ms", "0", "--grpc-port", "0"]
    with running(["serve", str(digits_bundle), str(tmp_path / "models"), *options]) as address:
        for bundle in (digits_bundle, renamed):
            done = offramp("run", bundle, images, "--server", address, "--policy", "server-only")
            assert [(line["status"], line["where"]) for line in lines(done)] == [("ok", "server")] * 5


def test_serving_what_is_no_bundle_is_an_error(digits_bundle, tmp_path):
    assert_clear_error(offramp("serve", digits_bundle, tmp_path / "nowhere"), 1, "nowhere")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_stops_when_told(digits_bundle, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "offramp", "serve", str(digits_bundle), "--grpc-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "listening on" in process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert not errors


def test_train_on_a_folder_of_images(tmp_path):
    rng = np.random.RandomState(0)
    for label, name in enumerate(("dark", "light")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for i in range(60):
            pixels = rng.randint(0, 120, (20, 24, 3)) + 130 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    out = tmp_path / "shades.bundle"
    done = offramp(
        "train", "--data", tmp_path / "data", "--size", "16", "--epochs", "4", "--delta", "none", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "Predefined sparsity" in done.stdout
    assert "nothing is promised for others" in done.stdout
    run = lines(offramp("run", out, tmp_path / "data" / "light", "--policy", "edge-only"))
    assert np.mean([line["class_name"] == "light" for line in run]) > 0.9


# --- tune ------------------------------------------------------------------------------------------------


@pytest.fixture
def tunable(tmp_path, digits_bundle) -> Path:
    return Path(shutil.copytree(digits_bundle, tmp_path / "tunable.bundle"))


@pytest.fixture
def held_out(tmp_path, digits) -> Path:
    """3,000 digits that the shared network has not seen."""
    unseen = digits[0].take(slice(5000, 8000))
    np.savez(tmp_path / "held-out.npz", x=unseen.images, y=unseen.labels)
    return tmp_path / "held-out.npz"


def files_of(bundle: Path) -> dict[str, bytes]:
    return {str(p.relative_to(bundle)): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}


def test_tune_writes_only_the_tuning_and_says_what_holds(tunable, held_out):
    before = files_of(tunable)
    tried = offramp("tune", tunable, "--dataset", held_out, "--max-drop", "0.02", "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert files_of(tunable) == before
    assert "nothing written (--dry-run)" in tried.stdout
    done = offramp("tune", tunable, "--dataset", held_out, "--max-drop", "0.02", "--confidence", "entropy")
    assert done.returncode == 0, done.stderr
    for word in ("ECE before", "old threshold", "temperature", "answers", "MACs", "2,400 held-out samples"):
        assert word in tried.stdout
        assert word in done.stdout
    assert "With confidence 90 % the cascade costs at most 2 points of accuracy" in done.stdout
    assert "fewer MACs than the network without exits" in done.stdout
    assert "all samples in" in done.stderr
    assert "only you know" in done.stderr
    after = files_of(tunable)
    assert after.pop("tuning.json.bak") == before.pop("tuning.json")
    tuning = json.loads(after.pop("tuning.json"))
    assert after == before
    assert tuning["confidence"] == "entropy"
    assert tuning["mode"] == "uint8"
    assert 0 < tuning["thresholds"][0] < 1
    again = json.loads(offramp("inspect", tunable, "--json").stdout)
    assert again["confidence"] == "entropy"
    assert [stage["exit"]["threshold"] for stage in again["stages"]] == tuning["thresholds"]


def test_tune_an_edge_copy(tmp_path, digits_bundle, held_out):
    edge = tmp_path / "edge.bundle"
    offramp("export", digits_bundle, "--edge", edge, "--stages", "0..1")
    done = offramp("tune", edge, "--dataset", held_out, "--max-drop", "0.05")
    assert done.returncode == 0, done.stderr
    assert "the last exit is not held here, so each counts as lost" in done.stdout
    digests = [json.loads(offramp("inspect", b, "--json").stdout)["digest"] for b in (edge, digits_bundle)]
    assert digests[0] == digests[1]


def test_tune_writes_nothing_that_it_cannot_promise(tunable, held_out):
    """Pytest makes warnings errors; to a user they are a line like errors."""
    before = files_of(tunable)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [("default", None, UserWarning, None, 0)])
        done = offramp("tune", tunable, "--dataset", held_out, "--max-drop", "0.0005")
    assert_clear_error(done, 1, "warning: nothing will leave early", "at least 5,756 held-out", "nothing written")
    assert ".py" not in done.stderr
    assert "never" in done.stdout
    assert files_of(tunable) == before


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--dataset", "mnits"], 2, "known data sets: mnist-subset"),
        (["--dataset", "{here}/none.npz"], 2, "no .npz file"),
        (["--dataset", "{here}/broken.npz"], 1, "can be read"),
        (["--dataset", "{here}/labels.npz"], 1, "whole numbers from 0 to 9"),
        (["--dataset", "{here}/nan.npz"], 1, "NaN"),
        (["--dataset", "{here}/few.npz"], 2, "at least 10 held-out samples, not 5"),
        (["--dataset", "{here}/shape.npz"], 1, "expected float32 of shape"),
        (["--dataset", "{data}", "--delta", "1"], 2, "--delta is a probability"),
        (["--dataset", "{data}", "--delta", "0"], 2, "--delta is a probability"),
        (["--dataset", "{data}", "--delta", "some"], 2, "--delta is a probability"),
        (["--dataset", "{data}", "--max-drop", "-1"], 2, "--max-drop is a fraction"),
        (["--dataset", "{data}", "--confidence", "energy"], 2, "max_softmax, entropy, margin"),
        ([], 2, "--dataset"),
    ],
)
def test_tune_refuses_what_cannot_be(tmp_path, tunable, held_out, arguments, code, word):
    before = files_of(tunable)
    x, y = np.zeros((20, 1, 28, 28), np.float32), np.arange(20) % 10
    np.savez(tmp_path / "labels.npz", x=x, y=y + 1)
    np.savez(tmp_path / "nan.npz", x=x * np.nan, y=y)
    np.savez(tmp_path / "few.npz", x=x[:5], y=y[:5])
    np.savez(tmp_path / "shape.npz", x=x[:, :, :5], y=y)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    names = {"here": tmp_path, "data": held_out}
    done = offramp("tune", tunable, *(a.format(**names) for a in arguments))
    assert_clear_error(done, code, word)
    assert files_of(tunable) == before


def test_tune_stopped_on_its_way_leaves_the_old_tuning(tunable, held_out, monkeypatch):
    before, runs = files_of(tunable), []
    real = Stages.stage

    def stopped(self, index, tensors):
        runs.append(index)
        if len(runs) == 8:
            raise KeyboardInterrupt
        return real(self, index, tensors)

    monkeypatch.setattr(Stages, "stage", stopped)
    done = offramp("tune", tunable, "--dataset", held_out)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert files_of(tunable) == before


def test_tune_of_a_bundle_that_cannot_be_written_loses_nothing(tunable, held_out, monkeypatch):
    before = files_of(tunable)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("offramp.bundle.bundle.os.replace", full)
        done = offramp("tune", tunable, "--dataset", held_out, "--max-drop", "0.02")
    assert_clear_error(done, 1, "No space left", "the old tuning is still there")
    assert "ECE before" in done.stdout  # what was found is not lost either
    assert files_of(tunable) == before
    monkeypatch.setattr("offramp.cli.tuning.os.access", lambda path, mode: mode != os.W_OK)
    done = offramp("tune", tunable, "--dataset", held_out)
    assert_clear_error(done, 1, "cannot be written; --dry-run")
    assert done.stdout == ""
    assert offramp("tune", tunable, "--dataset", held_out, "--max-drop", "0.02", "--dry-run").returncode == 0
    assert files_of(tunable) == before


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_interrupted_demo_leaves_no_process(tmp_path):
    """SIGINT while rows are running: server and link end with it."""
    command = [sys.executable, "-m", "offramp", "demo", "--out", str(tmp_path / "demo"), "--epochs", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert any(line.startswith("3/4") for line in process.stdout)
        assert_interrupted(process, signal.SIGINT)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_programs_leave_no_server(digits_bundle, number):
    """What the demo's servers run in, without the demo before it."""
    program = (
        "import sys, time\n"
        "from offramp import cli\n"
        "from offramp.serving.process import running\n"
        "@cli.app.command()\n"
        "def hold() -> None:\n"
        f"    with running(['serve', {str(digits_bundle)!r}, '--grpc-port', '0']) as server:\n"
        "        with running(['link', '--to', server]):\n"
        "            print('3/4', flush=True)\n"
        "            time.sleep(60)\n"
        "sys.argv = ['offramp', 'hold']\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert any(line.startswith("3/4") for line in process.stdout)
        assert_interrupted(process, number)
    finally:
        process.kill()
        process.wait()


def assert_interrupted(process: subprocess.Popen[str], number: signal.Signals) -> None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


# --- modes -----------------------------------------------------------------------------------------------


def test_modes_shows_what_every_mode_costs_and_keeps_the_choice(tunable, held_out):
    before = files_of(tunable)
    shown = offramp("modes", tunable, "--dataset", held_out, "--limit", "400")
    assert shown.returncode == 0, shown.stderr
    assert files_of(tunable) == before
    for word in ("edge's MACs", "uint8c", "uint4", "uint2", "pays below", "the first 400 of all samples in"):
        assert word in shown.stdout
    assert "only you know" in shown.stderr
    assert "+0.00" in shown.stdout
    assert "-0.00" not in shown.stdout
    done = offramp(
        "modes", tunable, "--dataset", held_out, "--limit", "400", "--write", "--max-loss", "1", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert "usual mode: uint8 before, uint2 now" in done.stderr
    rows = {(row["cut"], row["mode"]): row for row in json.loads(done.stdout)["modes"]}
    assert len(rows) == 3 * 5
    assert rows[-1, "float"]["accuracy"] == rows[1, "float"]["accuracy"] > 0.6
    assert rows[0, "uint8"]["accuracy"] == pytest.approx(rows[0, "float"]["accuracy"], abs=0.02)
    assert [rows[0, mode]["fewer_than_float"] for mode in ("uint8", "uint4", "uint2")] == [4, 8, 16]
    assert rows[0, "float"]["gzip_bytes"] < rows[0, "float"]["payload_bytes"]
    after = files_of(tunable)
    assert after.pop("tuning.json.bak") == before.pop("tuning.json")
    tuning = json.loads(after.pop("tuning.json"))
    assert after == before
    assert tuning["mode"] == "uint2"
    assert tuning["gzip_below_mbps"]["cut_0.float"] > 0
    again = offramp("modes", tunable, "--dataset", held_out, "--limit", "400", "--write", "--max-loss", "0.02")
    assert json.loads((tunable / "tuning.json").read_text())["mode"] != "uint2", again.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--dataset", "cifar11"), "no data set"),
        (("--dataset", "mnist-subset", "--max-loss", "2"), "--max-loss"),
        (("--dataset", "mnist-subset", "--limit", "0"), "--limit"),
        ((), "--dataset"),
    ],
)
def test_modes_refuses_what_cannot_be(tunable, arguments, says):
    before = files_of(tunable)
    done = offramp("modes", tunable, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert files_of(tunable) == before


# --- cuts -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory) -> Path:
    """x (N, 8) → 40 products in a row → y (N, 3); an output `side` after the second."""
    import onnx

    def value(name, width):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", width])

    rng = np.random.default_rng(0)
    widths = [8, *([16, 4] * 19), 16, 3]
    nodes, weights = [], []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        weights.append(
            onnx.numpy_helper.from_array(rng.normal(size=(before, after)).astype(np.float32) / 4, f"w{i}")
        )
        nodes.append(onnx.helper.make_node("MatMul", [f"t{i}" if i else "x", f"w{i}"], [f"p{i}"]))
        nodes.append(onnx.helper.make_node("Tanh", [f"p{i}"], [f"t{i + 1}"]))
    weights.append(onnx.numpy_helper.from_array(rng.normal(size=(4, 3)).astype(np.float32), "w_side"))
    nodes.append(onnx.helper.make_node("MatMul", ["t2", "w_side"], ["side"]))
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 8)], [value("side", 3), value("t40", 3)], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("onnx") / "chain.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_cuts_lists_the_most_useful_places_and_all_if_asked(onnx_file):
    done = offramp("cuts", onnx_file)
    assert done.returncode == 0, done.stderr
    assert "t2 " in done.stdout
    assert "20 of 39 places" in done.stdout
    assert "--all shows all" in done.stdout
    assert "p2 " not in done.stdout
    every = offramp("cuts", onnx_file, "--all").stdout
    assert all(f" t{i} " in every for i in range(1, 40))
    assert "places:" not in every


def test_cuts_as_json(onnx_file):
    facts = json.loads(offramp("cuts", onnx_file, "--json", "--all").stdout)
    assert (facts["output"], facts["input_bytes"], facts["macs"]) == ("t40", 32, 8 * 16 + 38 * 64 + 16 * 3)
    second = facts["cuts"][1]
    assert (second["name"], second["bytes"], second["macs_before"]) == ("t2", 16, 192)
    assert second["compression"] == 0.5
    assert [cut["name"] for cut in facts["cuts"] if cut["bottleneck"]] == ["t2"]


def test_cuts_of_your_choice_become_a_bundle(onnx_file, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32))
    out = tmp_path / "chain.bundle"
    done = offramp("cuts", onnx_file, "--at", "t20", "--at", "t2", "--exit", "0=side", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "3 stages" in done.stdout
    facts = json.loads(offramp("inspect", out, "--json").stdout)
    assert [stage["exit"] is not None for stage in facts["stages"]] == [True, False, True]
    with running(["serve", str(out), "--grpc-port", "0"]) as address:
        ran = offramp("run", out, tmp_path / "x.npy", "--server", address, "--policy", "split-1")
    assert ran.returncode == 0, ran.stderr
    assert {(line["status"], line["where"]) for line in lines(ran)} == {("ok", "server")}


def test_cuts_that_send_least_become_a_bundle(onnx_file, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 8), np.float32))
    out = tmp_path / "chain.bundle"
    arguments = ("--best", "0.3,0.6", "--samples", tmp_path / "x.npy", "--json")
    done = offramp("cuts", onnx_file, *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    assert [cut["name"] for cut in json.loads(done.stdout)["cuts"]] == ["t2", "t4"]
    assert json.loads(offramp("inspect", out, "--json").stdout)["stages"][1]["modes"] == {
        "float": 16, "uint8": 4, "uint8c": 4, "uint4": 2, "uint2": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--at", "t2", "--best", "0.5"], 2, "give one of the two"),
        (["--exit", "0=side"], 2, "--out BUNDLE"),
        (["--out", "x.bundle"], 2, "a bundle needs cuts"),
        (["--best", "much"], 2, "shares of the work"),
        (["--best", "0.5,0.2"], 2, "rise between 0 and 1"),
        (["--at", "t2", "--out", "x.bundle", "--exit", "side"], 2, "--exit is CUT=OUTPUT"),
        (["--at", "t2", "--out", "x.bundle", "--samples", "no.npy"], 2, "no array that can be read"),
        (["--at", "t99"], 2, "did you mean t9"),
        (["--output", "nothing"], 2, "no tensor 'nothing'"),
        (["--at", "side"], 1, "does not lead to the output 't40'"),
        (["--output", "side", "--at", "w_side"], 1, "does not depend on the input"),
    ],
)
def test_cuts_misused(onnx_file, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    assert_clear_error(offramp("cuts", onnx_file, *arguments), code, words)
    assert list(tmp_path.iterdir()) == []


def test_cuts_of_what_is_no_model(tmp_path, onnx_file):
    (tmp_path / "text.onnx").write_text("no model")
    assert_clear_error(offramp("cuts", tmp_path / "text.onnx"), 1, "no ONNX file")
    assert_clear_error(offramp("cuts", tmp_path / "none.onnx"), 1, "cannot read")
    assert_clear_error(offramp("cuts", onnx_file, "--output", "t1"), 1, "no useful place to cut")


def test_cuts_without_onnx_says_what_to_install(onnx_file):
    program = (
        "import sys\n"
        "sys.modules.update(onnx=None, torch=None)\n"
        f"sys.argv = ['offramp', 'cuts', {str(onnx_file)!r}]\n"
        "from offramp.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "`offramp cuts` needs onnx, which is not installed: pip install 'offramp[onnx]'" in done.stderr


def test_cuts_works_without_torch(onnx_file):
    program = (
        "import sys\n"
        "sys.modules.update(torch=None, onnxscript=None, lightning=None)\n"
        f"sys.argv = ['offramp', 'cuts', {str(onnx_file)!r}]\n"
        "from offramp.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "20 of 39 places" in done.stdout


def test_trace_records_plain_and_distorted_images(tmp_path, digits_bundle):
    plain, noisy = tmp_path / "plain.npz", tmp_path / "noisy.npz"
    done = offramp("trace", digits_bundle, "--dataset", "mnist-subset", "--limit", 60, "--out", plain)
    assert done.returncode == 0, done.stderr
    assert "the first 60 of the test images of mnist-subset" in done.stdout
    assert "60 samples, 3 exits" in done.stderr
    found = Trace.load(plain)
    assert f"{100 * found.accuracy[-1]:.2f}" in done.stdout
    also = ("--distort", "gaussian_noise:0.5", "--seed", 3)
    assert offramp("trace", digits_bundle, "--dataset", "mnist-subset", "--out", noisy, "--limit", 60, *also)
    distorted = Trace.load(noisy)
    assert (distorted.meta.distortion, distorted.meta.seed) == ("gaussian_noise:0.5", 3)
    assert (distorted.label == found.label).all()
    assert (distorted.confidence != found.confidence).any()


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"--dataset": "mnits"}, 2, "known data sets: mnist-subset"),
        ({"--distort": "fog:1"}, 2, "a distortion is KIND:SIGMA"),
        ({"--distort": "gaussian_blur:-1"}, 2, "sigma lies between"),
        ({"--out": "{here}/trace.csv"}, 2, "ends in .npz"),
        ({"--out": "{here}/none/trace.npz"}, 1, "there is no folder"),
        ({"--dataset": "cifar10"}, 1, "classes that the bundle does not know"),
    ],
)
def test_trace_refuses_what_cannot_be(tmp_path, digits_bundle, changes, code, word):
    options = {"--dataset": "mnist-subset", "--out": "{here}/trace.npz", **changes}
    if options["--dataset"] == "cifar10" and not os.environ.get("OFFRAMP_DATA"):
        pytest.skip("CIFAR-10 is needed: name the folder that holds `cifar10` in OFFRAMP_DATA")
    arguments = [str(a).format(here=tmp_path) for option in options.items() for a in option]
    done = offramp("trace", digits_bundle, *arguments)
    assert_clear_error(done, code, word)
    assert not list(tmp_path.iterdir())


# --- quantize --------------------------------------------------------------------------------------------


def test_quantize_shows_what_changed_and_writes_a_bundle_that_runs(tmp_path, digits_bundle, held_out, images):
    small = tmp_path / "int8.bundle"
    done = offramp("quantize", digits_bundle, "--dataset", held_out, "--out", small, "--stages", "0,2")
    assert done.returncode == 0, done.stderr
    for word in (
        "smaller",
        "faster",
        "as before",
        "answers changed",
        "Exits on 2,800 inputs",
        "at the thresholds",
    ):
        assert word in done.stdout
    assert "calibrated on 200 of all samples in" in " ".join(done.stdout.split())
    assert f"wrote {small}: int8 stages 0, 2, digest" in done.stdout
    assert "fit them anew: offramp tune" in done.stderr
    assert "only you know" in done.stderr
    assert "Traceback" not in done.stderr
    facts = [json.loads(offramp("inspect", b, "--json").stdout) for b in (digits_bundle, small)]
    assert facts[0]["digest"] != facts[1]["digest"]
    assert facts[1]["bytes"] < 0.8 * facts[0]["bytes"]
    assert facts[1]["provenance"]["metrics"]["int8"][0]["stages"] == [0, 2]
    assert [line["status"] for line in lines(offramp("run", small, images))] == ["ok"] * 5
    assert offramp("tune", small, "--dataset", held_out, "--max-drop", "0.02").returncode == 0


def test_quantize_as_json(tmp_path, digits_bundle):
    small = tmp_path / "int8.bundle"
    more = ("--dataset", "mnist-subset", "--stages", "1..2", "--calibration", 30, "--limit", 90, "--json")
    done = offramp("quantize", digits_bundle, "--out", small, *more)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["int8"] == [1, 2]
    assert facts["samples"] == 90
    assert "30 of the held-out part of mnist-subset" in facts["data"]
    assert "the first 90 of the test images of mnist-subset" in facts["data"]
    assert facts["digest"] == json.loads(offramp("inspect", small, "--json").stdout)["digest"]
    assert [s["stage"] for s in facts["stages"]] == [e["exit"] for e in facts["exits"]] == [0, 1, 2]
    assert "wrote" in done.stderr


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"--stages": "3"}, 2, "has stages 0 to 2; chosen: 3"),
        ({"--stages": "2..1"}, 2, "numbers and ranges, such as 0..2 or 0,2, not '2..1'"),
        ({"--stages": "first"}, 2, "not 'first'"),
        ({"--stages": ""}, 2, "not ''"),
        ({"--stages": "0..99999999999"}, 2, "not '0..99999999999'"),
        ({"--dataset": "mnits"}, 2, "known data sets: mnist-subset"),
        ({"--dataset": "{here}/one.npz"}, 1, "at least two samples"),
        ({"--dataset": "{here}/labels.npz"}, 1, "labels from 10 to 10 do not go with 10 classes"),
        ({"--dataset": "{here}/nan.npz"}, 1, "NaN"),
        ({"--calibration": "0"}, 2, "--calibration"),
        ({"--limit": "0"}, 2, "--limit"),
        ({"--out": "{here}/notes"}, 1, "exists and is no bundle"),
        ({"--out": "{bundle}"}, 2, "is the bundle itself"),
    ],
)
def test_quantize_refuses_what_cannot_be(tmp_path, digits_bundle, changes, code, word):
    x, y = np.zeros((20, 1, 28, 28), np.float32), np.arange(20) % 10
    np.savez(tmp_path / "one.npz", x=x[:1], y=y[:1])
    np.savez(tmp_path / "labels.npz", x=x, y=np.full(20, 10))
    np.savez(tmp_path / "nan.npz", x=x * np.nan, y=y)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    before = files_of(tmp_path)
    options = {"--dataset": "mnist-subset", "--out": "{here}/new.bundle", "--limit": "20", **changes}
    names = {"here": tmp_path, "bundle": digits_bundle}
    filled = [part.format(**names) for pair in options.items() for part in pair]
    assert_clear_error(offramp("quantize", digits_bundle, *filled), code, word)
    assert files_of(tmp_path) == before


def test_quantize_without_onnx_says_what_to_install(digits_bundle, tmp_path):
    program = (
        "import sys\n"
        "sys.modules.update(onnx=None, torch=None)\n"
        f"sys.argv = ['offramp', 'quantize', {str(digits_bundle)!r}, '--dataset', 'mnist-subset', '--out', 'x']\n"
        "from offramp.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "`offramp quantize` needs onnx, which is not installed: pip install 'offramp[onnx]'" in done.stderr


def test_quantize_works_without_torch(digits_bundle, tmp_path):
    arguments = ["quantize", str(digits_bundle), "--dataset", "mnist-subset", "--out", "x.bundle", "--limit", "50"]
    program = (
        "import sys\n"
        "sys.modules.update(torch=None, onnxscript=None, lightning=None)\n"
        f"sys.argv = ['offramp', *{arguments!r}]\n"
        "from offramp.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote x.bundle: int8 stages 0, 1, 2" in done.stdout
    assert all(line.startswith("note: ") for line in done.stderr.splitlines())


# --- reproduce ------------------------------------------------------------------------------------------


def test_reproduce_lists_every_study_and_each_its_own_options():
    listed = offramp("reproduce", "--help").stdout
    for study in ("capogrosso", "mlp", "conv", "cifar", "resnet56", "mobilenetv2"):
        assert study in listed
        assert "--quick" in offramp("reproduce", study, "--help").stdout
    assert "--seeds" in offramp("reproduce", "mlp", "--help").stdout
    assert "--seeds" not in offramp("reproduce", "resnet56", "--help").stdout
    assert "--depths" in offramp("reproduce", "uee", "--help").stdout
    assert "--joint" in offramp("reproduce", "mobilenetv2", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mpl"], 2, ["mpl"]),
        (["resnet56", "--data", "cifar10"], 2, ["--data"]),
        (["resnet56"], 1, ["resnet56-4bfd9763.th", "not at hand", "OFFRAMP_DATA"]),
        (["mobilenetv2"], 1, ["int8.npz", "not at hand"]),
        (["mobilenetv2", "--side", "16"], 2, ["--side must be at least 32"]),
        (["mobilenetv2", "--data", "mnist"], 2, ["not mnist"]),
        (["resnet56", "--edge-slowdown", "0.5"], 2, ["--edge-slowdown must be at least 1"]),
        (["resnet56", "--delta", "2"], 2, ["--delta"]),
        (["mlp", "--data", "cifar10"], 2, ["the study mlp takes"]),
        (["uee"], 1, ["traces/imdb_elasticbert_4exits.csv", "--trace FILE"]),
        (["uee", "--depths", "1,x"], 2, ["--depths are whole numbers"]),
    ],
)
def test_reproduce_misused(arguments, code, words, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert_clear_error(offramp("reproduce", *arguments), code, *words)
    assert list(tmp_path.iterdir()) == []
