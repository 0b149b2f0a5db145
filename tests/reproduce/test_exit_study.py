"""A whole study of exits on a small network with random weights: what it writes, keeps, and goes on from."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import offramp as off
from offramp.datasets import ImageData
from offramp.datasets.distortion import Distortion
from offramp.errors import ConfigError, DatasetError, OfframpError
from offramp.exits.calibration import calibrate_logits
from offramp.exits.confidence import calibration_error, softmax
from offramp.exits.evaluation import Evaluation
from offramp.exits.heads import ConvHead, PooledHead
from offramp.recipes import Splits
from offramp.replay.record import own_thresholds, record
from offramp.replay.trace import Trace
from offramp.reproduce import distant, exit_study, trainings
from offramp.reproduce.exit_study import ExitSettings, study_mobilenetv2, study_resnet56, study_subject
from offramp.reproduce.findings import cascade_on, findings
from offramp.reproduce.resnet import CifarResNet
from offramp.reproduce.subjects import Subject, resnet56_subject
from offramp.reproduce.traces import DISTORTIONS, trace_all, trace_held_out
from offramp.runtime.evaluation import exit_logits
from offramp.runtime.labelled import Labelled, held_out_data
from offramp.serving.link import LinkSettings

COMMAND = "offramp reproduce tiny --quick"


def pictures(n: int, seed: int) -> ImageData:
    """Three classes: which channel is bright."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = draw.integers(0, 120, (n, 32, 32, 3))
    images[np.arange(n), :, :, labels] += 100
    return ImageData(images.astype(np.uint8), labels.astype(np.int64), ("red", "green", "blue"))


def splits() -> Splits:
    parts = pictures(250, 0), pictures(120, 1), pictures(110, 2)
    return Splits(*parts, "pictures", 5, resnet56_subject().preprocessing)


def backbone() -> nn.Module:
    torch.manual_seed(3)
    return CifarResNet(8, classes=3).eval()


def features() -> nn.Module:
    torch.manual_seed(3)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    return nn.Sequential(first, nn.Conv2d(8, 12, 3, 2, 1), nn.AvgPool2d(8), nn.Flatten()).eval()


HEADS = {"layer1.0": ConvHead, "layer2.0": ConvHead}
TINY = replace(resnet56_subject(), name="tiny", title="Tiny", backbone=backbone, heads=HEADS)
#: Its last exit is learnt too.
MOVED = replace(
    TINY,
    name="moved",
    backbone=features,
    heads={"0": lambda classes: PooledHead(classes, norm=True)},
    classifier_features=12,
    exit_weights=(1.0, 0.5),
    lr=3e-2,
    backbone_lr=3e-2,
)


@dataclass
class Done:
    """What a study left: its settings, tables, files, and what it said on the way."""

    settings: ExitSettings
    tables: list[str]
    written: list[Path]
    said: str


def studied(subject: Subject, folder: Path, **other: Any) -> Done:
    settings = ExitSettings(
        out=folder / "out", work=folder / "work", quick=True, link=LinkSettings(0, 0.001), slowdown=1.0, **other
    )
    said = io.StringIO()
    console = Console(file=said, width=200)
    return Done(settings, *study_subject(subject, splits(), settings, COMMAND, console), said.getvalue())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return studied(TINY, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def bundle(done: Done) -> off.Bundle:
    return off.Bundle.load(done.settings.work / "tiny-pictures-quick" / "tiny-pictures-quick.bundle")


def some(n: int = 60) -> Labelled:
    test = splits().test
    return Labelled(test.images[:n], test.labels[:n], "some")


def test_a_study_writes_tables_picture_figures_and_traces(done: Done) -> None:
    stem = "tiny-pictures-quick"
    assert [p.name for p in done.written] == [f"{stem}.md", f"{stem}.json", f"{stem}-exits.svg"]
    text = done.written[0].read_text(encoding="utf-8")
    assert f"`{COMMAND}`" in text
    assert f"![exits and cuts]({stem}-exits.svg)" in text
    heads = "Exits", "Cascades", f"{stem}: how each cut", "Edge and server", "Exits on distorted"
    for table, head in zip(done.tables, heads, strict=True):
        assert table.startswith(head)
        assert table in text
    assert "separate %" in done.tables[0]
    assert "distilled %" in done.tables[0]
    figures = json.loads(done.written[1].read_text(encoding="utf-8"))
    assert [way["way"] for way in figures["ways"]] == ["distilled", "separate"]
    # A frozen backbone's own output is the same in both.
    assert figures["ways"][0]["accuracy"][-1] == figures["ways"][1]["accuracy"][-1]
    assert figures["macs"] == sorted(figures["macs"])
    assert {row["name"] for row in figures["distant"]["rows"]} >= {"edge only", "server only", "I-SplitEE"}
    assert figures["distant"]["furthest"] <= 1e-5
    assert all(row["degraded_share"] == 0 for row in figures["distant"]["rows"])
    ET.fromstring(done.written[2].read_text(encoding="utf-8"))
    traces = sorted(p.name for p in (done.settings.out / "traces").iterdir())
    distorted = [f"{stem}-gaussian_blur-1.npz", f"{stem}-gaussian_noise-0.1.npz"]
    assert traces == [*distorted, f"{stem}-held-out.npz", f"{stem}.npz"]
    assert list(figures["traces"]) == ["none", "gaussian_noise:0.1", "gaussian_blur:1"]


def test_the_trace_says_what_training_measured(done: Done, bundle: off.Bundle) -> None:
    """torch and the exported stages agree on every exit's accuracy."""
    figures = json.loads(done.written[1].read_text(encoding="utf-8"))
    plain = Trace.load(done.settings.out / "traces" / "tiny-pictures-quick.npz")
    assert plain.accuracy == pytest.approx(figures["ways"][-1]["accuracy"], abs=0.011)  # one image of 100
    assert plain.meta.digest == figures["digest"] == bundle.digest
    noisy = Trace.load(done.settings.out / "traces" / "tiny-pictures-quick-gaussian_noise-0.1.npz")
    assert noisy.meta.stage_ms == plain.meta.stage_ms  # timed once, where nothing ran beside it
    assert (noisy.confidence != plain.confidence).any()


def test_the_bundle_says_what_was_held_out(done: Done, bundle: off.Bundle) -> None:
    record = bundle.manifest.provenance.metrics
    assert record["held_out"] == {"seed": 5, "sizes": [200, 100, 100]}
    assert record["training"] == "separate"
    assert bundle.manifest.preprocessing == TINY.preprocessing
    assert bundle.manifest.classes == ("red", "green", "blue")


def test_a_study_that_is_done_trains_and_traces_nothing_again(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr("offramp.reproduce.traces.record", lambda *a, **k: pytest.fail("traced again"))
    monkeypatch.setattr(exit_study, "at_a_distance", lambda *a: pytest.fail("went on"))
    again = Console(file=io.StringIO(), width=200)
    with pytest.raises(pytest.fail.Exception, match="went on"):
        study_subject(TINY, splits(), done.settings, COMMAND, again)
    other = replace(done.settings, epochs=2)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        study_subject(TINY, splits(), other, COMMAND, again)
    name = "tiny-pictures-quick"
    kept = trace_all(
        off.Bundle.load(done.settings.work / name / f"{name}.bundle"),
        Labelled(splits().test.images[:100], splits().test.labels[:100], "100 test images of pictures"),
        DISTORTIONS[::6],
        done.settings.out / "traces",
        name,
        workers=1,
        console=again,
    )
    assert list(kept) == ["", "gaussian_noise:0.1", "gaussian_blur:1"]
    assert kept[""].meta.thresholds == own_thresholds(
        off.Bundle.load(done.settings.work / name / f"{name}.bundle")
    )


def test_traces_of_other_thresholds_are_made_again(bundle: off.Bundle, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())

    def traced(tuned: off.Bundle) -> Trace:
        return trace_all(tuned, some(), DISTORTIONS[:1], tmp_path, "t", workers=1, console=console)[""]

    first = traced(bundle)
    closed = tuple(None if t is None else 0.25 for t in bundle.tuning.thresholds)
    tuning = bundle.tuning.model_copy(update={"thresholds": closed})
    other = traced(off.Bundle(bundle.path, bundle.manifest, tuning, bundle.held))
    assert first.meta.thresholds != other.meta.thresholds
    assert set(other.meta.thresholds[:-1]) == {0.25}


def test_held_out_images_are_traced_under_the_distortions_in_turn(bundle: off.Bundle, tmp_path: Path) -> None:
    levels = [None, Distortion("gaussian_noise", 0.5)]
    data = some(11)
    found = trace_held_out(bundle, data, levels, tmp_path / "h.npz")
    stages = off.Stages(bundle)
    assert (found.label == data.labels).all()
    for i, distortion in enumerate(levels):
        part = Labelled(np.asarray(data.inputs)[i::2], data.labels[i::2], data.what)
        alone = record(stages, part, distortion=distortion)
        np.testing.assert_array_equal(found.prediction[i::2], alone.prediction)
        np.testing.assert_allclose(found.confidence[i::2], alone.confidence)  # type: ignore[index,arg-type]
    assert found.meta.distortion == "in turn none, gaussian_noise:0.5"
    assert len(Trace.load(tmp_path / "h.npz")) == 11


@pytest.mark.parametrize("joint", [False, True])
def test_a_network_moved_to_new_classes(joint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classifier is learnt; jointly, its backbone too."""
    before = features().state_dict()
    seen: list[off.MultiExit] = []
    train = trainings.train_ways

    def watched(*arguments: Any) -> Any:
        nets = train(*arguments)
        seen.extend(nets.values())
        return nets

    def nothing(*_: Any) -> Any:
        raise OfframpError("far enough")

    monkeypatch.setattr(exit_study, "train_ways", watched)
    monkeypatch.setattr(exit_study, "at_a_distance", nothing)
    with pytest.raises(OfframpError, match="far enough"):
        studied(MOVED, tmp_path, joint=joint, epochs=25)
    assert len(seen) == (1 if joint else 2)
    after = seen[0].model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()) != joint
    name = "moved-pictures-joint-quick" if joint else "moved-pictures-quick"
    work = tmp_path / "work" / name
    made = off.Bundle.load(work / f"{name}.bundle")
    logits = exit_logits(off.Stages(made), some().inputs)
    assert [float((z.argmax(1) == some().labels).mean()) for z in logits] == pytest.approx([1, 1], abs=0.1)
    kept = [p.name for p in work.iterdir() if p.suffix == ".pt"]
    assert sorted(kept) == (["moved-joint.pt"] if joint else ["moved-distilled.pt", "moved-separate.pt"])
    assert not list(work.glob("*checkpoints*"))
    again = list(trainings.train_ways(MOVED, *_again(tmp_path, joint, name)).values())[-1]
    x = torch.ones(1, 3, 32, 32)
    torch.testing.assert_close(again(x)[-1], seen[-1](x)[-1])


def _again(tmp_path: Path, joint: bool, name: str) -> tuple[Splits, trainings.Plan, Console]:
    s = splits()
    train, held_out, test = s.train.take(slice(200)), s.held_out.take(slice(100)), s.test.take(slice(100))
    few = replace(s, train=train, held_out=held_out, test=test)
    plan = trainings.Plan(25, 0, joint, tmp_path / "work" / name)
    return few, plan, Console(file=io.StringIO())


@pytest.mark.parametrize("content", [b"", b"not torch", None])
def test_what_was_kept_and_is_torn_is_trained_again(content: bytes | None, tmp_path: Path) -> None:
    few, plan, console = _again(tmp_path, False, "torn")
    plan = replace(plan, epochs=1)
    first = trainings.train_ways(MOVED, few, plan, console)
    path = plan.folder / "moved-separate.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[:500] if content is None else content)
    again = trainings.train_ways(MOVED, few, plan, console)
    for a, b in zip(first["separate"].exit_parameters(), again["separate"].exit_parameters(), strict=True):
        assert torch.equal(a, b)


# --- Measured -----------------------------------------------------------------------------------------------


def test_a_cascade_by_hand(bundle: off.Bundle) -> None:
    """Four samples, three exits; the gates' threshold is .8."""
    right, sure, unsure = [0, 0, 5], [9, 0, 0], [0.1, 0, 0.2]
    logits = [np.array(z, np.float32) for z in ([sure, unsure, unsure, unsure], [right] * 4, [right] * 4)]
    labels = np.array([0, 2, 2, 1])
    tuned = replace(
        calibrate_logits([np.tile(z, (5, 1)) for z in logits], np.tile(labels, 5), delta=None),
        thresholds=(0.8, 0.8),
        temperatures=(1.0, 1.0, 1.0),
    )
    found = cascade_on(Evaluation(tuple(logits), labels, ()), tuned, bundle.manifest)
    assert found.exit_share == (0.25, 0.75, 0)
    assert found.accuracy == 0.75  # exit 0 is right about the first, exit 1 about the second and third
    assert found.drop == -0.25
    macs = [stage.graph.macs for stage in bundle.manifest.stages]
    heads = [e.graph.macs for e in bundle.manifest.exits if e is not None and e.graph is not None]
    spent = 0.25 * (macs[0] + heads[0]) + 0.75 * (macs[0] + macs[1] + sum(heads))
    assert found.macs_saved == pytest.approx(1 - spent / sum(macs))


def test_temperatures_and_thresholds_come_from_held_out_images_alone(bundle: off.Bundle) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 400)
    logits = [(k * np.eye(3)[labels] + draw.normal(size=(400, 3))).astype(np.float32) for k in (1, 2, 4)]
    parts = [Evaluation(tuple(z[at] for z in logits), labels[at], ()) for at in (slice(200), slice(200, None))]
    found = findings("w", parts[0], parts[1], bundle.manifest, (0.03, 0.1), 0.1)
    assert found.accuracy == parts[1].accuracy
    for cascade, max_drop in zip(found.cascades, (0.03, 0.1), strict=True):
        tuned = calibrate_logits(parts[0].logits, parts[0].labels, max_drop=max_drop, delta=0.1)
        assert cascade == cascade_on(parts[1], tuned, bundle.manifest)
        assert found.temperatures == tuned.temperatures
    assert found.cascades[0].macs_saved < found.cascades[1].macs_saved
    plain = [calibration_error(softmax(z), parts[1].labels) for z in parts[1].logits]
    assert found.ece_before == pytest.approx(plain)
    assert found.ece_after != found.ece_before


def test_an_answer_that_differs_is_no_evidence(bundle: off.Bundle) -> None:
    with off.Edge(bundle, off.Tail(off.Stages(bundle)), off.FixedSplit(0, gated=False)) as edge:
        results = list(edge.run(some(5).inputs))
    assert distant._furthest(bundle, some(5), "p", results) <= 1e-5
    wrong = replace(results[3], probabilities=(0.5, 0.25, 0.25))
    with pytest.raises(OfframpError, match=r"p: an answer differs by .* from the one computed here"):
        distant._furthest(bundle, some(5), "p", [*results[:3], wrong, results[4]])
    late = replace(results[1], status="degraded", error="no server")
    with pytest.raises(OfframpError, match="p: input 1 is degraded: no server"):
        distant._furthest(bundle, some(5), "p", [results[0], late, *results[2:]])


def test_the_cascades_edge_computes_two_thirds_at_most(bundle: off.Bundle) -> None:
    macs = np.cumsum([s.graph.macs for s in bundle.manifest.stages])
    split = distant.deepest_split(bundle)
    assert split == max([k for k in range(bundle.manifest.last) if macs[k] <= 2 / 3 * macs[-1]], default=0)


def test_a_failed_trace_stops_the_others(bundle: off.Bundle, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    broken = Labelled(np.zeros((4, 31, 31, 3), np.uint8), np.zeros(4, np.int64), "of another size")
    with pytest.raises(OfframpError, match="expected rgb pixels"):
        trace_all(bundle, broken, DISTORTIONS[:3], tmp_path, "t", workers=2, console=console)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        trace_all(bundle, some(), DISTORTIONS[:1], tmp_path / "file" / "x", "t", workers=1, console=console)


# --- What cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "at least one epoch"),
        ({"images": 0}, "one image"),
        ({"seed": -1}, "seed of 0 or more"),
        ({"slowdown": 0.5}, "--edge-slowdown must be at least 1"),
        ({"slowdown": float("nan")}, "--edge-slowdown must be at least 1"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExitSettings(**wrong)


def test_folders_that_are_files(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for key in ("out", "work"):
        with pytest.raises(ConfigError, match="taken is a file; give a directory"):
            ExitSettings(**{key: tmp_path / "taken"})


def test_studies_without_their_weights_say_so_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
    monkeypatch.setattr(exit_study, "load_splits", lambda *a, **k: pytest.fail("read images"))
    console = Console(file=io.StringIO())
    settings = ExitSettings(out=tmp_path, work=tmp_path)
    with pytest.raises(DatasetError, match=r"resnet56-4bfd9763.th are not at hand"):
        study_resnet56(settings, console)
    with pytest.raises(DatasetError, match=r"int8.npz are not at hand"):
        study_mobilenetv2(settings, "cifar10", 96, console)
    with pytest.raises(ConfigError, match="--side must be at least 32 pixels, not 16"):
        study_mobilenetv2(settings, "cifar10", 16, console)
    with pytest.raises(ConfigError, match=r"takes cifar10, or a folder .* not mnist"):
        study_mobilenetv2(settings, "mnist", 96, console)


def test_held_out_images_are_found_again(bundle: off.Bundle) -> None:
    """The record is the one that `offramp tune` reads; these pictures have no name that it knows."""
    with pytest.raises(ConfigError, match="is no data set"):
        held_out_data("pictures", bundle.manifest)


def test_mirrored_images_are_learnt_from_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    class Kept(trainings.CachedFeatures):
        def __init__(self, net: off.MultiExit, loader: Any, how: Any, progress: str | None = None) -> None:
            batches = list(loader)
            assert len(loader) == len(batches)
            seen[str(len(batches))] = batches
            super().__init__(net, batches, how, progress)

    monkeypatch.setattr(trainings, "CachedFeatures", Kept)
    data, console = splits(), Console(file=io.StringIO())
    for mirrored in (False, True):
        subject = replace(TINY, mirrored=mirrored, name=f"tiny-{mirrored}")
        trainings.train_ways(subject, data, trainings.Plan(1, 0, False, tmp_path), console)
    plain, both = seen.values()
    assert len(both) == 2 * len(plain)
    for i, (x, y) in enumerate(plain):
        for found, expected in zip((*both[2 * i], *both[2 * i + 1]), (x, y, x.flip(3), y), strict=True):
            assert torch.equal(found, expected)
