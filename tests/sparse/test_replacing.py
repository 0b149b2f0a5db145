"""What `sparsify_` must not break: hooks, shared and tied weights, fused paths, windows folded into the batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.sparse.config import SparsityConfig
from offramp.sparse.convolution import SparseConv1d
from offramp.sparse.layers import SparseLayer, SparseLinear
from offramp.sparse.sparsify import sparsify_


def encoder(**changes: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0, **changes)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not changes.get("norm_first", False))


def sparse_names(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, SparseLayer)]


TOKENS = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])

FEED_FORWARD: list[dict[str, Any]] = [
    {},
    {"overrides": {"layers.0.*": None, "layers.1.*": 0.25}},
    {"overrides": {"layers.0.linear1": None}},
]


@pytest.mark.parametrize("settings", FEED_FORWARD, ids=str)
@pytest.mark.parametrize("changes", [{}, {"norm_first": True}, {"activation": "gelu"}], ids=str)
@pytest.mark.parametrize("mask", [None, PADDING], ids=["whole", "padded"])
def test_the_fused_path_of_an_encoder_is_not_taken(
    changes: dict[str, Any], settings: dict[str, Any], mask: Tensor | None
) -> None:
    """It would read dense weights. Without gradients in evaluation mode it is torch's first choice."""
    model = encoder(**changes)
    sparsify_(model, SparsityConfig(**settings))
    assert sparse_names(model)
    model.eval()
    slow = model(TOKENS, src_key_padding_mask=mask)
    with torch.no_grad():
        fast = model(TOKENS, src_key_padding_mask=mask)
    kept = torch.ones(3, 5, dtype=torch.bool) if mask is None else ~mask
    torch.testing.assert_close(fast[kept], slow[kept])
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(TOKENS, src_key_padding_mask=mask)[kept], slow[kept])


def test_an_encoder_that_stays_dense_keeps_its_fused_path() -> None:
    model = nn.ModuleDict({"encoder": encoder(), "fc": nn.Linear(32, 32)})
    sparsify_(model, SparsityConfig(overrides={"encoder.*": None, "fc": 0.25}))
    assert isinstance(model["encoder"], nn.TransformerEncoder)
    assert model["encoder"].use_nested_tensor


def test_hooks_stay_with_the_layer() -> None:
    """Whether they were put there before, and their handles still take them away."""
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    calls: list[str] = []
    handles = [
        model[0].register_forward_pre_hook(lambda *_: calls.append("before")),
        model[0].register_forward_hook(lambda *_, **__: calls.append("after"), with_kwargs=True),
        model[0].register_full_backward_hook(lambda *_: calls.append("back")),
    ]
    sparsify_(model)
    assert sparse_names(model) == ["0"]
    model(torch.zeros(1, 32, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "back"]
    for handle in handles:
        handle.remove()
    model(torch.zeros(1, 32, requires_grad=True)).sum().backward()
    assert len(calls) == 3


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, nn.utils.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_a_weight_that_is_made_at_every_call_is_left_alone(norm: Any) -> None:
    model = nn.Sequential(norm(nn.Linear(32, 32)), nn.Linear(32, 32), nn.Linear(32, 4))
    first = model[0]
    report = sparsify_(model)
    assert model[0] is first
    assert [layer.name for layer in report.layers] == ["0", "1", "2"]
    assert report.layers[0].note == "a class of its own, kept dense"
    assert sparse_names(model) == ["1"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.body = nn.Linear(32, 32)
        self.unembed = nn.Linear(32, 64, bias=False)
        self.unembed.weight = self.embed.weight
        self.head = nn.Linear(64, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.unembed(self.body(self.embed(tokens))))


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    report = sparsify_(model, example_input=torch.zeros(2, 5, dtype=torch.long))
    assert model.unembed.weight is model.embed.weight
    assert sparse_names(model) == ["body"]
    notes = {layer.name: layer.note for layer in report.layers}
    assert notes["unembed"] == "shares its weight with another module, kept dense"
    assert [layer.macs for layer in report.layers] == [5 * 256, 5 * 2048, 5 * 256]


def test_tied_weights_part_only_where_told() -> None:
    model = Tied()
    sparsify_(model, SparsityConfig(overrides={"unembed": 0.25}))
    assert isinstance(model.unembed, SparseLinear)
    assert isinstance(model.embed.weight, nn.Parameter)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.again(x)))


def test_a_layer_that_runs_twice_counts_twice_and_trains() -> None:
    model = Twice()
    report = sparsify_(model, example_input=torch.zeros(2, 32))
    assert [layer.macs for layer in report.layers] == [2 * 256, 128]
    model(torch.ones(2, 32)).sum().backward()
    assert model.again.weight.grad is not None
    assert model.again.weight.grad.shape == model.again.weight.shape


class Windows(nn.Module):
    """Folds four windows of each sample into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(32, 32)
        self.table = nn.Linear(2, 2)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inside(x.reshape(-1, 3, 32)) + self.table(torch.zeros(5, 2)).sum()
        return self.head(y.reshape(len(x), 12, 32).mean(1))


@pytest.mark.parametrize("n", [1, 5])
def test_windows_and_tokens_belong_to_their_sample(n: int) -> None:
    config = SparsityConfig(overrides={"table": None})
    report = sparsify_(Windows(), config, example_input=torch.zeros(n, 12, 32))
    places = [layer.macs_dense // layer.weights_dense for layer in report.layers if layer.macs_dense is not None]
    assert places[0] == 12
    assert places[1] == {1: 5, 5: 1}[n]  # read once per batch
    assert places[2] == 1


EXAMPLES: list[Any] = [torch.zeros(2, 32), (torch.zeros(2, 32),), {"x": torch.zeros(2, 32)}, torch.zeros(32)]


@pytest.mark.parametrize("example", EXAMPLES, ids=["tensor", "tuple", "dict", "one sample"])
def test_examples_of_every_form(example: Any) -> None:
    report = sparsify_(Twice(), example_input=example)
    assert report.macs_dense is not None
    assert report.macs_dense >= 1024 + 128


def test_an_unused_layer_costs_no_macs() -> None:
    model = Twice()
    model.register_module("spare", nn.Linear(32, 32))
    report = sparsify_(model, SparsityConfig(overrides={"head": None}), example_input=torch.zeros(2, 32))
    assert {layer.name: layer.macs for layer in report.layers}["spare"] == 0


def test_a_sparse_model_can_be_sparsified_further() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4))
    sparsify_(model, SparsityConfig(overrides={"1": None}))
    first = model[0]
    report = sparsify_(model)
    assert model[0] is first
    assert [layer.name for layer in report.layers] == ["1", "2"]
    assert sparse_names(model) == ["0", "1"]


def test_one_dimensional_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv1d(4, 32, 5, padding=2),
        nn.Conv1d(32, 64, 3, stride=2),
        nn.Conv1d(64, 64, 3, groups=64),
        nn.Flatten(),
    )
    model.append(nn.Linear(64 * 6, 8))
    x = torch.randn(2, 4, 17)
    shape = model(x).shape
    report = sparsify_(model, example_input=x)
    assert isinstance(model[1], SparseConv1d)
    assert sparse_names(model) == ["1"]
    assert model(x).shape == shape
    assert [layer.macs for layer in report.layers] == [
        4 * 32 * 5 * 17,
        32 * 64 * 3 * 8 // 4,
        64 * 3 * 6,
        64 * 6 * 8,
    ]
