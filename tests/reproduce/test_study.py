"""A study's trainings: what is kept when one ends badly, and the figures that are made of many."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

import offramp
from offramp.errors import ConfigError, OfframpError
from offramp.reproduce import study
from offramp.reproduce.study import Job, Outcome, origin, run_jobs, write_study

JOBS: list[Job] = [{"n": n, "net": {"widths": [n, 2]}} for n in range(4)]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "a.runs.jsonl"


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def doubling(ran: list[int], fails_at: int | None = None) -> Callable[[Job], Outcome]:
    """A training that notes which jobs it was given."""

    def run(job: Job) -> Outcome:
        if job["n"] == fails_at:
            raise ConfigError("this one cannot be trained")
        ran.append(job["n"])
        return {"twice": 2 * job["n"]}

    return run


DOUBLED = [{"twice": 2 * n} for n in range(4)]


def test_outcomes_come_in_the_order_of_the_jobs_and_are_recorded(record: Path, console: Console) -> None:
    ran: list[int] = []
    assert run_jobs(JOBS, doubling(ran), record=record, workers=1, console=console) == DOUBLED
    assert ran == [0, 1, 2, 3]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert lines == [{"job": job, "outcome": found} for job, found in zip(JOBS, DOUBLED, strict=True)]


def test_what_is_recorded_is_not_run_again(record: Path, console: Console) -> None:
    ran: list[int] = []
    run_jobs(JOBS[1:3], doubling([]), record=record, workers=1, console=console)
    assert "found" not in said(console)
    reordered = [dict(reversed(job.items())) for job in reversed(JOBS)]  # the order of keys says nothing
    assert run_jobs(reordered, doubling(ran), record=record, workers=1, console=console) == DOUBLED[::-1]
    assert ran == [3, 0]
    assert f"2 of 4 trainings found in {record}" in said(console)


def test_a_job_that_is_asked_for_twice_is_run_once(record: Path, console: Console) -> None:
    ran: list[int] = []
    again = [JOBS[1], JOBS[0], JOBS[1]]
    assert run_jobs(again, doubling(ran), record=record, workers=1, console=console) == [
        DOUBLED[n] for n in (1, 0, 1)
    ]
    assert ran == [1, 0]


@pytest.mark.parametrize(
    "torn", ['{"job": {"n": 1, "net": {"wid', '{"job": {"n": 1}}', "null", "[1]", "3", '"text', "\x00", "\ufffd{"]
)
def test_a_torn_last_line_costs_that_training_alone(torn: str, record: Path, console: Console) -> None:
    run_jobs(JOBS[:1], doubling([]), record=record, workers=1, console=console)
    with record.open("a", encoding="utf-8") as file:
        file.write(torn)
    ran: list[int] = []
    assert run_jobs(JOBS, doubling(ran), record=record, workers=1, console=console) == DOUBLED
    assert ran == [1, 2, 3]
    ran.clear()
    assert run_jobs(JOBS, doubling(ran), record=record, workers=1, console=console) == DOUBLED
    assert ran == []  # what was written behind the torn line can be read


def test_bytes_that_are_no_text_are_passed_over(record: Path, console: Console) -> None:
    record.write_bytes(b'{"job": \xff\xfe')
    assert run_jobs(JOBS, doubling([]), record=record, workers=1, console=console) == DOUBLED
    assert run_jobs(JOBS, doubling([], fails_at=0), record=record, workers=1, console=console) == DOUBLED


def test_a_training_that_fails_keeps_those_before_it(record: Path, console: Console) -> None:
    with pytest.raises(ConfigError, match="this one cannot be trained"):
        run_jobs(JOBS, doubling([], fails_at=2), record=record, workers=1, console=console)
    ran: list[int] = []
    assert run_jobs(JOBS, doubling(ran), record=record, workers=1, console=console) == DOUBLED
    assert ran == [2, 3]


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(workers: int, record: Path, console: Console) -> None:
    with pytest.raises(ConfigError, match=f"workers must be at least 1, not {workers}"):
        run_jobs(JOBS, doubling([]), record=record, workers=workers, console=console)
    assert not record.exists()


def test_a_record_that_cannot_be_written_or_read_loses_no_training(tmp_path: Path, console: Console) -> None:
    ran: list[int] = []
    with pytest.raises(ConfigError, match=r"cannot write to .*missing.*No such file"):
        run_jobs(JOBS, doubling(ran), record=tmp_path / "missing" / "runs", workers=1, console=console)
    with pytest.raises(ConfigError, match=r"cannot read .*directory"):
        run_jobs(JOBS, doubling(ran), record=tmp_path, workers=1, console=console)
    assert ran == []


def test_one_worker_trains_with_one_thread_and_gives_the_others_back(record: Path, console: Console) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = run_jobs(JOBS[:1], where, record=record, workers=5, console=console)  # one job needs no pool
        assert found == [{"n": 0, "threads": 1, "process": os.getpid()}]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- Several processes -----------------------------------------------------------------------------------


def where(job: Job) -> Outcome:
    return {"n": job["n"], "threads": torch.get_num_threads(), "process": os.getpid()}


def ends_when_told(job: Job) -> Outcome:
    """A training whose process is ended, once the file that the job names says so."""
    if "told" in job:
        Path(job["told"]).read_text()  # waits for a writer
        os._exit(1)
    return dict(job)


def test_processes_have_one_thread_each_and_ctrl_c_is_the_parents(record: Path, console: Console) -> None:
    handler = signal.getsignal(signal.SIGINT)
    found = run_jobs(JOBS[:3], where, record=record, workers=2, console=console)
    assert [(o["n"], o["threads"]) for o in found] == [(0, 1), (1, 1), (2, 1)]
    assert os.getpid() not in {o["process"] for o in found}
    assert len(record.read_text().splitlines()) == 3
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_process_that_is_ended_loses_only_what_it_trained(
    record: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = record.with_name("told")
    os.mkfifo(told)

    class Telling(Progress):
        def advance(self, *arguments: Any) -> None:  # called once an outcome is recorded
            super().advance(*arguments)
            told.write_text("end")

    monkeypatch.setattr(study, "Progress", Telling)
    jobs = [{"told": str(told)}, {"n": 1}]
    with pytest.raises(OfframpError, match=r"process was ended.*fewer workers.*kept") as caught:
        run_jobs(jobs, ends_when_told, record=record, workers=2, console=console)
    assert isinstance(caught.value.__cause__, BrokenProcessPool)
    assert [json.loads(line) for line in record.read_text().splitlines()] == [
        {"job": {"n": 1}, "outcome": {"n": 1}}
    ]
    assert run_jobs(jobs[1:], ends_when_told, record=record, workers=2, console=console) == [{"n": 1}]


def test_what_is_finished_when_a_process_ends_is_recorded_first(
    record: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pool:
        """Every training but one is done when the parent looks, and that one's process is gone."""

        _processes = None

        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

        def submit(self, run: Callable[[Job], Outcome], job: Job) -> Future[Outcome]:
            future: Future[Outcome] = Future()
            if job["n"] == 0:
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result(run(job))
            return future

        def shutdown(self, **options: Any) -> None:
            pass

    monkeypatch.setattr(study, "ProcessPoolExecutor", Pool)
    with pytest.raises(OfframpError, match="process was ended"):
        run_jobs([{"n": n} for n in range(20)], dict, record=record, workers=2, console=console)
    assert sorted(json.loads(line)["outcome"]["n"] for line in record.read_text().splitlines()) == [*range(1, 20)]


# --- What is written ---------------------------------------------------------------


def test_figures_say_where_they_come_from() -> None:
    facts = json.loads(json.dumps(origin("offramp reproduce mlp")))
    assert facts["command"] == "offramp reproduce mlp"
    assert facts["cores"] >= 1
    assert facts["created"].endswith("+00:00")
    assert set(facts["versions"]) == {"offramp", "torch", "numpy"}
    assert facts["versions"]["offramp"] == offramp.__version__


def test_a_study_is_written_as_text_figures_and_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    written = write_study(folder, "a", text="# α\n", pictures={"a-b": "<svg/>"}, figures={"x": [1, 2]})
    assert [path.name for path in written] == ["a.md", "a.json", "a-b.svg"]
    assert sorted(folder.iterdir()) == sorted(written)
    assert (folder / "a.md").read_text(encoding="utf-8") == "# α\n"
    assert json.loads((folder / "a.json").read_text()) == {"x": [1, 2]}
    assert (folder / "a-b.svg").read_text() == "<svg/>"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("here")
    with pytest.raises(ConfigError, match=r"cannot write to .*taken"):
        write_study(tmp_path / "taken", "a", text="", pictures={}, figures={})
    assert (tmp_path / "taken").read_text() == "here"
