"""`offramp reproduce`: from a study's name to its files, on the packaged digits."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from offramp.cli import app
from offramp.errors import ConfigError, OfframpError
from offramp.reproduce import capogrosso, regimes
from offramp.reproduce.sparse_study import STUDIES, StudySettings, run_study

DATA = "mnist-subset"


def study(out: Path, name: str = "mlp", data: str | None = DATA, **other: Any) -> StudySettings:
    return StudySettings(name, data, **{"out": out, "workers": 1, "quick": True, **other})


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Trainings:
    """In place of trainings: outcomes at once, a tenth better or worse by kind, until one fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.fails_at: int | None = None
        monkeypatch.setattr(regimes, "run", self.run)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        if len(self.jobs) == self.fails_at:
            raise OfframpError("stopped")
        self.jobs.append(job)
        students = [self.outcome({**job, **student, "variant": "taught"}) for student in job.get("students", [])]
        return {**self.outcome(job), **({"students": students} if students else {})}

    @staticmethod
    def outcome(job: dict[str, Any]) -> dict[str, Any]:
        accuracy = {"dense": 0.9, "sparse": 0.8, "narrow": 0.7, "narrow-macs": 0.85}[job["kind"]]
        return {
            **{key: job[key] for key in ("kind", "factor", "seed", "lr")},
            "variant": job.get("variant", ""),
            "train_s": 1.0,
            "weights": 1000 // job["factor"],
            "macs": 1000 // job["factor"],
            job["judged"].replace(" ", "_"): [accuracy - 0.1, accuracy - job["lr"]],
        }


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    return Trainings(monkeypatch)


# --- Whole studies ---------------------------------------------------------------------------------------


def test_a_quick_study_writes_its_table_picture_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, with every training."""
    arguments = ["reproduce", "mlp", "--data", DATA, "--quick", "--workers", "1", "--out", str(tmp_path / "new")]
    app(arguments, standalone_mode=False)
    said = capsys.readouterr()
    stem = f"mlp-{DATA}-quick"
    assert names(tmp_path / "new") == [f"{stem}-curves.svg", f"{stem}.json", f"{stem}.md"]
    table = f"Where predefined sparsity pays: mlp on {DATA}"
    text = (tmp_path / "new" / f"{stem}.md").read_text(encoding="utf-8")
    assert table in said.out
    assert "final exit: sparse against narrow, seed by seed: 2x" in said.out
    assert said.out.splitlines()[3] in text  # the table's head
    assert f"`offramp reproduce mlp --data {DATA} --seeds 2 --quick`" in text
    assert f"![curves]({stem}-curves.svg)" in text
    assert "written:" in said.err
    picture = (tmp_path / "new" / f"{stem}-curves.svg").read_text(encoding="utf-8")
    assert ET.fromstring(picture).tag.endswith("svg")
    assert f"mlp on {DATA}: final exit" in picture
    figures = json.loads((tmp_path / "new" / f"{stem}.json").read_text(encoding="utf-8"))
    found = {(o["kind"], o["factor"], o["seed"]) for o in figures["outcomes"]}
    kinds = {("dense", 1), *((kind, f) for kind in ("sparse", "narrow") for f in regimes.FACTORS)}
    assert found == {(kind, factor, seed) for kind, factor in kinds for seed in (0, 1)}
    assert len(figures["outcomes"]) == len(found)
    assert all(0 <= a <= 1 for o in figures["outcomes"] for a in o["test"])
    assert figures["verdicts"]
    assert figures["command"].endswith("--seeds 2 --quick")


def test_the_papers_study_compares_its_networks_and_places_its_title(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, titles = capogrosso.published()[:3:2], capogrosso.titles()[1:2]
    monkeypatch.setattr(capogrosso, "RATES", (4e-3, 8e-3))
    monkeypatch.setattr(capogrosso, "published", lambda: published)
    monkeypatch.setattr(capogrosso, "titles", lambda: titles)
    tables, written = run_study(study(tmp_path, "capogrosso"), quiet())
    stem = f"capogrosso-{DATA}-quick"
    assert [path.name for path in written] == [f"{stem}.md", f"{stem}.json", f"{stem}-ways.svg"]
    assert names(tmp_path) == sorted(path.name for path in written)
    first, second = tables
    rows = [[c.strip() for c in line.split("│")[1:5]] for line in first.splitlines() if line.startswith("│")]
    assert rows == [
        ["800-3-3-10 dense", "2,439", "2,439", "1.0x"],
        ["800-40-40-10 (2, 9, 10) block", "2,360", "34,000", "14.4x"],
    ]
    assert second.startswith("Split, early exit, and both")
    figures = json.loads(written[1].read_text(encoding="utf-8"))
    assert len(figures["published"]) == (2 + 1) * 2  # networks and seeds
    assert [(p["cut"], p["way"]) for p in figures["placements"]] == [
        (cut, way) for cut in (0, 1) for way in ("split", "early exit", "both")
    ]
    assert figures["energy"]["mac_pj"] == 4.6
    picture = written[2].read_text(encoding="utf-8")
    assert "800-40-40-10 (2, 9, 10) block" in picture
    ET.fromstring(picture)


def test_a_colour_study_tells_what_its_variants_change(tmp_path: Path, trainings: Trainings) -> None:
    tables, written = run_study(study(tmp_path, "cifar", None, quick=False, seeds=3), quiet())
    assert [path.name for path in written] == [
        "cifar-cifar10.md",
        "cifar-cifar10.json",
        "cifar-cifar10-curves.svg",
    ]
    assert {job["data"] for job in trainings.jobs} == {"cifar10"}
    assert {job["limit"] for job in trainings.jobs} == {None}
    said = tables[1].splitlines()
    for variant, what in regimes.VARIANTS.items():
        assert f"{variant}: {what}" in said
        (line,) = [s for s in said if s.startswith(f"final exit: sparse, {variant}, at 4x")]
        spread = ", one seed" if variant in regimes.DEAR else " ± 0.00"
        assert line.endswith(f"-5.00{spread} against narrow-macs, {variant}")
        assert f"+0.00{spread} against plain sparse" in line
    figures = json.loads(written[1].read_text(encoding="utf-8"))
    taught = [(o["kind"], o["seed"]) for o in figures["outcomes"] if o["variant"] == "taught"]
    assert sorted(taught) == [("narrow-macs", 0), ("sparse", 0)]
    assert not any("students" in outcome for outcome in figures["outcomes"])


def test_epochs_rates_and_seeds_are_as_told(tmp_path: Path, trainings: Trainings) -> None:
    run_study(study(tmp_path, quick=False, seeds=3, epochs=7), quiet())
    tuning = [job for job in trainings.jobs if job["judged"] == "held out"]
    final = [job for job in trainings.jobs if job["judged"] == "test"]
    assert {job["epochs"] for job in tuning} == {3}  # a third, rounded up
    assert {(job["epochs"], job["seed"]) for job in final} == {(7, seed) for seed in range(3)}
    assert {job["lr"] for job in final} == {min(regimes.RATES)}  # the best by these outcomes
    text = (tmp_path / f"mlp-{DATA}.md").read_text(encoding="utf-8")
    assert f"`offramp reproduce mlp --data {DATA} --seeds 3 --epochs 7`" in text


def test_a_studys_own_epochs_and_data_are_taken_unless_told(tmp_path: Path, trainings: Trainings) -> None:
    run_study(study(tmp_path, "conv", None, quick=False, seeds=1), quiet())
    assert {(job["epochs"], job["data"]) for job in trainings.jobs if job["judged"] == "test"} == {(4, "mnist")}


def test_a_stopped_study_goes_on_and_its_record_goes_at_the_end(tmp_path: Path, trainings: Trainings) -> None:
    trainings.fails_at = 17  # within the second part
    with pytest.raises(OfframpError, match="stopped"):
        run_study(study(tmp_path), quiet())
    assert names(tmp_path) == [f"mlp-{DATA}-quick.runs.jsonl"]
    trainings.fails_at = None
    run_study(study(tmp_path), quiet())
    assert (
        len(trainings.jobs) == len({json.dumps(job, sort_keys=True) for job in trainings.jobs}) == 3 * 4 + 11 * 2
    )
    assert not [name for name in names(tmp_path) if name.endswith(".jsonl")]


def test_a_quick_study_takes_few_images_and_leaves_a_full_ones_record_alone(
    tmp_path: Path, trainings: Trainings
) -> None:
    record = tmp_path / f"mlp-{DATA}.runs.jsonl"
    record.write_text('{"job": 1, "outcome": 2}\n')
    run_study(study(tmp_path, epochs=9, seeds=9), quiet())
    assert {(job["limit"], job["epochs"]) for job in trainings.jobs} == {(600, 1)}
    assert {job["seed"] for job in trainings.jobs} == {0, 1}
    assert record.read_text() == '{"job": 1, "outcome": 2}\n'


# --- What cannot be --------------------------------------------------------------------------------------


def test_an_unknown_study_names_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"there is no study 'mpl'; known: {', '.join(STUDIES)}"):
        run_study(study(tmp_path / "new", "mpl"), quiet())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "data", "suited"),
    [
        ("mlp", "cifar10", "mnist-subset, mnist"),
        ("capogrosso", "imagenet", "mnist-subset, mnist"),
        ("cifar", "mnist", "cifar10, not 'mnist'"),
        ("cifar", "mnist-subset", "cifar10"),
        ("conv", "minst", "kmnist"),
    ],
)
def test_a_study_takes_only_images_of_its_kind(name: str, data: str, suited: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the study {name} takes .*{suited}") as caught:
        run_study(study(tmp_path / "new", name, data), quiet())
    assert f"not {data!r}" in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"seeds": -1}, {"epochs": 0}, {"epochs": -3}])
@pytest.mark.parametrize("quick", [True, False])
def test_a_study_needs_a_seed_and_an_epoch(wrong: dict[str, int], quick: bool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one seed and one epoch"):
        run_study(study(tmp_path / "new", quick=quick, **wrong), quiet())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", STUDIES)
def test_no_workers_are_refused_before_anything_is_trained(name: str, tmp_path: Path) -> None:
    data = None if name == "cifar" else DATA
    with pytest.raises(ConfigError, match="workers must be at least 1, not 0"):
        run_study(study(tmp_path, name, data, workers=0), quiet())
    assert names(tmp_path) == []


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_trained(
    out: str, tmp_path: Path, trainings: Trainings
) -> None:
    (tmp_path / "taken").write_text("here")
    with pytest.raises(ConfigError, match=f"cannot write to .*{out}"):
        run_study(study(tmp_path / out), quiet())
    assert trainings.jobs == []
