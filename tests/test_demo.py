"""The main job, whole: what it writes, and the bars that it must hold (slow)."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

PARTS = ("weights", "macs", "edge_bytes", "server_bytes", "train_s", "infer_ms", "accuracy")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The folder of a finished demo: the one that OFFRAMP_DEMO names, or a fresh one."""
    if given := os.environ.get("OFFRAMP_DEMO"):
        return Path(given)
    out = tmp_path_factory.mktemp("demo") / "out"
    subprocess.run([sys.executable, "-m", "offramp", "demo", "--out", str(out)], check=True, timeout=900)
    return out


@pytest.fixture(scope="module")
def results(demo):
    return json.loads((demo / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_results_hold_every_row_and_network(results):
    names = [row["name"] for row in results["rows"]]
    assert {"edge only", "server only", "split 0", "split 1", "I-SplitEE"} <= set(names)
    for row in results["rows"]:
        assert row["accuracy"] > 0.9
        assert 0 <= row["offloaded_share"] <= 1
        assert set(row["latency_ms"]) == {"mean", "p95", "edge", "link", "server"}
        assert row["latency_ms"]["mean"] > 0
        assert row["degraded_share"] == 0
        assert row["cost"] > 0
    by_name = {row["name"]: row for row in results["rows"]}
    assert by_name["edge only"]["payload_bytes"] == 0
    assert by_name["server only"]["offloaded_share"] == 1
    assert by_name["server only"]["latency_ms"]["link"] >= 20
    assert by_name["split 0"]["latency_ms"]["mean"] < by_name["server only"]["latency_ms"]["mean"]
    assert by_name["split 0"]["cost"] < by_name["edge only"]["cost"]
    for kind in ("dense", "narrow", "sparse"):
        assert all(results[kind][part] > 0 for part in PARTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sparse_holds_its_bars_against_dense(results):
    dense, sparse, narrow = results["dense"], results["sparse"], results["narrow"]
    assert dense["accuracy"] >= 0.985
    assert sparse["accuracy"] >= 0.98
    assert sparse["accuracy"] >= dense["accuracy"] - 0.007
    assert sparse["weights"] <= dense["weights"] / 4
    assert sparse["macs"] <= dense["macs"] / 4
    assert narrow["macs"] == pytest.approx(sparse["macs"], rel=0.05)
    assert sparse["server_bytes"] < dense["server_bytes"] / 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_report_is_self_contained_and_shows_every_row(demo, results):
    page = (demo / "report.html").read_text()
    for row in results["rows"]:
        assert row["name"] in page
    assert page.count("<svg") == 4
    assert "emulated" in page
    for outside in ("http://", "https://", "src=", "<script"):
        inside = page.replace("http://www.w3.org", "").replace("http://purl.org", "")
        inside = inside.replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")
        assert outside not in inside


def test_a_short_demo_writes_everything(tmp_path, monkeypatch):
    """The whole way with few images, so that every step is in the quick suite too."""
    from offramp import demo
    from offramp.recipes import load_splits

    splits = load_splits(seed=3)
    few = replace(splits, train=splits.train.take(slice(0, 1500)), held_out=splits.held_out.take(slice(0, 600)))
    monkeypatch.setattr(demo, "load_splits", lambda seed: few)
    out = tmp_path / "demo"
    settings = demo.DemoSettings(out=out, seed=3, epochs=1, images=12, edge_slowdown=2.0)
    said = io.StringIO()
    demo.run_demo(settings, Console(file=said, width=200))
    written = json.loads((out / "results.json").read_text())
    assert written["settings"]["edge_slowdown"] == 2
    assert {row["inputs"] for row in written["rows"]} == {12}
    assert all(row["degraded_share"] == 0 for row in written["rows"])
    assert len(written["choices"]) == 12
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4
    for table in re.findall("<table>.*?</table>", page, re.DOTALL):
        heads, *lines = [len(re.findall("<t[hd][ >]", line)) for line in table.split("<tr>")[1:]]
        assert set(lines) == {heads}
    assert "What sparsity saved" in said.getvalue()


@pytest.mark.parametrize(("sparse_s", "words"), [(2.0, "2.0x faster training"), (8.0, "2.0x slower training")])
def test_slower_training_is_called_so(sparse_s, words):
    from offramp.demo import _saving

    networks = {
        kind: {"weights": 4, "macs": 4, "train_s": seconds}
        for kind, seconds in (("sparse", sparse_s), ("dense", 4.0), ("narrow", 1.0))
    }
    assert words in _saving(networks)
    assert _saving(networks).endswith("narrow trains fastest")
