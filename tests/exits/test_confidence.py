from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from offramp.errors import ConfigError
from offramp.exits.confidence import (
    CONFIDENCES,
    Confidence,
    calibration_error,
    check_confidence,
    confidence_of,
    softmax,
)

many = settings(max_examples=100, derandomize=True, deadline=None)
LOGITS = arrays(np.float64, (7, 4), elements=st.floats(-50, 50))


def test_softmax() -> None:
    assert softmax(np.array([[0.0, np.log(3)]]))[0] == pytest.approx([0.25, 0.75])
    assert softmax(np.array([[0.0, 2 * np.log(3)]]), 2)[0] == pytest.approx([0.25, 0.75])
    assert softmax(np.array([1000.0, 1000.0])) == pytest.approx([0.5, 0.5])  # does not overflow


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("max_softmax", [0.5, 1.0, 0.25]),
        ("margin", [0.25, 1.0, 0.0]),
        ("entropy", [1 - (0.5 * math.log(2) + 0.25 * math.log(4) * 2) / math.log(4), 1.0, 0.0]),
    ],
)
def test_confidences_by_hand(measure: Confidence, expected: list[float]) -> None:
    p = np.array([[0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25] * 4])
    assert confidence_of(p, measure) == pytest.approx(expected)
    assert confidence_of(p[0], measure) == pytest.approx(expected[0])  # one sample, as the gate asks


@pytest.mark.parametrize("measure", CONFIDENCES)
def test_one_class_is_always_sure(measure: Confidence) -> None:
    assert confidence_of(np.ones((3, 1)), measure).tolist() == [1, 1, 1]


@many
@given(LOGITS, st.permutations(range(4)), st.sampled_from(CONFIDENCES))
def test_a_confidence_is_a_fraction_and_knows_no_order(
    z: np.ndarray, order: list[int], measure: Confidence
) -> None:
    sure = confidence_of(softmax(z), measure)
    assert ((sure >= 0) & (sure <= 1)).all()
    assert confidence_of(softmax(z[:, order]), measure) == pytest.approx(sure, abs=1e-12)
    # Colder is surer.
    assert (confidence_of(softmax(z, 0.5), measure) >= sure - 1e-12).all()


def test_measures_by_name() -> None:
    assert [check_confidence(name) for name in CONFIDENCES] == list(CONFIDENCES)
    with pytest.raises(ConfigError, match="no confidence 'energy'; known: max_softmax, entropy, margin"):
        check_confidence("energy")


# --- expected calibration error --------------------------------------------------------------------------


def slow_calibration_error(p: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """As Guo et al. 2017 write it, equation 3: bins (i/M, (i+1)/M], one after the other."""
    top, right = p.max(axis=1), p.argmax(axis=1) == labels
    total = 0.0
    for i in range(bins):
        inside = [j for j in range(len(p)) if i / bins < top[j] <= (i + 1) / bins]
        if inside:
            gap = np.mean([right[j] for j in inside]) - np.mean([top[j] for j in inside])
            total += len(inside) / len(p) * abs(gap)
    return float(total)


@many
@given(LOGITS, st.lists(st.integers(0, 3), min_size=7, max_size=7), st.sampled_from([1, 5, 15]))
def test_calibration_error_is_the_slow_one(z: np.ndarray, labels: list[int], bins: int) -> None:
    p = softmax(z)
    expected = slow_calibration_error(p, np.array(labels), bins)
    assert calibration_error(p, np.array(labels), bins=bins) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_by_hand() -> None:
    p = np.array([[0.8, 0.2]] * 10)
    assert calibration_error(p, np.array([0] * 8 + [1] * 2)) == pytest.approx(0)
    assert calibration_error(p, np.zeros(10, int)) == pytest.approx(0.2)
    assert calibration_error(p, np.ones(10, int)) == pytest.approx(0.8)
    sure = np.array([[1.0, 0.0]] * 4)  # the edge of the last bin
    assert calibration_error(sure, np.array([0, 0, 0, 1])) == pytest.approx(0.25)
