"""A sparse network with exits through the whole path: both ideas together, from pattern to trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import offramp as off
from offramp.datasets import ImageData
from offramp.recipes import Splits
from offramp.replay.record import record
from offramp.replay.trace import Trace
from offramp.runtime.labelled import Labelled
from offramp.sparse.layers import SparseLayer

GREY = off.Preprocessing(color="grey", height=28, width=28)


class Residual(nn.Module):
    """A shortcut around two convolutions, as ResNets have it: the pattern lies inside, the exits behind."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 32, 5, stride=4, padding=2), nn.ReLU()),
        Residual(32),
        Residual(32),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


@pytest.fixture(scope="module")
def splits(digits: tuple[ImageData, ImageData]) -> Splits:
    train, test = digits
    parts = train.take(slice(2500)), train.take(slice(2500, 3300)), test.take(slice(300))
    return Splits(*parts, "mnist-subset", 0, GREY)


@pytest.fixture(scope="module")
def net(splits: Splits) -> off.MultiExit:
    """Made sparse, trained jointly, then its heads once more from the last exit, on the frozen sparse backbone."""
    model = network()
    report = off.sparsify_(model, off.SparsityConfig(density=0.25), example_input=splits.example)
    assert report.weights < report.weights_dense / 2
    net = off.MultiExit(model, {"1": off.ConvHead(10, 16), "2": None}, example_input=splits.example)
    batches = splits.batches(splits.train, shuffle_seed=0)
    off.fit(net, batches, epochs=4, lr=8e-3, progress=False, accelerator="cpu")
    patterns = [m.pattern.digest for m in model.modules() if isinstance(m, SparseLayer)]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = off.evaluate(net, splits.batches(splits.test)).accuracy
    loss = off.DistilledLoss()
    off.fit(net, batches, epochs=4, loss=loss, frozen=True, progress=False, accelerator="cpu")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [m.pattern.digest for m in model.modules() if isinstance(m, SparseLayer)] == patterns
    after = off.evaluate(net, splits.batches(splits.test)).accuracy
    assert after[-1] == before[-1] > 0.8
    assert sum(after) >= sum(before) - 0.02
    off.calibrate(net, splits.batches(splits.held_out), max_drop=0.02)
    return net


def test_a_sparse_network_with_exits_goes_the_whole_way(
    net: off.MultiExit, splits: Splits, tmp_path: Path
) -> None:
    bundle = off.export(net, splits.example, tmp_path / "both.bundle", preprocessing=GREY)
    # A quarter of the second block's weights, and no zeros in its file.
    assert bundle.manifest.stages[1].density == 0.25
    assert bundle.manifest.stages[1].graph.parameters == 2 * (32 * 32 * 9 // 4 + 32)
    assert len(bundle.manifest.provenance.patterns) == 5

    stages = off.Stages(bundle)
    test = Labelled(splits.test.images, splits.test.labels, "digits")
    with off.GrpcServer(off.Tail(stages), port=0) as server:
        address = f"127.0.0.1:{server.port}"
        with off.Edge(bundle, address, off.ThresholdCascade(split=0), deadline_ms=30_000) as edge:
            results = list(edge.run(test.inputs))
    assert {r.status for r in results} == {"ok"}
    where = {r.where for r in results}
    assert where == {"edge", "server"}

    record(stages, test).save(tmp_path / "both.npz")
    trace = Trace.load(tmp_path / "both.npz")
    assert trace.accuracy == pytest.approx(off.evaluate(net, splits.batches(splits.test)).accuracy, abs=0.004)
    for r in results:  # what left early left as the trace says; what was sent came from the last exit
        assert r.exit == (0 if r.where == "edge" else 2)
        if r.where == "edge":
            assert r.label == trace.prediction[r.index, 0]
            assert r.confidence == pytest.approx(trace.confidence[r.index, 0], abs=1e-4)
    agreed = np.mean([r.label == trace.prediction[r.index, 2] for r in results if r.where == "server"])
    assert agreed > 0.95  # the cut travelled as uint8
