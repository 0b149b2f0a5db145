from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import ConfigError
from offramp.exits.calibration import calibrate_logits, fit_temperature, fit_threshold, softmax

many = settings(max_examples=150, derandomize=True, deadline=None)


def made_up(n: int, scale: float, seed: int, signal: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose right temperature is about `scale`, with labels drawn from their softmax."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 5)) * signal
    p = softmax(true)
    labels = np.array([rng.choice(5, p=row) for row in p])
    return true * scale, labels


def likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits, temperature)[np.arange(len(labels)), labels]).mean())


def test_softmax() -> None:
    assert softmax(np.array([[0.0, np.log(3)]]))[0] == pytest.approx([0.25, 0.75])
    assert softmax(np.array([[0.0, 2 * np.log(3)]]), 2)[0] == pytest.approx([0.25, 0.75])
    assert softmax(np.array([1000.0, 1000.0])) == pytest.approx([0.5, 0.5])  # does not overflow


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


def drop(confidence: np.ndarray, correct: np.ndarray, final: np.ndarray, threshold: float) -> float:
    leaves = confidence >= threshold
    return float(final.mean() - np.where(leaves, correct, final).mean())


def brute_force_threshold(
    confidence: np.ndarray, correct: np.ndarray, final: np.ndarray, max_drop: float
) -> float:
    """The lowest confidence at which, and above which, no threshold costs too much."""
    lowest = np.nextafter(1.0, 2.0)
    for threshold in sorted(set(confidence.tolist()), reverse=True):
        if drop(confidence, correct, final, threshold) > max_drop + 1e-9:
            break
        lowest = threshold
    return float(lowest)


@many
@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.5, 1.0]),
)
def test_a_threshold_is_that_of_brute_force(rows: list[tuple[int, bool, bool]], max_drop: float) -> None:
    confidence = np.array([r[0] / 12 for r in rows])
    correct, final = (np.array([r[i] for r in rows]) for i in (1, 2))
    found = fit_threshold(confidence, correct, final, max_drop)
    assert found == brute_force_threshold(confidence, correct, final, max_drop)
    assert drop(confidence, correct, final, found) <= max_drop + 1e-9


def test_thresholds_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    final = np.array([True, True, True, True])
    correct = np.array([True, True, False, True])
    assert fit_threshold(confidence, correct, final, 0.0) == 0.8
    assert fit_threshold(confidence, correct, final, 0.25) == 0.6
    assert fit_threshold(confidence, ~final, final, 0.1) > 1  # nothing may leave
    assert fit_threshold(confidence, correct, ~final, 0.0) == 0.6  # the exit is the better one


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.005, 0.02, 0.1]), st.floats(0.1, 3))
def test_each_gate_keeps_its_drop_on_its_own_data(seed: int, max_drop: float, noise: float) -> None:
    final, labels = made_up(300, 1.0, seed, signal=3)
    rng = np.random.default_rng(seed + 1)
    early = [final + noise * k * rng.normal(size=final.shape) for k in (2, 1)]
    found = calibrate_logits([*early, final], labels, max_drop=max_drop)
    right = [z.argmax(axis=1) == labels for z in (*early, final)]
    assert found.accuracy == pytest.approx([r.mean() for r in right])
    for i, logits in enumerate(early):
        confidence = softmax(logits, found.temperatures[i]).max(axis=1)
        assert drop(confidence, right[i], right[-1], found.thresholds[i]) <= max_drop + 1e-9
        assert found.exit_share[i] == pytest.approx((confidence >= found.thresholds[i]).mean())


def test_what_calibration_keeps() -> None:
    logits, labels = made_up(50, 1.0, 0)
    found = calibrate_logits([logits, logits], labels, max_drop=0.1, ranges=[(0, 1), (-2, 3)])
    assert len(found.temperatures) == 2
    assert len(found.thresholds) == len(found.exit_share) == 1
    assert (found.max_drop, found.samples, found.ranges) == (0.1, 50, ((0, 1), (-2, 3)))
    assert found.exit_share == (1.0,)  # the same logits cost nothing


def test_what_calibration_refuses() -> None:
    logits, labels = made_up(20, 1.0, 0)
    with pytest.raises(ConfigError, match="at least 10 held-out samples, not 9"):
        calibrate_logits([logits[:9]] * 2, labels[:9])
    with pytest.raises(ConfigError, match=r"logits of \[20, 19\] samples do not go with 20 labels"):
        calibrate_logits([logits, logits[:19]], labels)
    for max_drop in (-0.01, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="max_drop is a fraction"):
            calibrate_logits([logits] * 2, labels, max_drop=max_drop)
