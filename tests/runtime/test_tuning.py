"""Tuning a bundle by its own stages; the tiny bundle's exits say what the inputs tell them to."""

import numpy as np
import pytest

from offramp.bundle.bundle import Bundle
from offramp.bundle.manifest import Preprocessing
from offramp.errors import ConfigError, InputError
from offramp.exits.confidence import CONFIDENCES
from offramp.policy.cascade import ThresholdCascade
from offramp.runtime.edge import Edge
from offramp.runtime.evaluation import exit_logits
from offramp.runtime.stages import Stages
from offramp.runtime.tuning import macs_per_answer, macs_saved, tune


def cases(n, seed=0):
    """Inputs (n, 8) and labels: the logits of exit e are right with a probability that grows with them and e."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    sure = rng.exponential(2.0, (n, 4)).astype(np.float32)
    right = rng.random((n, 4)) < 1 - 0.5 * np.exp(-1.5 * sure * (1 + np.arange(4)))
    column = np.where(right, labels[:, None], 1 - labels[:, None])
    inputs = np.zeros((n, 4, 2), np.float32)
    np.put_along_axis(inputs, column[:, :, None], sure[:, :, None], axis=2)
    return inputs.reshape(n, 8), labels


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_logits_of_every_exit(tiny, batch):
    inputs, _ = cases(30)
    told = []
    found = exit_logits(Stages(tiny), inputs, batch=batch, on_batch=told.append)
    for e, logits in zip((0, 2, 3), found, strict=True):
        np.testing.assert_array_equal(logits, inputs[:, 2 * e : 2 * e + 2])
    assert sum(told) == 30
    assert max(told) <= batch
    assert [z.shape for z in exit_logits(Stages(tiny), inputs[:0])] == [(0, 2)] * 3


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_the_edge_does_with_the_new_tuning_what_was_measured(make_bundle, tmp_path, confidence):
    """Loss, shares and accuracy of the cascade, measured in batches, are those of the live loop."""
    bundle = make_bundle(tmp_path / "tiny.bundle")
    inputs, labels = cases(400)
    found = tune(Stages(bundle), inputs, labels, max_drop=0.05, delta=None, confidence=confidence)
    assert found.exits == (0, 2, 3)
    assert found.tuning.confidence == confidence
    threshold = found.calibration.thresholds[0]
    assert found.tuning.thresholds == (threshold, None, threshold, None)
    assert found.tuning.temperatures[1] == 1.0  # a cut without an exit keeps what it had
    again = bundle.retuned(found.tuning)
    with Edge(again, policy=ThresholdCascade(exits=(0, 2))) as edge:
        action = edge.policy.choose(edge.context)
        assert set(action.exits) == {0, 2}
        results = list(edge.run(inputs))
    answered = [r.exit for r in results]
    assert [answered.count(e) / 400 for e in (0, 2, 3)] == pytest.approx(found.calibration.exit_share)
    right = np.mean([r.label == label for r, label in zip(results, labels, strict=True)])
    assert right == pytest.approx(found.calibration.cascade_accuracy)
    assert 0 < found.calibration.exit_share[0] < 1
    assert found.calibration.drop <= 0.05 + 1e-9


def test_with_delta_some_leave_and_the_promise_is_kept_on_new_inputs(tiny):
    inputs, labels = cases(5000)
    found = tune(Stages(tiny), inputs, labels, max_drop=0.01)
    assert found.calibration.tested == 4000
    assert found.calibration.exit_share[-1] < 0.7
    fresh, their = cases(20_000, seed=1)
    again = tune(Stages(Bundle(tiny.path, tiny.manifest, found.tuning, tiny.held)), fresh, their, delta=None)
    assert again.tuning.mode == tiny.tuning.mode
    sure = np.abs(fresh.reshape(-1, 4, 2)[:, :, 0] - fresh.reshape(-1, 4, 2)[:, :, 1])
    p = 1 / (1 + np.exp(-sure / np.array(found.tuning.temperatures)))
    right = fresh.reshape(-1, 4, 2).argmax(axis=2) == their[:, None]
    leaves = p >= found.calibration.thresholds[0]
    answer = np.where(leaves[:, 0], right[:, 0], np.where(leaves[:, 2], right[:, 2], right[:, 3]))
    assert right[:, 3].mean() - answer.mean() <= 0.01


def test_an_edge_copy_without_the_last_exit_is_stricter(make_bundle, tmp_path, tiny):
    copied = make_bundle(tmp_path / "edge.bundle", held=3)
    inputs, labels = cases(5000)
    whole = tune(Stages(tiny), inputs, labels, max_drop=0.02)
    found = tune(Stages(copied), inputs, labels, max_drop=0.02)
    assert found.exits == (0, 2)
    assert whole.calibration.thresholds[0] < found.calibration.thresholds[0] < 1
    assert found.tuning.temperatures[3] == copied.tuning.temperatures[3]
    assert found.calibration.cascade_accuracy is None


@pytest.mark.parametrize(("confidence", "beyond"), [("max_softmax", 0.75), ("margin", 2.0)])
def test_a_gate_that_is_not_held_stays_or_closes_with_another_measure(make_bundle, tmp_path, confidence, beyond):
    copied = make_bundle(tmp_path / "edge.bundle", held=2)
    found = tune(Stages(copied), *cases(2000), max_drop=0.05, confidence=confidence)
    assert found.exits == (0,)
    assert found.tuning.thresholds == (found.calibration.thresholds[0], None, beyond, None)


def test_without_early_exits_there_is_nothing_to_tune(make_bundle, tmp_path):
    for bundle in (
        make_bundle(tmp_path / "none.bundle", exits=(), thresholds=(None,) * 4),
        make_bundle(tmp_path / "beyond.bundle", exits=(2,), held=2),
    ):
        with pytest.raises(ConfigError, match="holds no early exit, so there is nothing to tune"):
            tune(Stages(bundle), *cases(20))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x, y: (x, y[:-1]), ConfigError, "600 inputs do not go with 599 labels"),
        (lambda x, y: (x[:9], y[:9]), ConfigError, "at least 10 held-out samples, not 9"),
        (lambda x, y: (x[:0], y[:0]), ConfigError, "at least 10 held-out samples, not 0"),
        (lambda x, y: (x[:, :5], y), InputError, r"expected float32 of shape \(N, 8\), got float32"),
        (lambda x, y: (x.astype(np.float64), y), InputError, "got float64"),
        (lambda x, y: (np.where(np.arange(8) == 3, np.nan, x).astype(np.float32), y), InputError, "NaN"),
        (lambda x, y: (x, y + 1), InputError, "whole numbers from 0 to 1 here"),
        (lambda x, y: (x, y - 1), InputError, "whole numbers from 0 to 1 here"),
    ],
)
def test_data_that_cannot_be(tiny, change, error, words):
    with pytest.raises(error, match=words):
        tune(Stages(tiny), *change(*cases(600)))


@pytest.mark.parametrize("wrong", [{"delta": 0.0}, {"delta": 1.0}, {"max_drop": 2.0}, {"confidence": "energy"}])
def test_settings_are_refused_before_anything_runs(tiny, wrong):
    told = []
    with pytest.raises(ConfigError):
        tune(Stages(tiny), *cases(20), on_batch=told.append, **wrong)
    assert told == []


def test_pixels_go_through_the_manifest_s_preprocessing(digits_bundle, digit_images):
    stages = Stages(Bundle.load(digits_bundle))
    pixels = digit_images[0][:20]
    floats = (pixels[:, None] / np.float32(255)).astype(np.float32)
    for a, b in zip(exit_logits(stages, pixels), exit_logits(stages, floats), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert stages.bundle.manifest.preprocessing == Preprocessing(color="grey", height=28, width=28)


def test_macs_of_an_answer_and_what_a_cascade_saves(tiny):
    stages = [
        s.model_copy(update={"graph": s.graph.model_copy(update={"macs": m})})
        for s, m in zip(tiny.manifest.stages, (10, 20, 30, 40), strict=True)
    ]
    exits = [
        e
        if e is None or e.graph is None
        else e.model_copy(update={"graph": e.graph.model_copy(update={"macs": 5})})
        for e in tiny.manifest.exits
    ]
    manifest = tiny.manifest.model_copy(update={"stages": tuple(stages), "exits": tuple(exits)})
    assert macs_per_answer(manifest, (0, 2, 3)) == (15, 70, 110)
    assert macs_per_answer(manifest, (0,)) == (15, 105)  # an edge copy with the first exit only
    assert macs_saved(manifest, (0, 2, 3), (0.5, 0.3, 0.2)) == pytest.approx(1 - (7.5 + 21 + 22) / 100)
    assert macs_saved(manifest, (0, 2, 3), (0, 0, 1)) == pytest.approx(-0.1)  # the heads for nothing
    assert macs_saved(tiny.manifest, (0, 2, 3), (0, 0, 1)) == 0  # a network without multiplications
