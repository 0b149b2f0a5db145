from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import ConfigError, InputError
from offramp.exits.calibration import Calibration, calibrate_logits, fit_temperature
from offramp.exits.confidence import CONFIDENCES, calibration_error, confidence_of, softmax
from offramp.exits.thresholds import answering

many = settings(max_examples=150, derandomize=True, deadline=None)


def made_up(n: int, scale: float, seed: int, signal: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose right temperature is about `scale`, with labels drawn from their softmax."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 5)) * signal
    p = softmax(true)
    labels = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=4)
    return true * scale, labels


def likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits, temperature)[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_temperature_is_the_best_of_a_fine_grid(scale: float, seed: int) -> None:
    logits, labels = made_up(500, scale, seed)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(scale, rel=0.3)
    best = min(likelihood(logits, labels, t) for t in found * np.geomspace(0.2, 5, 801))
    assert likelihood(logits, labels, found) <= best + 1e-9


def test_a_temperature_stays_in_its_range() -> None:
    eye = np.eye(3).repeat(10, axis=0)
    labels = eye.argmax(axis=1)
    assert fit_temperature(eye, labels) == pytest.approx(0.05)  # always right: as sure as can be
    assert fit_temperature(eye, (labels + 1) % 3) == pytest.approx(20)  # always wrong: as unsure as can be


def cascade(n: int, seed: int, noise: float = 1.0) -> tuple[list[np.ndarray], np.ndarray]:
    """Two early exits and the last, each less noisy than the one before."""
    last, labels = made_up(n, 1.0, seed, signal=4)
    rng = np.random.default_rng(seed + 1)
    return [*(last + noise * k * rng.normal(size=last.shape) for k in (2, 1)), last], labels


def answers(found: Calibration, logits: list[np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which exit answers each sample under a calibration, and whether the answer is right."""
    gates = len(found.thresholds)
    pairs = zip(logits[:gates], found.temperatures[:gates], strict=True)
    sure = np.stack([confidence_of(softmax(z, t), found.confidence) for z, t in pairs])
    exits = answering(sure, found.thresholds[0])
    right = np.stack([z.argmax(axis=1) == labels for z in logits])
    return exits, right[exits, np.arange(len(labels))]


@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from([0.0, 0.005, 0.02, 0.1]), st.floats(0.1, 3), st.sampled_from(CONFIDENCES)
)
def test_without_delta_the_cascade_keeps_its_drop_on_its_own_data(
    seed: int, max_drop: float, noise: float, confidence: str
) -> None:
    logits, labels = cascade(300, seed, noise)
    found = calibrate_logits(logits, labels, max_drop=max_drop, delta=None, confidence=confidence)
    exits, right = answers(found, logits, labels)
    last = logits[-1].argmax(axis=1) == labels
    assert last.mean() - right.mean() <= max_drop + 1e-9
    assert found.drop == pytest.approx(last.mean() - right.mean())
    assert found.cascade_accuracy == pytest.approx(right.mean())
    assert found.lost == pytest.approx((last & ~right).mean())
    assert found.exit_share == pytest.approx([(exits == e).mean() for e in range(3)])
    assert found.accuracy == pytest.approx([(z.argmax(axis=1) == labels).mean() for z in logits])
    assert (found.samples, found.tested) == (300, 300)


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_with_delta_a_good_exit_answers_much_and_new_samples_keep_the_drop(confidence: str) -> None:
    logits, labels = cascade(5000, 3, noise=0.7)
    found = calibrate_logits(logits, labels, max_drop=0.01, delta=0.05, confidence=confidence)
    assert (found.samples, found.tested) == (5000, 4000)
    assert found.thresholds[0] == found.thresholds[1] < 1
    assert found.exit_share[-1] < 0.8
    assert found.lost < 0.01  # the limit that is certified is above what was seen
    fresh, their_labels = cascade(20_000, 99, noise=0.7)
    _, right = answers(found, fresh, their_labels)
    last = fresh[-1].argmax(axis=1) == their_labels
    assert last.mean() - right.mean() <= 0.01


def test_the_figures_are_of_samples_that_did_not_fit() -> None:
    """Whoever fits is drawn by the seed, whatever the order of the samples."""
    logits, labels = cascade(1000, 5)
    found = calibrate_logits(logits, labels, max_drop=0.05)
    shuffled = np.random.default_rng(0).permutation(1000)
    fitting, testing = shuffled[:200], shuffled[200:]
    assert found.temperatures == tuple(fit_temperature(z[fitting], labels[fitting]) for z in logits)
    expected = [calibration_error(softmax(z[testing]), labels[testing]) for z in logits]
    assert found.ece_before == pytest.approx(expected)
    pairs = zip(logits, found.temperatures, strict=True)
    expected = [calibration_error(softmax(z, t)[testing], labels[testing]) for z, t in pairs]
    assert found.ece_after == pytest.approx(expected)
    assert calibrate_logits(logits, labels, max_drop=0.05) == found
    assert calibrate_logits(logits, labels, max_drop=0.05, seed=1) != found


def test_a_temperature_mends_the_calibration_error() -> None:
    logits, labels = made_up(4000, 4.0, 0)
    found = calibrate_logits([logits, logits], labels)
    assert min(found.ece_before) > 0.1
    assert max(found.ece_after) < 0.03


def test_too_few_samples_let_nothing_leave_and_say_how_many_are_needed() -> None:
    logits, labels = cascade(100, 0)
    with pytest.warns(UserWarning, match=r"takes at least 574 held-out samples, not 100.*delta=None"):
        found = calibrate_logits(logits, labels)
    assert all(t > 1 for t in found.thresholds)
    assert not found.leaves
    assert found.exit_share == (0, 0, 1)
    assert found.promise == "Nothing leaves early, so nothing is lost."
    with pytest.warns(UserWarning, match="no number of held-out samples"):
        calibrate_logits(logits, labels, max_drop=0.0)


def test_one_sample_fewer_than_needed_is_too_few() -> None:
    logits, labels = made_up(574, 1.0, 0)
    assert calibrate_logits([logits, logits], labels).exit_share == (1, 0)  # the same logits lose nothing
    with pytest.warns(UserWarning, match="not 573"):
        calibrate_logits([logits[:573]] * 2, labels[:573])


def test_without_the_last_exit_every_wrong_early_answer_is_lost() -> None:
    logits, labels = cascade(3000, 1, noise=0.7)
    known = calibrate_logits(logits, labels, max_drop=0.02)
    found = calibrate_logits(logits[:-1], labels, max_drop=0.02, with_last=False)
    assert len(found.temperatures) == len(found.thresholds) == len(found.accuracy) == 2
    assert len(found.exit_share) == 3
    assert known.thresholds[0] < found.thresholds[0] < 1
    assert (found.cascade_accuracy, found.drop) == (None, None)
    shuffled = np.random.default_rng(0).permutation(3000)[600:]
    exits, right = answers(found, [z[shuffled] for z in logits], labels[shuffled])
    assert found.lost == pytest.approx(((exits < 2) & ~right).mean())


def test_what_calibration_keeps() -> None:
    logits, labels = made_up(50, 1.0, 0)
    crossing = ((np.zeros(3),), (np.ones(3),))
    found = calibrate_logits([logits, logits], labels, max_drop=0.1, delta=0.3, crossing=crossing)
    assert len(found.temperatures) == 2
    assert len(found.thresholds) == 1
    assert (found.max_drop, found.delta, found.confidence) == (0.1, 0.3, "max_softmax")
    assert (found.samples, found.tested, found.crossing) == (50, 40, crossing)
    assert "With confidence 70 % the cascade costs at most 10 points" in found.promise
    alone = calibrate_logits([logits], labels)  # a network without early exits: a temperature, no gates
    assert (alone.thresholds, alone.exit_share, alone.lost) == ((), (1.0,), 0.0)


def test_what_calibration_refuses() -> None:
    logits, labels = made_up(20, 1.0, 0)
    two = [logits, logits]
    with pytest.raises(ConfigError, match="at least 10 held-out samples, not 9"):
        calibrate_logits([logits[:9]] * 2, labels[:9])
    with pytest.raises(ConfigError, match="at least 10 held-out samples, not 0"):
        calibrate_logits(two, np.array(3))
    with pytest.raises(ConfigError, match="at least one exit"):
        calibrate_logits([], labels)
    with pytest.raises(ConfigError, match=r"logits of \[20, 19\] samples do not go with 20 labels"):
        calibrate_logits([logits, logits[:19]], labels)
    for wrong in ([logits, logits[:, :4]], [logits[:, :, None]] * 2, [logits[:, 0]] * 2):
        with pytest.raises(ConfigError, match=r"logits \(N, classes\), the same for every exit"):
            calibrate_logits(wrong, labels)
    with pytest.raises(ConfigError, match=r"expected labels \(N,\)"):
        calibrate_logits(two, labels[:, None])
    for max_drop in (-0.01, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="max_drop is a fraction"):
            calibrate_logits(two, labels, max_drop=max_drop)
    for delta in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="delta is a probability"):
            calibrate_logits(two, labels, delta=delta)
    with pytest.raises(ConfigError, match="no confidence 'energy'"):
        calibrate_logits(two, labels, confidence="energy")
    for value in (-1, 5):
        with pytest.raises(InputError, match="whole numbers from 0 to 4 here, not values from"):
            calibrate_logits(two, np.where(np.arange(20) == 7, value, labels))
    with pytest.raises(InputError, match="not values of type float64"):
        calibrate_logits(two, labels.astype(float))
    for value in (np.nan, np.inf):
        broken = np.where(np.arange(20)[:, None] == 7, value, logits)
        with pytest.raises(InputError, match="exit 1 gives logits that are not finite for 1 of 20 samples"):
            calibrate_logits([logits, broken], labels)
