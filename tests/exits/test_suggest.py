from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offramp as off
from offramp.errors import ConfigError
from offramp.exits.suggest import suggest_exits
from offramp.reproduce.mobilenet import MobileNetV2
from offramp.reproduce.resnet import CifarResNet


def convolution(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


def plain() -> nn.Sequential:
    return nn.Sequential(
        convolution(3, 8), convolution(8, 8), nn.MaxPool2d(2), convolution(8, 8), nn.Flatten(), nn.Linear(128, 4)
    )


IMAGE = torch.zeros(2, 3, 8, 8)


def test_a_plain_sequence_by_hand() -> None:
    found = suggest_exits(plain(), IMAGE, 2)
    macs = [27 * 8 * 64, 72 * 8 * 64, 72 * 8 * 16, 512]
    assert found.macs == sum(macs)
    assert [(p.name, p.shape, p.macs, p.cut_bytes) for p in found.places] == [
        ("0", (8, 8, 8), macs[0], 2048),
        ("2", (8, 4, 4), macs[0] + macs[1], 512),  # behind the pooling: as many products, a smaller cut
    ]
    assert [p.share for p in found.places] == pytest.approx([macs[0] / found.macs, sum(macs[:2]) / found.macs])
    assert found.input_bytes == 3 * 64 * 4


def test_the_table() -> None:
    shown = str(suggest_exits(plain(), IMAGE, 2))
    for text in ("Places for exits", "8×4×4", "512 B", "83.9%", "input: 768 B"):
        assert text in shown


class Residual(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.one, self.two, self.past = convolution(a, b), nn.Conv2d(b, b, 3, padding=1), nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(self.one(x)) + self.past(x))


class Dense(nn.Module):
    """Every layer sees all earlier ones."""

    def __init__(self, a: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([convolution(a + 4 * i, 4) for i in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Around(nn.Module):
    """A connection past two blocks that are children of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dense = convolution(3, 8), Dense(8)
        self.a, self.b = convolution(20, 20), convolution(20, 20)
        self.tail = nn.Sequential(Residual(20, 8), Residual(8, 8))
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(self.stem(x))
        x = x + self.b(self.a(x))
        y: Tensor = self.last(self.tail(x).mean((2, 3)))
        return y


def test_no_place_inside_a_connection(tmp_path: Path) -> None:
    model = Around()
    found = suggest_exits(model, IMAGE, 4)
    assert found.names == ["stem", "dense", "tail.0", "tail"]
    with pytest.raises(
        ConfigError, match=r"5 exits asked for.*at 4 of its submodules: stem, dense, tail\.0, tail;"
    ):
        suggest_exits(model, IMAGE, 5)
    net = off.MultiExit(model, found.names, example_input=IMAGE)
    assert len(off.export(net, IMAGE, tmp_path / "around.bundle").manifest.stages) == 5  # they do cut the graph


def test_the_network_stays_as_it_is() -> None:
    model = plain()
    model[3].eval()
    model[0][0].weight.requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    suggest_exits(model, IMAGE, 1)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert [m.training for m in model] == [True, True, True, False, True, True]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["0.0.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_frozen_network() -> None:
    model = plain().requires_grad_(False)
    assert suggest_exits(model, IMAGE, 2).names == ["0", "2"]


def test_a_submodule_that_runs_twice_is_no_place() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.b(self.a(self.a(x))))
            return y

    assert suggest_exits(Twice(), torch.zeros(1, 6), 1).names == ["b"]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_count(kind: type[nn.RNNBase], gates: int) -> None:
    """The fused kernel that an LSTM takes on a CPU is one operation to torch's counter, which does not know it."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Linear(6, 16)
            self.a, self.b = kind(16, 8, bidirectional=True, batch_first=True), kind(16, 16, batch_first=True)
            self.last = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.b(self.a(self.words(x))[0])
            y: Tensor = self.last(x[:, -1])
            return y

    found = suggest_exits(Recurrent(), torch.zeros(3, 10, 6), 2)
    macs = [10 * 6 * 16, 10 * 2 * gates * 8 * (16 + 8), 10 * gates * 16 * (16 + 16), 16 * 4]
    assert found.macs == sum(macs)
    assert [(p.name, p.shape, p.macs) for p in found.places] == [
        ("a", (10, 16), sum(macs[:2])),
        ("b", (10, 16), sum(macs[:3])),
    ]


class Encoder(nn.Module):
    """As BERT: ids and a mask; blocks give hidden states and attention weights; the output is a dict."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.norm1 = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)
            self.up, self.down, self.norm2 = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)

        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            y, weights = self.attention(x, x, x, key_padding_mask=~mask)
            x = self.norm1(x + y)
            return self.norm2(x + self.down(F.gelu(self.up(x)))), weights

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 16), nn.Embedding(6, 16)
        self.layers = nn.ModuleList([self.Block() for _ in range(depth)])
        self.pooler, self.last = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x, _ = layer(x, attention_mask)
        return {"logits": self.last(torch.tanh(self.pooler(x[:, 0])))}


def test_a_bert() -> None:
    batch = {"input_ids": torch.zeros(2, 6).long(), "attention_mask": torch.ones(2, 6).bool()}
    model = Encoder()
    found = suggest_exits(model, batch, 3)
    assert found.names == ["layers.0", "layers.1", "layers.2"]
    assert [p.shape for p in found.places] == [(6, 16)] * 3
    layer = 6 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 6 * 6 * 16  # attention's own products count
    assert [p.macs for p in found.places] == [layer, 2 * layer, 3 * layer]
    net = off.MultiExit(model, found.names, example_input=batch)
    assert [type(head) for head in net.heads] == [off.TokenHead] * 3
    assert [tuple(z.shape) for z in net(**batch)] == [(2, 3)] * 4


def test_a_vision_transformer() -> None:
    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, stride=4)
            layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 5, enable_nested_tensor=False)
            self.last = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
            return y

    found = suggest_exits(Vit(), IMAGE, 2)
    assert found.names == ["encoder.layers.0", "encoder.layers.2"]
    assert [p.shape for p in found.places] == [(4, 16)] * 2


@pytest.mark.parametrize("n", [0, -2])
def test_numbers_that_cannot_be(n: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 1 exit, not {n}"):
        suggest_exits(plain(), IMAGE, n)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (plain(), IMAGE[:0], "holds no sample"),
        (nn.Flatten(), IMAGE, "no multiply-accumulates"),
        (nn.Linear(4, 2), torch.zeros(1, 4), "at 0 of its submodules: none"),
        (nn.LSTM(4, 2), torch.zeros(2, 3, 4), "must be one tensor of logits"),
    ],
    ids=["no samples", "nothing to share", "one layer", "no logits"],
)
def test_networks_that_cannot_be(model: nn.Module, x: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        suggest_exits(model, x, 1)


# --- published networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "side", "names", "macs"),
    [
        (
            CifarResNet,
            32,
            ["layer1.3", "layer1.7", "layer2.2", "layer2.5", "layer3.0", "layer3.4"],
            125_485_696,
        ),
        (
            MobileNetV2,
            96,
            ["features.2", "features.4", "features.8", "features.11", "features.14", "features.16"],
            None,
        ),
    ],
    ids=["resnet-56", "mobilenet-v2"],
)
def test_well_known_networks(make: Any, side: int, names: Sequence[str], macs: int | None) -> None:
    model, x = make().eval(), torch.zeros(1, 3, side, side)
    found = suggest_exits(model, x, 6)
    assert found.names == names
    assert macs is None or found.macs == macs
    for k, place in enumerate(found.places, start=1):
        assert place.share == pytest.approx(k / 7, abs=0.04)
    with torch.no_grad():
        net = off.MultiExit(model, found.names, example_input=x).eval()
        features, logits = net.forward_features(x)
    assert [tuple(f.shape[1:]) for f in features] == [p.shape for p in found.places]
    assert [f.nbytes for f in features] == [p.cut_bytes for p in found.places]
    assert {tuple(z.shape) for z in logits} == {tuple(logits[-1].shape)}
