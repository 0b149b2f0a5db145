"""Every head, and networks with several inputs, through the exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import offramp as off
from offramp.bundle.export import export, export_graph
from offramp.errors import ConfigError
from offramp.exits.heads import ConvHead, DeepHead, PooledHead, TokenHead
from offramp.runtime.stages import Stages


class Kinds(nn.Module):
    """Maps, tokens, a signal and plain features."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.token = nn.Linear(6, 8)
        self.signal = nn.Conv1d(80, 5, 1)
        self.plain, self.last = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.signal(self.token(self.map(x).flatten(2).transpose(1, 2)))
        y: Tensor = self.last(torch.relu(self.plain(x.mean(2))))
        return y


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 10, 8, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(
    "heads",
    [
        (ConvHead(3, 5, places=4), TokenHead(3), PooledHead(3, channels_first=True), PooledHead(3)),
        (
            PooledHead(3, 2, norm=True),
            TokenHead(3, "first"),
            PooledHead(3, norm=True, channels_first=True),
            PooledHead(3, norm=True),
        ),
        (PooledHead(3, norm=True), PooledHead(3, norm=True), None, None),
        (DeepHead(3, 5), None, None, None),
    ],
    ids=["plain", "norm", "chosen", "deep"],
)
def test_every_head_equals_torch(heads: tuple[nn.Module | None, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = ("map", "token", "signal", "plain")
    net = off.MultiExit(Kinds(), dict(zip(names, heads, strict=True)), example_input=images(1))
    net.train()
    for n in (7, 8, 9):
        net(images(n))  # batch norm's statistics
    bundle = export(net.eval(), images(1), tmp_path / "heads.bundle")
    stages = Stages(bundle)
    for n in (1, 2, 5):
        with torch.no_grad():
            expected = net(images(n))
        found, given = [], [images(n).numpy()]
        for i in range(bundle.held):
            given, _ = stages.stage(i, given)
            found.append(stages.exit(i, given)[0] if i < bundle.manifest.last else given[0])
        for got, logits in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, logits.numpy(), atol=1e-5, rtol=1e-5)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.right, self.last = nn.Embedding(9, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.words(ids) + self.right(scale)[:, None]).mean(1))
        return y


def two(n: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(n)
    return {"ids": torch.randint(9, (n, 4), generator=draw), "scale": torch.randn(n, 3, generator=draw)}


@pytest.mark.parametrize(
    "form",
    [lambda x: x, lambda x: tuple(x.values()), lambda x: dict(reversed(x.items()))],
    ids=["dict", "tuple", "dict in another order"],
)
def test_several_inputs_keep_their_names(form: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    net = off.MultiExit(Sum(), ["words"], example_input=two(1)).eval()
    graph = export_graph(net, form(two(3)))
    session = ort.InferenceSession(graph.SerializeToString())
    assert {i.name for i in session.get_inputs()} == {"ids", "scale"}
    for n in (1, 2, 5):
        got = session.run(["exit_0", "exit_1"], {name: t.numpy() for name, t in two(n).items()})
        with torch.no_grad():
            for one, logits in zip(got, net(**two(n)), strict=True):
                np.testing.assert_allclose(one, logits.numpy(), atol=1e-5, rtol=1e-5)


def test_inputs_by_place_of_a_model_that_names_none() -> None:
    class Any(Sum):
        def forward(self, *args: Tensor) -> Tensor:
            return super().forward(*args)

    net = off.MultiExit(Any(), ["words"], example_input=tuple(two(1).values())).eval()
    graph = export_graph(net, tuple(two(1).values()))
    assert [i.name for i in graph.graph.input] == ["input_0", "input_1"]


@pytest.mark.parametrize(
    "example",
    [
        (torch.zeros(2, 4).long(), torch.zeros(3, 3)),
        (torch.zeros(0, 4).long(), torch.zeros(0, 3)),
        (torch.zeros(2, 4).long(), torch.tensor(1.0)),
        (torch.zeros(2, 4).long(), None),
        (),
    ],
    ids=["other numbers", "no samples", "no axis", "no tensor", "nothing"],
)
def test_inputs_that_do_not_go_together(example: tuple[Tensor, ...]) -> None:
    net = off.MultiExit(Sum(), ["words"], example_input=two(1)).eval()
    with pytest.raises(ConfigError, match="a tensor of the same number of samples"):
        export_graph(net, example)
