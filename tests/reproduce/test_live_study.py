"""The live study: its verdicts can fail, and the whole of it runs on a small bundle."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from offramp.bundle.bundle import Bundle
from offramp.errors import ConfigError
from offramp.report.adapting import adapting_picture, running_means
from offramp.reproduce.live import ADAPTIVE, LiveRow, LiveRun, LiveSettings, _turns, policies, run_from
from offramp.reproduce.live_study import LiveStudy, sentences, study_bundle
from offramp.runtime.labelled import Labelled
from offramp.serving.link import LinkSettings


def row(name: str, *ms: float, right: float = 1.0) -> LiveRow:
    n = len(ms)
    return LiveRow(name, ms, tuple(i < right * n for i in range(n)), (0,) * n, 0.5)


def steady(**means: float) -> LiveRun:
    names = {"fast": "split 0", "slow": "edge only"}
    rows = [row(names.get(k, k), *(ms,) * 10) for k, ms in means.items()]
    rest = [row(name, *(10.5,) * 10) for name in ADAPTIVE if name not in means]
    return LiveRun("1 Mbit/s", None, (*rows, *rest))


def test_ten_percent_is_held_or_missed() -> None:
    (said, _) = sentences([steady(fast=10.0, slow=30.0)], LiveSettings())
    assert "the best fixed split is split 0, 10.0 ms" in said
    assert said.count("1.050x (held)") == 3
    (said, _) = sentences([steady(fast=9.0, slow=30.0)], LiveSettings())
    assert said.count("1.167x (missed)") == 3


def test_accuracies_apart_are_said() -> None:
    run = steady(fast=10.0)
    worse = LiveRun(run.link, None, (*run.rows, row("split 1", *(20.0,) * 200, right=0.99)))
    assert "Accuracies 0.00 points apart (within 0.5)" in sentences([run], LiveSettings())[0]
    assert "Accuracies 1.00 points apart (beyond 0.5)" in sentences([worse], LiveSettings())[0]


def test_the_same_best_split_everywhere_is_said() -> None:
    runs = [steady(fast=10.0, slow=30.0), steady(fast=10.0, slow=30.0)]
    assert "the same over every link (split 0)" in sentences(runs, LiveSettings())[-1]
    runs[1] = steady(fast=30.0, slow=10.0)
    assert "differs between the links: edge only, split 0" in sentences(runs, LiveSettings())[-1]


def changing(*adapting: float) -> LiveRun:
    fixed = [row("split 0", *[5.0] * 50, *[100.0] * 50), row("edge only", *[40.0] * 100)]
    found = [row(name, *[6.0] * 50, *adapting) for name in ADAPTIVE]
    return LiveRun("100 Mbit/s, then 1 Mbit/s", 50, (*fixed, *found))


def test_beating_every_fixed_split_is_said_with_the_inputs_that_it_took() -> None:
    said, _ = sentences([changing(*[100.0] * 10, *[41.0] * 40)], LiveSettings())
    assert "the best fixed split is edge only, 40.0 ms" in said
    assert said.count("(beats every fixed split)") == 3
    # A mean of 20 is within 10 % of 40 ms once no more than one of its inputs took 100 ms.
    assert said.count(" 9") >= 3
    said, _ = sentences([changing(*[100.0] * 50)], LiveSettings())
    assert said.count("(does not beat it)") == 3
    assert "never" in said


def test_turns_go_round_and_not_over_the_change() -> None:
    assert _turns(50, None) == [(0, 20), (20, 40), (40, 50)]
    assert _turns(50, 25) == [(0, 20), (20, 25), (25, 40), (40, 50)]


def test_running_means() -> None:
    assert running_means([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]


def test_a_run_survives_json() -> None:
    run = changing(*[41.0] * 50)
    assert run_from(json.loads(json.dumps(run.to_dict()))) == run


def test_a_picture_has_a_panel_per_run() -> None:
    text = adapting_picture([steady(fast=10.0, slow=20.0), changing(*[41.0] * 50)])
    ET.fromstring(text)
    assert text.count("<!-- 1 Mbit/s -->") == 1


@pytest.mark.parametrize(
    "wrong", [{"images": 0}, {"changing": 1}, {"slowdown": 0.5}, {"slowdown": float("inf")}, {"seed": -1}]
)
def test_settings_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        LiveSettings(**wrong)  # type: ignore[arg-type]


def test_every_fixed_split_stands_beside_those_that_adapt(digits_bundle: Path) -> None:
    names = list(policies(Bundle.load(digits_bundle)))
    assert names == ["send the input", "split 0", "split 1", "edge only", *ADAPTIVE]


def test_a_whole_study(
    digits_bundle: Path, digit_images: tuple[NDArray[np.uint8], NDArray[np.int64]], tmp_path: Path
) -> None:
    images, labels = digit_images
    links = (LinkSettings(20e6, 0.002), LinkSettings(0.0, 0.0))
    study = LiveStudy(
        out=tmp_path / "out",
        work=tmp_path,
        live=LiveSettings(images=6, changing=6, slowdown=1.0, links=links),
        quick=True,
    )
    test = Labelled(images, labels, "digits")
    tables, written = study_bundle(Bundle.load(digits_bundle), test, study, "live-digits", Console(quiet=True))
    assert [p.name for p in written] == ["live-digits-quick.md", "live-digits-quick.json", "live-digits-quick.svg"]
    text, found = written[0].read_text(encoding="utf-8"), json.loads(written[1].read_text(encoding="utf-8"))
    assert all(table in text for table in tables)
    assert len(found["runs"]) == 3
    assert [run["change_at"] for run in found["runs"]] == [None, None, 3]
    for run in found["runs"]:
        assert len(run["rows"]) == 7
        assert all(row["mean_ms"] > 0 and row["cost"] > 0 for row in run["rows"])
    assert (tmp_path / "live-quick.jsonl").read_text().count("\n") == 3
    # The same command goes on from what is recorded.
    again = study_bundle(Bundle.load(digits_bundle), test, study, "live-digits", Console(quiet=True))
    assert again[0] == tables
