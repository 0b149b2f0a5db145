from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from offramp.errors import ConfigError
from offramp.exits.objective import DistilledLoss, JointLoss

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


# --- the last exit teaches ---------------------------------------------------------------------------------


def distilled_by_hand(temperature: float, mix: float, weights: tuple[float, float]) -> float:
    """Hinton et al. 2015, in NumPy."""
    early, last = (z.double().numpy() for z in LOGITS)

    def softmax(z: Any) -> Any:
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    teacher, student = softmax(last / temperature), softmax(early / temperature)
    soft = (teacher * np.log(teacher / student)).sum(1).mean()
    return weights[0] * ((1 - mix) * BY_HAND[0] + mix * temperature**2 * soft) + weights[1] * BY_HAND[1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_distillation_by_hand(temperature: float, mix: float) -> None:
    loss = DistilledLoss([0.7, 2], temperature=temperature, mix=mix)
    assert loss(LOGITS, TARGET).item() == pytest.approx(distilled_by_hand(temperature, mix, (0.7, 2)), abs=1e-5)


def test_the_defaults() -> None:
    assert DistilledLoss()(LOGITS, TARGET).item() == pytest.approx(distilled_by_hand(4, 0.5, (1, 1)), abs=1e-5)


def test_no_mix_is_the_joint_loss() -> None:
    assert DistilledLoss(mix=0)(LOGITS, TARGET).item() == pytest.approx(JointLoss()(LOGITS, TARGET).item())


def test_the_teacher_learns_from_labels_alone() -> None:
    logits = [z.clone().requires_grad_() for z in LOGITS]
    DistilledLoss(mix=1)(logits, TARGET).backward()
    assert logits[1].grad is not None
    torch.testing.assert_close(logits[1].grad, (torch.softmax(LOGITS[1], 1) - torch.eye(2)) / 2)
    assert logits[0].grad is not None
    torch.testing.assert_close(  # T²·∂KL/∂z = T·(softmax(z/T) − softmax(z_last/T)), over N samples
        logits[0].grad, 4 * (torch.softmax(LOGITS[0] / 4, 1) - torch.softmax(LOGITS[1] / 4, 1)) / 2
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperatures_that_cannot_be(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature must be above 0 and finite"):
        DistilledLoss(temperature=temperature)


@pytest.mark.parametrize("mix", [-0.1, 1.1, float("nan")])
def test_mixes_that_cannot_be(mix: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        DistilledLoss(mix=mix)


@pytest.mark.parametrize("kind", [JointLoss, DistilledLoss])
def test_both_check_their_weights(kind: Any) -> None:
    with pytest.raises(ConfigError, match="exit weights must be at least 0"):
        kind([1.0, float("nan")])
    with pytest.raises(ConfigError, match="3 exit weights for 2 exits"):
        kind([1, 1, 1])(LOGITS, TARGET)
