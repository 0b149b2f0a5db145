from __future__ import annotations

import pytest
import torch

from offramp.errors import ConfigError
from offramp.exits.objective import JointLoss

LOGITS = [torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0], [1.0, 1.0]])]
TARGET = torch.tensor([0, 1])
#: −log softmax at the target, by hand, averaged over both samples
BY_HAND = [
    (0.12692801 + 0.31326169) / 2,
    (3.04858735 + 0.69314718) / 2,
]


def test_all_exits_count_the_same_unless_told() -> None:
    assert JointLoss()(LOGITS, TARGET).item() == pytest.approx(sum(BY_HAND), abs=1e-6)


def test_weights_count() -> None:
    expected = 0.3 * BY_HAND[0] + 2 * BY_HAND[1]
    assert JointLoss([0.3, 2])(LOGITS, TARGET).item() == pytest.approx(expected, abs=1e-6)
    assert JointLoss([1, 0])(LOGITS, TARGET).item() == pytest.approx(BY_HAND[0], abs=1e-6)


def test_gradients_are_weighted() -> None:
    logits = [z.clone().requires_grad_() for z in LOGITS]
    JointLoss([2, 0])(logits, TARGET).backward()
    assert logits[0].grad is not None
    expected = 2 * (torch.softmax(LOGITS[0], 1) - torch.eye(2)) / 2
    torch.testing.assert_close(logits[0].grad, expected)
    assert logits[1].grad is not None
    assert logits[1].grad.abs().sum() == 0


@pytest.mark.parametrize("weights", [[], [1.0, -0.1]])
def test_weights_that_cannot_be(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="exit weights must be at least 0"):
        JointLoss(weights)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0]])
def test_another_number_of_weights_than_exits(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match=f"{len(weights)} exit weights for 2 exits"):
        JointLoss(weights)(LOGITS, TARGET)
