import math

import numpy as np
import pytest

from offramp.bundle.manifest import Tuning
from offramp.runtime.gate import Gate

GATE = Gate(Tuning(temperatures=(1.0, 2.0, None), thresholds=(0.5, 0.9, None)))


@pytest.mark.parametrize(("exit_index", "temperature"), [(0, 1.0), (1, 2.0), (2, 1.0)])
def test_belief_is_the_softmax_at_the_exits_temperature(exit_index, temperature):
    logits = np.array([0.5, 3.0, -1.0], np.float32)
    belief = GATE.belief(exit_index, logits)
    powers = [math.exp(float(z) / temperature) for z in logits]
    assert belief.probabilities == pytest.approx([p / sum(powers) for p in powers])
    assert belief.label == 1
    assert belief.confidence == belief.probabilities[1]


@pytest.mark.parametrize(
    ("measure", "confidence"),
    [("max_softmax", 0.75), ("margin", 0.5), ("entropy", 1 - 2 + 0.75 * math.log2(3))],
)
def test_the_confidence_is_the_tuning_s(measure, confidence):
    gate = Gate(Tuning(temperatures=(2.0,), thresholds=(0.6,), confidence=measure))
    belief = gate.belief(0, np.array([2 * math.log(3), 0.0], np.float32))
    assert belief.confidence == pytest.approx(confidence)
    assert (belief.label, belief.probabilities[0]) == (0, pytest.approx(0.75))
    assert gate.passes(0, belief.confidence) is (measure == "max_softmax")


def test_huge_logits_do_not_overflow():
    belief = GATE.belief(0, np.array([3e38, -3e38], np.float32))
    assert belief.probabilities.tolist() == [1.0, 0.0]


def test_of_equal_logits_the_first_label():
    assert GATE.belief(0, np.zeros(4, np.float32)).label == 0


@pytest.mark.parametrize(
    ("exit_index", "confidence", "alpha", "passes"),
    [
        (0, 0.5, None, True),  # reaching the threshold is enough
        (0, math.nextafter(0.5, 0), None, False),
        (1, 0.8, None, False),
        (1, 0.8, 0.8, True),  # alpha goes before the threshold
        (1, math.nextafter(0.8, 0), 0.8, False),
        (0, 0.1, 0.0, True),
        (2, 1.0, None, False),  # no threshold: nothing leaves here
        (2, 1.0, 1.0, True),
    ],
)
def test_passes(exit_index, confidence, alpha, passes):
    assert GATE.passes(exit_index, confidence, alpha) is passes


def test_a_threshold_above_one_keeps_everything():
    assert not Gate(Tuning(temperatures=(1.0,), thresholds=(2.0,))).passes(0, 1.0)


@pytest.mark.parametrize("measure", ["max_softmax", "margin", "entropy"])
def test_of_a_batch_those_are_sure_who_pass_one_by_one(measure):
    gate = Gate(Tuning(temperatures=(1.0, 2.0, None), thresholds=(0.5, 0.9, None), confidence=measure))
    logits = np.random.default_rng(0).normal(0, 3, (200, 5)).astype(np.float32)
    for exit_index in range(3):
        alone = [gate.passes(exit_index, gate.belief(exit_index, row).confidence) for row in logits]
        assert gate.sure(exit_index, logits).tolist() == alone
        assert any(alone) or exit_index > 0


def test_a_gate_that_nothing_can_pass_is_not_open():
    gate = Gate(Tuning(temperatures=(1.0,) * 4, thresholds=(0.5, 1.0, 2.0, None)))
    assert [gate.opens(exit_index) for exit_index in range(4)] == [True, True, False, False]
