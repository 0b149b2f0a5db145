"""int8 stages of the digits' bundle: what changes, what stays, and that edge and server agree on it."""

import json
import shutil

import numpy as np
import pytest

import offramp as off
from offramp.bundle.bundle import Bundle
from offramp.errors import BundleError, ConfigError, ExportError, InputError
from offramp.policy.cascade import ThresholdCascade
from offramp.runtime import quantization
from offramp.runtime.comparison import Comparison, ExitChange, StageChange, compare
from offramp.runtime.evaluation import exit_logits
from offramp.runtime.quantization import quantize_stages
from offramp.runtime.stages import Stages


@pytest.fixture(scope="module")
def before(digits_bundle):
    return Bundle.load(digits_bundle)


@pytest.fixture(scope="module")
def data(digits, digit_images):
    """Training digits that the network has not seen to calibrate on, and test digits to measure by."""
    return {"calibration": digits[0].images[5000:5150], "inputs": digit_images[0], "labels": digit_images[1]}


@pytest.fixture(scope="module")
def few(data):
    return {"calibration": data["calibration"][:20], "inputs": data["inputs"][:20], "labels": data["labels"][:20]}


@pytest.fixture(scope="module")
def found(before, data, tmp_path_factory):
    told = []
    path = tmp_path_factory.mktemp("int8") / "int8.bundle"
    result = quantize_stages(before, path, **data, data="digits", on_batch=told.append)
    assert sum(told) == 3 * 150 + 2 * 2000
    return result


def test_stages_shrink_and_nothing_else_changes(before, found):
    after = found.bundle
    assert found.stages == (0, 1, 2)
    assert found.kept == ()
    assert after.digest != before.digest
    assert after.tuning == before.tuning
    for i, (old, new) in enumerate(zip(before.manifest.stages, after.manifest.stages, strict=True)):
        assert new.graph.sha256 != old.graph.sha256
        assert new.graph.bytes < 0.6 * old.graph.bytes
        same = {"sha256": old.graph.sha256, "bytes": old.graph.bytes}
        assert new.model_copy(update={"graph": new.graph.model_copy(update=same)}) == old
        assert found.comparison.stages[i].bytes_after == len(after.read(new.graph))
    kept = after.manifest.model_copy(
        update={"stages": before.manifest.stages, "provenance": before.manifest.provenance}
    )
    assert kept == before.manifest
    for graph in (*(e.graph for e in after.manifest.exits[:-1]), *(c.encoder for c in after.manifest.codecs)):
        assert after.read(graph) == before.read(graph)


def test_no_exit_loses_a_point_and_what_is_reported_is_so(before, found, data):
    """The oracle reckons from the written bundle; measured were 3 answers of 2,000 at most, 20 are allowed."""
    compared = found.comparison
    assert compared.samples == 2000
    logits = [exit_logits(Stages(b), data["inputs"]) for b in (before, found.bundle)]
    for exit_change, old, new in zip(compared.exits, *logits, strict=True):
        first, second = old.argmax(axis=1), new.argmax(axis=1)
        assert exit_change.accuracy_before == np.mean(first == data["labels"]) > 0.4
        assert exit_change.accuracy_after == np.mean(second == data["labels"])
        assert exit_change.changed == np.sum(first != second)
        assert abs(exit_change.accuracy_after - exit_change.accuracy_before) <= 0.01
    assert 0 < sum(e.changed for e in compared.exits) < 150
    assert [e.exit for e in compared.exits] == [0, 1, 2]
    assert all(s.ms_before > 0 and s.ms_after > 0 for s in compared.stages)


def test_the_reported_cascade_is_the_live_one(before, found, data):
    part = {name: data[name][:300] for name in ("inputs", "labels")}
    compared = compare(Stages(before), Stages(found.bundle), **part, runs=1)
    for bundle, accuracy, early in (
        (before, compared.cascade_before, compared.early_before),
        (found.bundle, compared.cascade_after, compared.early_after),
    ):
        with off.Edge(bundle, policy=ThresholdCascade()) as edge:
            results = list(edge.run(part["inputs"]))
        assert np.mean([r.label == y for r, y in zip(results, part["labels"], strict=True)]) == accuracy
        assert np.mean([r.exit < 2 for r in results]) == pytest.approx(early)
    assert 0 < compared.early_before < 1


def test_every_stage_is_calibrated_on_what_it_will_see(before, found, data, few, tmp_path):
    """Stage by stage gives the same graphs as all at once, since each saw what the int8 ones before it give."""
    small = {**few, "calibration": data["calibration"]}
    bundle = before
    for i in range(3):
        bundle = quantize_stages(bundle, tmp_path / f"{i}.bundle", **small, stages=[i]).bundle
        untouched = [s.graph.sha256 for s in bundle.manifest.stages[i + 1 :]]
        assert untouched == [s.graph.sha256 for s in before.manifest.stages[i + 1 :]]
    assert bundle.digest == found.bundle.digest
    alone = quantize_stages(before, tmp_path / "alone.bundle", **small, stages=[2]).bundle
    assert alone.manifest.stages[2].graph.sha256 != bundle.manifest.stages[2].graph.sha256
    records = bundle.manifest.provenance.metrics["int8"]
    assert [record["stages"] for record in records] == [[0], [1], [2]]


def test_the_manifest_says_what_was_measured(before, found):
    metrics = found.bundle.manifest.provenance.metrics
    (record,) = metrics["int8"]
    assert record["stages"] == [0, 1, 2]
    assert record["calibration_samples"] == 150
    assert record["data"] == "digits"
    assert record["measured"] == json.loads(json.dumps(found.comparison.to_dict()))
    rest = {name: value for name, value in metrics.items() if name != "int8"}
    assert rest == before.manifest.provenance.metrics


def test_edge_and_server_agree_on_the_new_bundle_only(before, found, data, tmp_path):
    edge_copy = found.bundle.edge_copy(tmp_path / "edge.bundle", 1)
    assert edge_copy.digest == found.bundle.digest
    inputs = data["inputs"][:12]
    local = exit_logits(Stages(found.bundle), inputs)[-1].argmax(axis=1)
    with off.GrpcServer(off.Tail(off.Stages(found.bundle)), port=0) as server:
        address = f"127.0.0.1:{server.port}"
        with off.Edge(edge_copy, address, off.FixedSplit(0), deadline_ms=30_000) as edge:
            results = list(edge.run(inputs))
        assert {(r.status, r.where) for r in results} <= {("ok", "server"), ("ok", "edge")}
        sent = [r for r in results if r.where == "server"]
        assert sent
        assert np.mean([r.label == local[r.index] for r in sent]) > 0.8  # `uint8` on the way
        with pytest.raises(off.OfframpError, match="digest"), off.Edge(before, address, off.ServerOnly()) as edge:
            list(edge.run(inputs[:1]))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"stages": [3]}, ConfigError, "has stages 0 to 2; chosen: 3"),
        ({"stages": [-1, 0]}, ConfigError, "has stages 0 to 2; chosen: -1, 0"),
        ({"stages": []}, ConfigError, "chosen: none"),
        ({"calibration": np.zeros((0, 28, 28), np.uint8)}, ConfigError, "no samples to calibrate on"),
        ({"calibration": np.zeros((3, 1, 28, 27), np.float32)}, InputError, "expected float32 of shape"),
        ({"calibration": np.full((3, 1, 28, 28), np.nan, np.float32)}, InputError, "NaN"),
        (
            {"inputs": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, np.int64)},
            ConfigError,
            "got 0 inputs",
        ),
        ({"labels": np.zeros(3, np.int64)}, ConfigError, r"got 20 inputs and labels of shape \(3,\)"),
        ({"labels": np.full(20, 10)}, InputError, "labels from 10 to 10 do not go with 10 classes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(before, few, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        quantize_stages(before, tmp_path / "new.bundle", **{**few, **change})
    assert list(tmp_path.iterdir()) == []


def test_int8_stages_are_not_quantised_again(found, few, before, tmp_path):
    with pytest.raises(ConfigError, match=r"is int8 already in stages 0, 1, 2$"):
        quantize_stages(found.bundle, tmp_path / "new.bundle", **few)
    half = quantize_stages(before, tmp_path / "half.bundle", **few, stages=[0]).bundle
    with pytest.raises(ConfigError, match="already in stage 0; choose among stages 1, 2"):
        quantize_stages(half, tmp_path / "new.bundle", **few)


def test_places_that_cannot_be(before, few, tmp_path):
    with pytest.raises(ConfigError, match="is the bundle itself"):
        quantize_stages(before, before.path, **few)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    for place in ("notes", "notes/mine.txt"):
        with pytest.raises(BundleError, match="exists and is no bundle"):
            quantize_stages(before, tmp_path / place, **few)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_an_edge_copy_is_refused(before, few, tmp_path):
    copy = before.edge_copy(tmp_path / "edge.bundle", 2)
    with pytest.raises(ConfigError, match="is an edge copy; quantise the whole bundle"):
        quantize_stages(copy, tmp_path / "new.bundle", **few)


def test_a_bundle_without_weights_is_left_alone(tiny, tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    given = {"calibration": x, "inputs": x, "labels": np.zeros(8, np.int64)}
    with pytest.raises(ConfigError, match="no weights that can be quantised in stages 0, 1, 2, 3; nothing is"):
        quantize_stages(tiny, tmp_path / "new.bundle", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_without_weights_stays_float(before, few, tmp_path, monkeypatch):
    real = quantization.int8_graph
    calls = []

    def none_in_stage_1(model, feeds):
        calls.append(model)
        return None if len(calls) == 2 else real(model, feeds)

    monkeypatch.setattr(quantization, "int8_graph", none_in_stage_1)
    found = quantize_stages(before, tmp_path / "new.bundle", **few)
    assert (found.stages, found.kept) == ((0, 2), (1,))
    assert found.bundle.manifest.stages[1] == before.manifest.stages[1]
    assert found.bundle.manifest.provenance.metrics["int8"][0]["stages"] == [0, 2]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ExportError("an operator that is not known")])
def test_whatever_stops_it_nothing_is_lost(before, found, few, tmp_path, monkeypatch, stop):
    place = tmp_path / "older.bundle"
    shutil.copytree(found.bundle.path, place)
    files = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    real, calls = quantization.int8_graph, []

    def stopped(model, feeds):
        calls.append(model)
        if len(calls) == 2:
            raise stop
        return real(model, feeds)

    monkeypatch.setattr(quantization, "int8_graph", stopped)
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        quantize_stages(before, place, **few)
    if not isinstance(caught.value, KeyboardInterrupt):
        assert isinstance(caught.value, ExportError)
        assert "stage 1 of" in str(caught.value)
        assert "leave it out with --stages" in str(caught.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


# --- the report -----------------------------------------------------------------------------------------


def test_notes_name_what_became_worse_and_the_next_step():
    from offramp.report.quantization import quantization_facts, quantization_notes, quantization_text

    stages = (
        StageChange(0, 100, 40, 1.0, 0.5),
        StageChange(1, 100, 120, 1.0, 2.0),
        StageChange(2, 9, 9, 1.0, 2.0),
    )
    exits = (ExitChange(0, 0.9, 0.885, 7), ExitChange(2, 0.95, 0.95, 0))
    compared = Comparison(1000, stages, exits, 0.94, 0.93, 0.5, 0.25)
    notes = "\n".join(quantization_notes(compared, (0, 1), (2,)))
    for words in ("stage 2 stays float", "stage 1 became larger", "stage 1 became 2.00x slower", "offramp tune"):
        assert words in notes
    assert "stage 0" not in notes
    assert "stage 2 became" not in notes  # it is the same file; only the clock says otherwise
    text = quantization_text(compared, (0, 1), "on what")
    for cell in ("2.50x", "as before", "-1.50", "at the thresholds", "25.00%", "on what", "209 B", "169 B"):
        assert cell in text
    facts = quantization_facts(compared, (0, 1), (2,))
    assert facts["exits"][0] == {"exit": 0, "accuracy_before": 0.9, "accuracy_after": 0.885, "changed": 7}
    one = Comparison(1000, stages, exits[-1:], 0.95, 0.95, 0.0, 0.0)
    assert "tune" not in "".join(quantization_notes(one, (0,), ()))
    assert "thresholds" not in quantization_text(one, (0,), "")
