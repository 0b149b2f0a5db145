from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from offramp.errors import ConfigError
from offramp.exits.calibration import calibrate_logits
from offramp.exits.evaluation import calibrate, evaluate
from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit


@pytest.fixture(scope="module")
def net() -> MultiExit:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
    return MultiExit(model, {"0": PooledHead(3)}, example_input=torch.zeros(1, 6))


X = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(50) % 3


def batches(size: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(X, Y), batch_size=size)


@pytest.mark.parametrize("size", [50, 7])
def test_evaluate_equals_one_pass(net: MultiExit, size: int) -> None:
    net.train()
    seen = evaluate(net, batches(size))
    assert net.training
    net.eval()
    with torch.no_grad():
        features, logits = net.forward_features(X)
    for got, expected in zip(seen.logits, logits, strict=True):
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-6)
    assert (seen.labels == Y.numpy()).all()
    assert seen.accuracy == pytest.approx([(z.argmax(dim=1) == Y).float().mean().item() for z in logits])
    for (got,), tensor in zip(seen.crossing, (X, *features), strict=True):
        rows = [int(np.abs(X.numpy() - x).sum(axis=1).argmin()) for x in seen.crossing[0][0]]
        assert len(set(rows)) == len(got)
        np.testing.assert_allclose(got, tensor.numpy()[rows], atol=1e-6)


def test_evaluate_learns_nothing_and_leaves_the_modes() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    net = MultiExit(model, {"0": PooledHead(3)}, example_input=X)
    net.train()
    model[1].eval()  # a frozen layer
    before = {k: v.clone() for k, v in net.state_dict().items()}
    evaluate(net, batches(10))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert (net.training, model[0].training, model[1].training) == (True, True, False)


def test_an_empty_loader_is_refused(net: MultiExit) -> None:
    with pytest.raises(ConfigError, match="no batches"):
        evaluate(net, [])


def test_calibrate_is_kept_with_the_network(net: MultiExit) -> None:
    twin = copy.deepcopy(net).eval()
    assert twin.calibration is None
    found = calibrate(twin, batches(20), max_drop=0.5, delta=0.3, confidence="entropy", seed=4)
    assert twin.calibration is found
    seen = evaluate(twin, batches(20))
    asked = {"max_drop": 0.5, "delta": 0.3, "confidence": "entropy", "seed": 4}
    assert found == calibrate_logits(seen.logits, seen.labels, crossing=seen.crossing, **asked)
    assert len(found.crossing) == 2  # the input and one cut


def test_too_few_samples_are_refused(net: MultiExit) -> None:
    with pytest.raises(ConfigError, match="at least 10"):
        calibrate(net, [(X[:5], Y[:5])])


def test_the_digits_network_learned(digits_net: MultiExit, digit_inputs: Tensor, digit_images: tuple) -> None:
    labels = torch.from_numpy(digit_images[1])
    seen = evaluate(digits_net, DataLoader(TensorDataset(digit_inputs, labels), batch_size=500))
    assert seen.accuracy[0] > 0.3
    assert min(seen.accuracy[1:]) > 0.6
    assert digits_net.calibration is not None
    (pixels,) = digits_net.calibration.crossing[0]
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)
    assert len(pixels) == 64
