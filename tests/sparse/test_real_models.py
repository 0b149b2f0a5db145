"""`sparsify_` on whole networks whose code knows nothing of it: transformers, residual and 1-D conv nets."""

from __future__ import annotations

import copy
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from published_code import WEIGHTS, original
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import offramp as off
from offramp.bundle.codec import OPSET
from offramp.bundle.export import quiet_exporter
from offramp.errors import DensityError
from offramp.runtime.stages import Stages
from offramp.sparse.layers import SparseLayer
from offramp.sparse.report import LayerReport, SparsityReport
from offramp.sparse.sparsify import sparsify_

FIRST = "first convolution, kept dense"
LAST = "final classifier, kept dense"
DEPTHWISE = "depthwise, kept dense"
ATTENTION = "attention's own projections, kept dense"
TIED = "shares its weight with another module, kept dense"


needs_weights = pytest.mark.skipif(
    not (WEIGHTS / "resnet_cifar_torch.py").is_file(),
    reason="published networks are needed: name the folder that holds `weights` in OFFRAMP_DATA",
)


# --- the networks ----------------------------------------------------------------------------------------


class TorchViT(nn.Module):
    """Patches through torch's own encoder, which has a fused path of its own in evaluation."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, stride=4)
        self.places = nn.Parameter(torch.randn(1, 4, 64) / 10)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        tokens = self.encoder(tokens, src_key_padding_mask=padding)
        if padding is not None:
            tokens = tokens.masked_fill(padding.unsqueeze(-1), 0.0)
        logits: Tensor = self.head(tokens.mean(1))
        return logits


class Attention(nn.Module):
    """Multi-head attention from four linear layers; `mask` is true where a token may be looked at."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -1e4)
        y: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return y


class EncoderBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width, 4)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        y: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return y


class OwnViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 64) / 10)
        self.places = nn.Parameter(torch.randn(1, 5, 64) / 10)
        self.blocks = nn.Sequential(EncoderBlock(64), EncoderBlock(64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        logits: Tensor = self.head(self.blocks(tokens)[:, 0])
        return logits


class Bert(nn.Module):
    """Named inputs, two outputs, and a decoder that shares the embedding's weight."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(48, 64), nn.Embedding(8, 64)
        self.layers = nn.ModuleList([EncoderBlock(64) for _ in range(depth)])
        self.decoder = nn.Linear(64, 48)
        self.decoder.weight = self.words.weight
        self.pooler, self.classifier = nn.Linear(64, 64), nn.Linear(64, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.decoder(x), self.classifier(torch.tanh(self.pooler(x[:, 0])))


class ResidualNet(nn.Module):
    """Grouped, depthwise and pointwise convolutions between shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.grouped = nn.Sequential(
            nn.Conv2d(32, 64, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.shortcut = nn.Conv2d(32, 64, 1, stride=2)
        self.separable = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU6(),
            nn.Conv2d(64, 64, 1, bias=False),
            nn.BatchNorm2d(64),
        )
        self.deep = nn.Sequential(nn.Conv2d(64, 128, (3, 1), padding="same"), nn.Hardswish())
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.grouped(x) + self.shortcut(x))
        x = self.deep(x + self.separable(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def one_dimensional() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 32, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(32, 64, 3, stride=2, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv1d(64, 64, 3, padding=2, dilation=2, groups=64),
        nn.Conv1d(64, 64, 1),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(64, 6),
    )


def images(n: int) -> dict[str, Tensor]:
    return {"x": torch.randn(n, 3, 8, 8)}


def sentences(n: int) -> dict[str, Tensor]:
    lengths = torch.arange(n).remainder(3).add(6)
    return {
        "input_ids": torch.randint(48, (n, 8)),
        "attention_mask": torch.arange(8).expand(n, -1) < lengths.unsqueeze(1),
    }


@dataclass(frozen=True)
class Case:
    """One network: how it is made, its batches by argument name, and what must stay dense and why."""

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], dict[str, Tensor]]
    dense: dict[str, str]
    convolutional: bool = False

    def sparse(self) -> tuple[nn.Module, SparsityReport]:
        torch.manual_seed(0)
        model = self.make()
        return model, sparsify_(model, example_input=self.batch(2))


CASES = (
    Case(
        "vit, torch's encoder",
        TorchViT,
        images,
        {"patches": FIRST, "head": LAST, **{f"encoder.layers.{i}.self_attn": ATTENTION for i in (0, 1)}},
    ),
    Case("vit, own attention", OwnViT, images, {"patches": FIRST, "head": LAST}),
    Case("bert", Bert, sentences, {"decoder": TIED, "classifier": LAST}),
    Case(
        "residual",
        ResidualNet,
        images,
        {"stem.0": FIRST, "separable.0": DEPTHWISE, "fc": LAST},
        convolutional=True,
    ),
    Case(
        "one-dimensional",
        one_dimensional,
        lambda n: {"input": torch.randn(n, 4, 20)},
        {"0": FIRST, "4": DEPTHWISE, "8": LAST},
        convolutional=True,
    ),
)


def name_of(case: Case) -> str:
    return case.name.replace(" ", "-")


@pytest.fixture(params=CASES, ids=name_of)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    found = model(**batch)
    return found if isinstance(found, tuple) else (found,)


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Every sample and token should be told to be the first class."""
    found = [
        F.cross_entropy(o.flatten(0, -2), o.new_zeros(o[..., 0].numel()).long()) for o in outputs(model, batch)
    ]
    return torch.stack(found).sum()


def counted_macs(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """One sample's multiply-accumulates as torch counts them."""
    n = len(next(iter(batch.values())))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(**batch)
    total = counter.get_total_flops()
    assert total % (2 * n) == 0
    return int(total) // (2 * n)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def layer_weights(model: nn.Module) -> dict[str, int]:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    found = {
        name: m.weight.numel()
        for name, m in model.named_modules()
        if type(m) in kinds or isinstance(m, SparseLayer)
    }
    for name, m in model.named_modules():
        if isinstance(m, nn.MultiheadAttention):
            found[name] = sum(p.numel() for p in m.parameters() if p.dim() == 2)
    return found


def by_name(report: SparsityReport) -> dict[str, LayerReport]:
    return {layer.name: layer for layer in report.layers}


def check_totals(model: nn.Module, dense: nn.Module, report: SparsityReport) -> None:
    """The report against the network before and after."""
    assert {layer.name: layer.weights for layer in report.layers} == layer_weights(model)
    assert {layer.name: layer.weights_dense for layer in report.layers} == layer_weights(dense)
    assert report.weights_dense - report.weights == parameters(dense) - parameters(model) > 0
    assert report.density == pytest.approx(sum(layer_weights(model).values()) / sum(layer_weights(dense).values()))


def check_layouts(report: SparsityReport) -> None:
    """Neighbouring sparse layers alternate."""
    found = [layer.layout for layer in report.layers if layer.kind.startswith("Sparse")]
    assert len(found) >= 2
    assert found == [("contiguous", "strided")[i % 2] for i in range(len(found))]


# --- every network ---------------------------------------------------------------------------------------


def test_shapes_stay(case: Case) -> None:
    batch = case.batch(3)
    expected = [o.shape for o in outputs(case.make(), batch)]
    model, _ = case.sparse()
    for training in (True, False):
        assert [o.shape for o in outputs(model.train(training), batch)] == expected
    with torch.no_grad():
        assert [o.shape for o in outputs(model, batch)] == expected


def test_no_fused_path_is_taken(case: Case) -> None:
    """Without gradients torch may leave a module's code for a kernel of its own, which reads dense weights."""
    model, _ = case.sparse()
    batch = case.batch(4)
    if not case.convolutional:  # no batch normalisation and no dropout: the mode changes nothing
        trained = outputs(model.train(), batch)
        for got, expected in zip(outputs(model.eval(), batch), trained, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    expected_outputs = outputs(model.eval(), batch)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            got_outputs = outputs(model, batch)
        for got, expected in zip(got_outputs, expected_outputs, strict=True):
            torch.testing.assert_close(got.clone(), expected.detach(), atol=1e-6, rtol=1e-5)


def test_samples_do_not_touch_each_other(case: Case) -> None:
    model, _ = case.sparse()
    batch = case.batch(4)
    with torch.no_grad():
        whole = outputs(model.eval(), batch)
        for i in range(4):
            alone = outputs(model, {key: value[i : i + 1] for key, value in batch.items()})
            for got, expected in zip(alone, whole, strict=True):
                torch.testing.assert_close(got, expected[i : i + 1], atol=1e-5, rtol=1e-4)


def test_the_same_as_with_dense_layers(case: Case) -> None:
    """Oracle: put every sparse layer's dense form in its place."""
    model, _ = case.sparse()
    oracle = copy.deepcopy(model)
    for name, layer in list(oracle.named_modules()):
        if isinstance(layer, SparseLayer):
            parent, _, child = name.rpartition(".")
            setattr(oracle.get_submodule(parent), child, layer.to_dense())
    batch = case.batch(3)
    for got, expected in zip(outputs(model, batch), outputs(oracle, batch), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_parameter(case: Case) -> None:
    model, _ = case.sparse()
    out = outputs(model.train(), case.batch(4))
    sum((o * torch.randn_like(o)).sum() for o in out).backward()  # type: ignore[union-attr]
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_what_stays_dense_and_why(case: Case) -> None:
    model, report = case.sparse()
    rows = by_name(report)
    kept = {name: row.note for name, row in rows.items() if not row.kind.startswith("Sparse")}
    assert kept == case.dense
    for name, row in rows.items():
        layer = model.get_submodule(name)
        assert type(layer).__name__ == row.kind
        assert isinstance(layer, SparseLayer) == (name not in case.dense)
        assert row.given == (1 if name in case.dense else 0.25)


def test_totals_are_what_the_network_holds(case: Case) -> None:
    model, report = case.sparse()
    check_totals(model, case.make(), report)


@pytest.mark.parametrize("case", [c for c in CASES if c.convolutional], ids=name_of)
def test_macs_are_what_torch_counts(case: Case) -> None:
    """Without attention, whose products torch counts too."""
    model, report = case.sparse()
    batch = case.batch(2)
    assert report.macs == counted_macs(model, batch)
    assert report.macs_dense == counted_macs(case.make(), batch)


@pytest.mark.parametrize("case", [c for c in CASES if not c.convolutional], ids=name_of)
def test_every_token_counts(case: Case) -> None:
    _, report = case.sparse()
    tokens = {"vit, torch's encoder": 4, "vit, own attention": 5, "bert": 8}[case.name]
    once = {"head", "pooler", "classifier"}
    for name, row in by_name(report).items():
        places = 4 if name == "patches" else 1 if name in once else tokens
        assert (row.macs_dense, row.macs) == (row.weights_dense * places, row.weights * places), name


def test_the_report_prints(case: Case) -> None:
    _, report = case.sparse()
    shown = str(report)
    assert "Predefined sparsity" in shown
    assert f"{report.density:.3f}" in shown
    names = "".join(line.split("│")[1].strip() for line in shown.splitlines() if line.count("│") > 2)
    assert all(layer.name in names for layer in report.layers)  # a long one is wrapped


def test_neighbours_alternate_layouts(case: Case) -> None:
    check_layouts(case.sparse()[1])


def test_a_checkpoint_goes_round(case: Case) -> None:
    model, _ = case.sparse()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = case.make()
    sparsify_(other)
    other.load_state_dict(torch.load(file, weights_only=True))
    batch = case.batch(2)
    for got, expected in zip(outputs(other.eval(), batch), outputs(model.eval(), batch), strict=True):
        assert torch.equal(got, expected)


def test_a_copy_computes_the_same(case: Case) -> None:
    model, _ = case.sparse()
    batch = case.batch(2)
    with torch.no_grad():
        for got, expected in zip(
            outputs(copy.deepcopy(model).eval(), batch), outputs(model.eval(), batch), strict=True
        ):
            assert torch.equal(got, expected)


def test_a_few_steps_lower_the_loss(case: Case) -> None:
    model, _ = case.sparse()
    model.train()
    batch = case.batch(8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        found = loss(model, batch)
        losses.append(found.item())
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
    assert losses[2] < losses[1] < losses[0]
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


# --- torch's own encoder ---------------------------------------------------------------------------------


def padding_masks() -> list[Tensor]:
    left = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]).bool()
    return [left, left.flip(1)]


@pytest.mark.parametrize("mask", padding_masks(), ids=["left-aligned", "right-aligned"])
@pytest.mark.parametrize(
    "overrides", [{}, {"encoder.layers.0.*": None}, {"encoder.layers.1.*": None}], ids=["all", "second", "first"]
)
def test_an_encoder_with_padding(mask: Tensor, overrides: dict[str, float | None]) -> None:
    """In evaluation nn.TransformerEncoder packs left-aligned tokens into a nested tensor for its fused path."""
    model = TorchViT()
    sparsify_(model, off.SparsityConfig(overrides=overrides))
    x = images(3)["x"]
    expected = model.train()(x, mask).detach()
    model.eval()
    torch.testing.assert_close(model(x, mask).detach(), expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x, mask), expected, atol=1e-5, rtol=1e-4)


def test_macs_of_an_encoder_with_padding() -> None:
    """Padded tokens are computed with too."""
    x = images(3)["x"]
    plain = sparsify_(TorchViT(), example_input=x)
    for mask in padding_masks():
        assert sparsify_(TorchViT(), example_input={"x": x, "padding": mask}) == plain
        assert sparsify_(TorchViT(), example_input=(x, mask)) == plain


class Windows(nn.Module):
    """Attention-like layers over windows of 4×4 places, which are folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 64, 1), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).unflatten(3, (-1, 4)).unflatten(2, (-1, 4))  # (N, C, rows, 4, columns, 4)
        x = self.mix(x.permute(0, 2, 4, 3, 5, 1).flatten(0, 2).flatten(1, 2)).unflatten(0, (-1, 4))
        logits: Tensor = self.head(x.mean((1, 2)))
        return logits


def test_macs_of_windows_that_are_folded_into_the_batch() -> None:
    model = Windows()
    batch = images(3)
    report = sparsify_(model, example_input=batch)
    assert report.macs_dense == counted_macs(Windows(), batch)
    assert report.macs == counted_macs(model, batch)
    assert by_name(report)["mix"].macs_dense == 64 * 64 * 64


def test_an_encoder_without_sparse_layers_keeps_its_fused_path() -> None:
    model = nn.Sequential(nn.Linear(32, 64), TorchViT().encoder, nn.Linear(64, 64), nn.Linear(64, 4))
    sparsify_(model, off.SparsityConfig(overrides={"1.*": None}))
    encoder = model[1]
    assert isinstance(encoder, nn.TransformerEncoder)
    assert encoder.use_nested_tensor
    assert all(layer.activation_relu_or_gelu == 2 for layer in encoder.layers)


# --- ONNX and bundles ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "batch_of"), [(TorchViT, images), (Bert, sentences)], ids=["vit", "bert"])
def test_onnx_equals_torch(make: Callable[[int], nn.Module], batch_of: Callable[[int], dict[str, Tensor]]) -> None:
    model = make(1).eval()
    sparsify_(model)
    batch = batch_of(2)
    size = torch.export.Dim("N", min=1)
    with quiet_exporter():
        program = torch.onnx.export(
            model,
            (),
            kwargs=batch,
            dynamo=True,
            dynamic_shapes={name: {0: size} for name in batch},
            input_names=list(batch),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    for n in (1, 2, 5):
        batch = batch_of(n)
        got = session.run(None, {name: value.numpy() for name, value in batch.items()})
        with torch.no_grad():
            for one, expected in zip(got, outputs(model, batch), strict=True):
                np.testing.assert_allclose(one, expected.numpy(), atol=1e-4, rtol=1e-4)


def check_bundle(model: nn.Module, exits: tuple[str, ...], x: Tensor, path: Path) -> None:
    """Early exits, export, and the chained stages against torch, for one sample and for several."""
    net = off.MultiExit(model, {name: off.PooledHead(10) for name in exits}, example_input=x[:1])
    bundle = off.export(net, x[:1], path)
    assert len(bundle.manifest.stages) == len(exits) + 1
    stages = Stages(bundle)
    for part in (x, x[:1]):
        with torch.no_grad():
            expected = [logits.numpy() for logits in net.eval()(part)]
        tensors, found = [part.numpy()], []
        for i in range(bundle.held):
            tensors, _ = stages.stage(i, tensors)
            if i < bundle.manifest.last:
                found.append(stages.exit(i, tensors)[0])
        for got, wanted in zip([*found, tensors[0]], expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_bundle_of_the_residual_net(tmp_path: Path) -> None:
    model, _ = CASES[3].sparse()
    check_bundle(model, ("stem", "deep"), images(3)["x"], tmp_path / "residual.bundle")


# --- published networks ----------------------------------------------------------------------------------


def cifar_resnet(depth: int) -> nn.Module:
    (file,) = WEIGHTS.glob(f"resnet{depth}-*.th")
    model: nn.Module = original("resnet_cifar_torch.py").load(file, depth)
    return model


def mobilenet() -> nn.Module:
    code = original("mobilenetv2_torch.py")
    model: nn.Module = code.load_int8_npz(WEIGHTS / "mobilenetv2_1.0_224_imagenet_int8.npz", pad="torch")
    return model


def tiny_resnet() -> nn.Module:
    model: nn.Module = original("resnet8_torch.py").ResNet8()
    model.load_state_dict(torch.load(WEIGHTS / "resnet8_mlperftiny_cifar10.pt", weights_only=True))
    return model.eval()


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """Convolutions of a class of their own, which stay as they are, become torch's."""
    for name, m in list(model.named_modules()):
        if isinstance(m, nn.Conv2d) and type(m) is not nn.Conv2d:
            plain = nn.Conv2d(
                m.in_channels,
                m.out_channels,
                m.kernel_size,  # type: ignore[arg-type]
                stride=m.stride,  # type: ignore[arg-type]
                padding=(m.kernel_size[0] - 1) // 2,
                groups=m.groups,
                bias=m.bias is not None,
            )
            plain.load_state_dict(m.state_dict())
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)
    return model


def check_network(model: nn.Module, x: Tensor, dense_layers: dict[str, str]) -> SparsityReport:
    dense = copy.deepcopy(model)
    expected = dense(x).shape
    report = sparsify_(model, example_input=x)
    check_totals(model, dense, report)
    check_layouts(report)
    assert {row.name: row.note for row in report.layers if row.given == 1} == dense_layers
    assert (report.macs, report.macs_dense) == (counted_macs(model, {"x": x}), counted_macs(dense, {"x": x}))
    out = model.train()(x)
    assert out.shape == expected
    (out * torch.randn_like(out)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    with torch.no_grad():
        assert model.eval()(x).shape == expected
    assert f"{report.density:.3f}" in str(report)
    return report


@needs_weights
@pytest.mark.parametrize("depth", [20, 32, 56])
def test_cifar_resnets(depth: int) -> None:
    x = torch.randn(2, 3, 32, 32)
    report = check_network(cifar_resnet(depth), x, {"conv1": FIRST, "linear": LAST})
    assert len(report.layers) == depth
    assert report.macs_dense == {20: 40_551_040, 32: 68_862_592, 56: 125_485_696}[depth]


@needs_weights
def test_mobilenet_v2() -> None:
    model = with_plain_convolutions(mobilenet())
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_parameters()  # folded away in the published weights: as they are, no gradient comes through
    depthwise = {
        name: DEPTHWISE for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1
    }  # fmt: skip
    assert len(depthwise) == 17
    x = torch.randn(2, 3, 64, 64)
    report = check_network(model, x, {"features.0.0": FIRST, **depthwise, "classifier.1": LAST})
    assert len(report.layers) == 53


@needs_weights
def test_the_tiny_resnet() -> None:
    model = with_plain_convolutions(tiny_resnet())
    report = check_network(model, torch.randn(2, 3, 32, 32), {"conv.0": FIRST, "fc": LAST})
    assert len(report.layers) == 10


@needs_weights
@pytest.mark.parametrize("make", [mobilenet, tiny_resnet], ids=["mobilenet-v2", "resnet8"])
def test_convolutions_with_code_of_their_own_stay(make: Callable[[], nn.Module]) -> None:
    model = make()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        sparsify_(model)
        assert torch.equal(model(x), expected)
    assert not any(isinstance(m, SparseLayer) for m in model.modules())


@needs_weights
def test_a_bundle_of_resnet_20(tmp_path: Path) -> None:
    model = cifar_resnet(20)
    sparsify_(model)
    check_bundle(model, ("layer1", "layer2"), torch.randn(3, 3, 16, 16), tmp_path / "resnet20.bundle")


# --- budgets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def budgeted() -> Callable[[str], nn.Module]:
    """Networks to share budgets in, made once each and copied."""
    made: dict[str, nn.Module] = {}

    def copied(name: str) -> nn.Module:
        if name not in made:
            made[name] = cifar_resnet(20) if name == "resnet20" else ResidualNet()
        return copy.deepcopy(made[name])

    return copied


NETS = ["residual", pytest.param("resnet20", marks=needs_weights)]


@pytest.mark.parametrize("what", ["weights", "macs"])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.77, 0.99, 1.0])
@pytest.mark.parametrize("net", NETS)
def test_a_budget_is_never_exceeded(
    budgeted: Callable[[str], nn.Module], net: str, share: float, what: str
) -> None:
    x = torch.zeros(1, 3, 16, 16)
    model = budgeted(net)
    plain = sparsify_(budgeted(net), off.SparsityConfig(density=0.5), example_input=x)
    dense = {"weights": plain.weights_dense, "macs": plain.macs_dense}[what]
    assert dense is not None
    budget = int(dense * share)
    report = sparsify_(model, off.SparsityConfig.model_validate({f"max_{what}": budget}), example_input=x)
    used = {"weights": sum(layer_weights(model).values()), "macs": counted_macs(model, {"x": x})}[what]
    assert used == {"weights": report.weights, "macs": report.macs}[what]
    assert 0.8 * budget < used <= budget
    densities = [row.given for row in report.layers if row.note not in (FIRST, LAST, DEPTHWISE)]
    assert densities[-1] >= densities[0]  # later layers are denser


@pytest.mark.parametrize("what", ["weights", "macs"])
@pytest.mark.parametrize(
    ("net", "overrides"),
    [
        ("residual", {"sep*": 0.25, "separable.0": None, "short?ut": None}),
        pytest.param(
            "resnet20", {"layer3.*": 0.25, "*.2.conv2": None, "layer1.0.conv1": 0.5}, marks=needs_weights
        ),
    ],
)
def test_overrides_within_a_budget(
    budgeted: Callable[[str], nn.Module], net: str, overrides: dict[str, float | None], what: str
) -> None:
    x = torch.zeros(1, 3, 16, 16)
    whole = sparsify_(budgeted(net), off.SparsityConfig(density=0.5), example_input=x)
    dense = {"weights": whole.weights_dense, "macs": whole.macs_dense}[what]
    assert dense is not None
    model = budgeted(net)
    config = off.SparsityConfig.model_validate({f"max_{what}": int(dense * 0.6), "overrides": overrides})
    report = sparsify_(model, config, example_input=x)
    used = {"weights": report.weights, "macs": counted_macs(model, {"x": x})}[what]
    assert used is not None
    assert used <= int(dense * 0.6)
    rows = by_name(report)
    if net == "residual":
        assert (rows["separable.3"].given, rows["separable.0"].given, rows["shortcut"].given) == (0.25, 1, 1)
    else:
        for name, row in rows.items():
            if name.endswith("2.conv2"):
                assert row.given == 1
            elif name.startswith("layer3."):
                assert row.given == 0.25
        assert rows["layer1.0.conv1"].given == 0.5


@pytest.mark.parametrize("net", NETS)
def test_the_least_budget_and_one_less(budgeted: Callable[[str], nn.Module], net: str) -> None:
    """The message of a refusal names the least; it is enough, and one less is not."""
    low, high = 1, sum(layer_weights(budgeted(net)).values())
    while low < high:
        middle = (low + high) // 2
        try:
            sparsify_(budgeted(net), off.SparsityConfig(max_weights=middle))
            high = middle
        except DensityError:
            low = middle + 1
    assert sparsify_(budgeted(net), off.SparsityConfig(max_weights=low)).weights == low
    refused = budgeted(net)
    with pytest.raises(DensityError, match=f"a budget of {low - 1:,} weights leaves .* kept dense or told"):
        sparsify_(refused, off.SparsityConfig(max_weights=low - 1))
    assert not any(isinstance(m, SparseLayer) for m in refused.modules())


# --- timm ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """timm, if it is installed; its torchvision lacks two operators where torch is a CPU build."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("timm")
    del library


def test_timm_resnet18(timm: Any) -> None:
    model = timm.create_model("resnet18", pretrained=False, num_classes=10, zero_init_last=False)
    report = check_network(model, torch.randn(2, 3, 32, 32), {"conv1": FIRST, "fc": LAST})
    assert len(report.layers) == 21


def test_timm_vit_tiny(timm: Any) -> None:
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10, img_size=64)
    dense = copy.deepcopy(model)
    x = torch.randn(2, 3, 64, 64)
    report = sparsify_(model, example_input=x)
    check_totals(model, dense, report)
    check_layouts(report)
    rows = by_name(report)
    assert (rows["patch_embed.proj"].note, rows["head"].note) == (FIRST, LAST)
    assert {row.given for row in report.layers if row.note not in (FIRST, LAST)} == {0.25}
    assert rows["blocks.0.attn.qkv"].macs_dense == 192 * 576 * 17
    trained = model.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), trained.detach(), atol=1e-5, rtol=1e-4)
    (trained * torch.randn_like(trained)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
