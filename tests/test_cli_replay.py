"""`offramp replay` and `offramp reproduce uee`, as a user meets them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from test_cli import assert_clear_error, offramp

from offramp.replay.trace import Trace, TraceMeta

META = TraceMeta(bundle="b", data="made up", exits=(0, 1, 2), depths=(3, 6, 9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces and tables: good.npz, other.npz, unlabelled.npz, table.csv."""
    root, rng, n = tmp_path_factory.mktemp("traces"), np.random.default_rng(0), 120
    label = rng.integers(0, 3, n)
    right = rng.random((n, 3)) < (0.5, 0.8, 0.9)
    prediction = np.where(right, label[:, None], (label[:, None] + 1) % 3).astype(np.int32)
    confidence = np.clip(rng.normal((0.5, 0.7, 0.9), 0.2, (n, 3)), 0, 1).astype(np.float32)
    Trace(prediction, confidence, label.astype(np.int32), META).save(root / "good.npz")
    Trace(prediction, confidence, np.full(n, -1, np.int32), META).save(root / "unlabelled.npz")
    deeper = META.model_copy(update={"depths": (3, 6, 12)})
    Trace(prediction, confidence, label.astype(np.int32), deeper).save(root / "other.npz")
    Trace(prediction[:2], confidence[:2], label[:2].astype(np.int32), META).save(root / "short.npz")
    rows = np.column_stack([prediction, label]).tolist()
    (root / "table.csv").write_text("a,b,c,y\n" + "\n".join(",".join(map(str, row)) for row in rows))
    (root / "holes.csv").write_text("a,b,c,y\n0,1,,2\n")
    arrays = dict(np.load(root / "good.npz"))
    np.savez(root / "fewer.npz", **{**arrays, "prediction": arrays["prediction"][:, :2]})
    np.savez(root / "floats.npz", **{**arrays, "confidence": np.full((n, 3), np.nan, np.float32)})
    none = json.dumps({"bundle": "b", "exits": [0, 1], "depths": [3, 6, 9]}).encode()
    np.savez(root / "nolast.npz", **{**arrays, "meta": np.frombuffer(none, np.uint8)})
    return root


def test_a_table_holds_every_comparison_and_both_forms(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.svg"
    done = offramp(
        "replay", folder / "good.npz", "--policy", "i-splitee", "--policy", "splitee,c=0.5", "--seeds", 3,
        "--cost", "gamma=0.05,offload=.2,head=.01", "--alpha", ".6,0.7", "--out", picture,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in (
        *("split-0", "split-1", "edge-only (the final exit", "random", "split-0-all", "server-only", "cascade"),
        *(
            "i-splitee",
            "i-splitee,published=true (sees hidden answers)",
            "splitee,c=0.5",
            "best fixed arm",
        ),
        *("120 samples of made up", "3 runs", "0.05·depth + 0.01·heads + 0.2 if offloaded", "gates at 0.6, 0.7"),
    ):
        assert name in done.stdout, name
    svg = ElementTree.fromstring(picture.read_text())
    assert svg.tag.endswith("svg")


def test_depths_and_gates_are_the_traces_own_unless_given(folder: Path, tmp_path: Path) -> None:
    trace = Trace.load(folder / "good.npz")
    meta = trace.meta.model_copy(update={"thresholds": (0.8, 0.9, None)})
    Trace(trace.prediction, trace.confidence, trace.label, meta).save(tmp_path / "own.npz")
    done = offramp("replay", tmp_path / "own.npz", "--seeds", 2, "--policy", "i-splitee,alpha=none")
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "depths 3, 6, 9; gates at the bundle's own 0.8, 0.9" in told
    done = offramp("replay", tmp_path / "own.npz", "--seeds", 2, "--depths", "1,2,8", "--alpha", "0.7", "--json")
    found = json.loads(done.stdout)
    assert (sum(found["cost"]["stages"]), found["alpha"]) == (pytest.approx(0.8), 0.7)
    final = next(policy for policy in found["policies"] if policy["name"] == "edge-only")
    assert final["cost"]["mean"] == pytest.approx(0.8)


def test_json_holds_runs_and_regret_over_time(folder: Path) -> None:
    done = offramp("replay", folder / "good.npz", "--policy", "uee-ucb", "--seeds", 3, "--seed", 7, "--json")
    found = json.loads(done.stdout)
    assert (found["runs"], found["seed"], found["alpha"], found["reward"]) == (3, 7, 0.5, "confidence")
    assert found["cost"]["sends"] == [0.5] * 3
    assert found["cost"]["words"] == "0.1·depth + 0.5 if offloaded, depths 3, 6, 9"
    assert found["steps"][-1] == 120
    by_name = {policy["name"]: policy for policy in found["policies"]}
    random = by_name["random"]
    for key in ("accuracy", "cost", "offloaded", "regret"):
        assert len(random[key]["runs"]) == 3
        assert random[key]["mean"] == pytest.approx(np.mean(random[key]["runs"]))
    assert random["regret_over_time"]["mean"][-1] == pytest.approx(random["regret"]["mean"])
    best = "edge-only" if found["best_fixed_arm"] == 2 else f"split-{found['best_fixed_arm']}"
    assert by_name[best]["regret"]["mean"] == 0
    assert sum(by_name["uee-ucb"]["splits"].values()) == pytest.approx(1)
    assert json.loads(offramp("replay", folder / "good.npz", "--seeds", 3, "--seed", 7, "--json").stdout)[
        "policies"
    ] == [policy for policy in found["policies"] if policy["name"] != "uee-ucb"]


def test_several_traces_and_no_labels(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.svg"
    done = offramp("replay", folder / "good.npz", folder / "good.npz", "--seeds", 2, "--out", out)
    assert "120 samples of made up, then 120 samples of made up" in done.stdout
    assert "the next trace begins" in out.read_text()
    done = offramp("replay", folder / "unlabelled.npz", "--seeds", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "accuracy" not in done.stdout
    assert "accuracy" not in out.read_text()


def test_a_table_of_predictions(folder: Path) -> None:
    done = offramp("replay", folder / "table.csv", "--depths", "1,3,12", "--policy", "uee-ucb", "--seeds", 2)
    assert done.returncode == 0, done.stderr
    assert "uee-ucb" in done.stdout
    assert "cascade" not in done.stdout
    assert "1 if right" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none.npz"], 1, ["cannot read", "none.npz"]),
        (["table.csv"], 2, ["give --depths"]),
        (["table.csv", "--depths", "1,x"], 2, ["whole numbers such as 1,3,7,12"]),
        (["table.csv", "--depths", "1,3"], 1, ["has 4 columns; 2 depths"]),
        (["good.npz", "--depths", "1,3"], 2, ["one of 2 stages, the trace of 3"]),
        (["good.npz", "--depths", "1,3,2"], 2, ["depths ascend"]),
        (["table.csv", "--depths", "1,3,7", "--alpha", "0.5"], 2, ["has no confidences"]),
        (["table.csv", "--depths", "1,3,7", "--policy", "splitee"], 1, ["predictions and no confidences"]),
        (["holes.csv", "--depths", "1,3,7"], 1, ["line 2: '' is no class index"]),
        (["short.npz"], 1, ["2 samples are fewer than the 3 exits"]),
        (["good.npz", "other.npz"], 1, ["different networks: depths"]),
        (["fewer.npz"], 1, ["a column for each of the exits (0, 1, 2), got int32 of (120, 2)"]),
        (["nolast.npz"], 1, ["exits (0, 1) do not go with 3 stages"]),
        (["floats.npz"], 1, ["confidence: expected uint16, got float32"]),
        (["good.npz", "--policy", "i-split"], 2, ["did you mean 'i-splitee'"]),
        (["good.npz", "--policy", "i-splitee,c=-1"], 2, ["at least 0"]),
        (["good.npz", "--policy", "uee-ucb,mu=-0.5"], 2, ["at least 0"]),
        (["good.npz", "--policy", "splitee,mu=nan"], 2, ["at least 0 and finite"]),
        (["good.npz", "--policy", "i-splitee,audit=2"], 2, ["between 0 and 1"]),
        (["good.npz", "--policy", "splitee-s,audit=-0.1"], 2, ["between 0 and 1"]),
        (["good.npz", "--policy", "i-splitee,audit=nan"], 2, ["between 0 and 1"]),
        (["good.npz", "--policy", "i-splitee,audits=0.1"], 2, ["did you mean 'audit'"]),
        (["good.npz", "--policy", "i-splitee,drift=advin"], 2, ["did you mean 'adwin'"]),
        (["good.npz", "--policy", "cascade,drift=adwin"], 2, ["takes no option 'drift'"]),
        (["good.npz", "--policy", "random,seed=1"], 2, ["given by --seed"]),
        (["good.npz", "--policy", "split-7"], 2, ["split 7", "none that this edge can do: splits -1, 0, 1, 2"]),
        (["good.npz", "--policy", "split-7-all"], 2, ["split 7 is none", "splits -1, 0, 1, 2; exits 0, 1, 2"]),
        (["good.npz", "--cost", "gama=1"], 2, ["did you mean 'gamma'"]),
        (["good.npz", "--cost", "gamma"], 2, ["--cost gamma is a number"]),
        (["good.npz", "--cost", "gamma=1,gamma=2"], 2, ["names gamma twice"]),
        (["good.npz", "--delay", "10ms"], 2, ["--delay", "--rate"]),
        (["good.npz", "--mode", "uint9"], 2, ["--mode", "--rate"]),
        (["good.npz", "--edge-slowdown", "0.5"], 2, ["--edge-slowdown", "--rate"]),
        (["good.npz", "--rate", "10mbit", "--edge-slowdown", "inf"], 2, ["a slowdown at least 1"]),
        (["good.npz", "--cost", "gamma=-1"], 2, ["at least 0"]),
        (["good.npz", "--cost", "gamma=0,offload=-1"], 2, ["at least 0"]),
        (["good.npz", "--cost", "head=-0.1"], 2, ["at least 0"]),
        (["good.npz", "--cost", "gamma=nan"], 2, ["is a number"]),
        (["good.npz", "--alpha", "1.5"], 2, ["between 0 and 1"]),
        (["good.npz", "--alpha", "a"], 2, ["--alpha is a number"]),
        (["good.npz", "--alpha", ".5,.5,.5"], 2, ["a threshold for each"]),
        (["good.npz", "--reward", "luck"], 2, ["confidence or accuracy"]),
        (["unlabelled.npz", "--reward", "accuracy"], 1, ["not every label is known"]),
        (["good.npz", "--seeds", "0"], 2, ["--seeds"]),
        (["good.npz", "--out", "p.png"], 2, ["ends in .svg"]),
        (["good.npz", "--out", "no/p.svg"], 2, ["a folder that there is"]),
    ],
)
def test_replay_refuses_what_cannot_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: list[str]
) -> None:
    monkeypatch.chdir(folder)
    assert_clear_error(offramp("replay", *arguments), code, *words)


def test_a_drift_detector_may_reset_a_learner(folder: Path) -> None:
    pytest.importorskip("river", reason="river is not installed: pip install 'offramp[drift]'")
    done = offramp("replay", folder / "good.npz", "--policy", "i-splitee,drift=adwin", "--seeds", 2)
    assert done.returncode == 0, done.stderr
    assert "i-splitee,drift=adwin " in done.stdout
    assert "i-splitee,drift=adwin,published=true (sees hidden answers)" in done.stdout


def test_reproduce_uee_takes_any_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    arguments = ("--depths", "1,3,12", "--seeds", 2, "--out", out)
    done = offramp("reproduce", "uee", "--trace", folder / "table.csv", *arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["uee-table.json", "uee-table.md", "uee-table.svg"]
    text = (out / "uee-table.md").read_text()
    assert "`offramp reproduce uee --trace table.csv --depths 1,3,12 --seeds 2`" in text
    found = json.loads((out / "uee-table.json").read_text())
    table = np.loadtxt(folder / "table.csv", int, delimiter=",", skiprows=1)
    errors = (table[:, :3] != table[:, 3:]).mean(axis=0)
    assert [fact["error"] for fact in found["exit_facts"]] == pytest.approx(errors)
    assert [fact["cost"] for fact in found["exit_facts"]] == pytest.approx([1 / 12, 3 / 12, 1])
    differs = (table[:, :3] != table[:, :1]).mean(axis=0)
    assert [fact["disagrees_with_first"] for fact in found["exit_facts"]] == pytest.approx(differs)
    assert found["best_fixed_arm"] == int(np.argmin(errors + np.array([1, 3, 12]) / 12))
    names = [policy["name"] for policy in found["policies"]]
    assert names == ["split-0", "split-1", "edge-only", "random", "uee-ucb", "uee-ucb, exit 0 first"]
    assert found["origin"]["command"].startswith("offramp reproduce uee")
