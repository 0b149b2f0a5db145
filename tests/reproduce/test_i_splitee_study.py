"""`offramp reproduce i-splitee` on made-up traces, as a user meets it."""

from __future__ import annotations

import io
import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from recorded_traces import write_traces
from rich.console import Console
from test_cli import assert_clear_error, offramp

from offramp.errors import ConfigError, MissingExtraError
from offramp.policy import compiled
from offramp.policy.cost import CostModel
from offramp.reproduce.bars import BARS
from offramp.reproduce.i_splitee import ISplitEESettings, papers_cost, study_i_splitee

STEMS = [f"i-splitee-{network}-cifar10-quick" for network in ("mobilenetv2", "resnet56")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_traces(tmp_path_factory.mktemp("traces"), 500)


def test_a_quick_look_writes_everything_and_says_what_holds(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    done = offramp("reproduce", "i-splitee", "--traces", folder, "--out", out, "--quick")
    assert done.returncode == 0, done.stderr
    files = {f"{stem}{end}" for stem in STEMS for end in (".md", ".json", ".svg", "-levels.svg", "-change.svg")}
    assert {path.name for path in out.iterdir()} == files
    for picture in out.glob("*.svg"):
        assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")
    for stem, title in zip(STEMS, ("MobileNetV2", "ResNet-56"), strict=True):
        text, found = (out / f"{stem}.md").read_text(), json.loads((out / f"{stem}.json").read_text())
        assert f"`offramp reproduce i-splitee --quick --traces {folder.name}`" in text
        for gates in ("bundle", "paper", "distorted"):
            for policy in ("i-splitee", "i-splitee,audit=0.05"):
                for words in BARS.values():
                    start = f"- {title}, gates {gates}, {policy}: {words}: "
                    (line,) = [line for line in text.splitlines() if line.startswith(start)]
                    assert "holds at o = " in line or "DOES NOT HOLD at o = " in line
                    assert "γ (" in line
                    assert "5γ (" in line
            for rival in ("split-0-all", "server-only", "cascade"):
                assert f"- {title}, gates {gates}, {rival} beside i-splitee,audit=0.05: " in text
        bars = text.split("## Every bar")[1].split("## Tables")[0]
        assert found["said"] == [line[2:] for line in bars.splitlines() if line.startswith("- ")]
        short = [line for line in text.split("## Every bar")[0].splitlines() if line.startswith("- Gates ")]
        assert len(short) == 3
        assert all("server-only -" in line and " % of the cost at " in line for line in short)
        assert len(found["settings"]) == 6
        for setting in found["settings"]:
            final = setting["policies"]["edge-only"]
            learner = setting["policies"]["i-splitee"]
            assert final["cost"]["mean"] == pytest.approx(found["gamma"] * found["depths"][-1], abs=1e-4)
            holds = learner["cost"]["mean"] <= 0.35 * final["cost"]["mean"]
            assert setting["bars"]["i-splitee"]["cost"] == holds
            names = {name for name in setting["policies"] if "published" in name}
            assert names == {"i-splitee,published=true", "splitee-s,published=true"}
        assert set(found["change"]["policies"]) >= {"i-splitee", "i-splitee,discount=0.999"}
        assert (out / f"{stem}.json").stat().st_size < 300_000


def test_another_cost_can_be_passed(folder: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def halved(depths: tuple[int, ...], offload: int) -> CostModel:
        asked.append(offload)
        return CostModel.in_layers(depths, gamma=0.05, offload=0.05 * offload)

    settings = ISplitEESettings(folder, 2, tmp_path, quick=True)
    _, written = study_i_splitee(settings, Console(file=io.StringIO()), halved)
    found = json.loads(next(path for path in written if path.suffix == ".json").read_text())
    assert {setting["offload"] for setting in found["settings"]} == {0.05, 0.25}
    assert {1, 5} <= set(asked)
    assert papers_cost((1, 2), 5) == CostModel.in_layers((1, 2), gamma=0.1, offload=0.5)


def test_without_a_compiler_nothing_is_begun(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    compiled._compiled.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"pip install 'offramp\[replay\]'"):
            study_i_splitee(ISplitEESettings(folder, 2, tmp_path / "o", quick=True), Console(file=io.StringIO()))
    finally:
        compiled._compiled.cache_clear()
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_studied(folder: Path, tmp_path: Path) -> None:
    assert_clear_error(offramp("reproduce", "i-splitee", "--traces", tmp_path / "none"), 1, "there is no folder")
    assert_clear_error(offramp("reproduce", "i-splitee", "--seeds", "0"), 2, "--seeds")
    (tmp_path / "file").write_text("")
    assert_clear_error(
        offramp("reproduce", "i-splitee", "--traces", folder, "--out", tmp_path / "file"), 2, "give a directory"
    )
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    shutil.copy(mixed / "resnet56-cifar10-gaussian_blur-1.npz", mixed / "mobilenetv2-cifar10-gaussian_blur-1.npz")
    assert_clear_error(
        offramp("reproduce", "i-splitee", "--traces", mixed, "--out", tmp_path / "o", "--quick"),
        1,
        "of another bundle",
    )
    (mixed / "mobilenetv2-cifar10-gaussian_blur-1.npz").unlink()
    assert_clear_error(
        offramp("reproduce", "i-splitee", "--traces", mixed, "--out", tmp_path / "o", "--quick"),
        1,
        "offramp reproduce mobilenetv2",
    )
    assert not (tmp_path / "o").exists()
    with pytest.raises(ConfigError, match="at least one run"):
        ISplitEESettings(seeds=0)
