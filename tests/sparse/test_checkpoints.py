"""What is written down: state dicts, safetensors, pickles; and what is refused when it is read."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import PatternError
from offramp.sparse.block import BlockPattern
from offramp.sparse.layers import SparseLinear
from offramp.sparse.registry import pattern_from_recipe


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_state_dicts_go_round(case: Any) -> None:
    layer, other = case.make(), case.make()
    state = torch.load(io.BytesIO(saved(layer.state_dict())), weights_only=True)
    assert set(state) == {"weight", "bias", "_extra_state"}
    other.load_state_dict(state, strict=True)
    assert torch.equal(layer(case.inputs()), other(case.inputs()))


def test_whole_modules_go_round(case: Any) -> None:
    layer = case.make()
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(io.BytesIO(saved(layer)), weights_only=False),
    ]
    for twin in copies:
        assert twin.pattern == layer.pattern
        assert torch.equal(twin(case.inputs()), layer(case.inputs()))


def test_safetensors_go_round(case: Any, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model, other = (nn.Sequential(OrderedDict(body=case.make())) for _ in range(2))
    file = tmp_path / "model.safetensors"
    safetensors.save_file(model.state_dict(), file)
    other.load_state_dict(safetensors.load_file(file))
    assert torch.equal(model(case.inputs()), other(case.inputs()))
    safetensors.save_model(model, str(file))
    third = nn.Sequential(OrderedDict(body=case.make()))
    safetensors.load_model(third, str(file))
    assert torch.equal(model(case.inputs()), third(case.inputs()))


def test_a_checkpoint_holds_the_weights_and_no_mask(pattern_settings: dict[str, Any]) -> None:
    layer = SparseLinear(512, 512, **pattern_settings)
    sizes = {name: value.numel() * value.element_size() for name, value in layer.state_dict().items()}
    assert sizes["weight"] == 4 * layer.pattern.weights
    assert sizes["bias"] == 4 * 512
    assert sizes["_extra_state"] < 300
    assert len(saved(layer.state_dict())) < 4 * (layer.pattern.weights + 512) + 4096


def test_what_is_written_names_the_recipe_and_the_digest(case: Any) -> None:
    layer = case.make()
    state = layer.state_dict()["_extra_state"]
    assert (state.dtype, state.dim()) == (torch.uint8, 1)
    written = json.loads(bytes(state.tolist()))
    assert written == {"recipe": layer.pattern.recipe(), "digest": layer.pattern.digest}
    assert pattern_from_recipe(written["recipe"]) == layer.pattern


def test_materialised_layers_join_what_they_should(case: Any) -> None:
    """`to_empty` leaves garbage in every tensor, and the joins are in no checkpoint."""
    layer, x = case.make(), case.inputs()
    empty = case.make(device="meta").to_empty(device="cpu")
    assert torch.equal(empty.joins, layer.joins)
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), layer(x))
    assigned = case.make(device="meta")
    assigned.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(assigned(x), layer(x))
    with torch.no_grad():
        layer.joins.zero_()
    assert torch.equal(layer.to_empty(device="cpu").joins, assigned.joins)


def nested(**changes: Any) -> nn.Module:
    layer = SparseLinear(**{"in_features": 32, "out_features": 32, "density": 0.5, "blocks": 8, **changes})
    return nn.Sequential(OrderedDict(encoder=nn.Sequential(OrderedDict(fc=layer)), head=nn.Linear(32, 4)))


OTHERS: list[dict[str, Any]] = [
    {"seed": 1},
    {"layout": "strided"},
    {"density": 0.25},
    {"blocks": 4},
    {"pattern": "structured", "blocks": None},
    {"pattern": "clash_free", "blocks": None},
]


@pytest.mark.parametrize("change", OTHERS, ids=str)
@pytest.mark.parametrize("strict", [True, False])
def test_another_pattern_is_refused_with_the_layers_name(change: dict[str, Any], strict: bool) -> None:
    model = nested()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PatternError, match=r"'encoder\.fc': the checkpoint's pattern is .*pattern_from_recipe"):
        model.load_state_dict(nested(**change).state_dict(), strict=strict)
    assert torch.equal(model.state_dict()["encoder.fc.weight"], before["encoder.fc.weight"])


def test_the_way_out_that_the_message_names() -> None:
    theirs = nested(seed=5)
    state = theirs.state_dict()
    recipe = json.loads(bytes(state["encoder.fc._extra_state"].tolist()))["recipe"]
    model = nested(pattern=pattern_from_recipe(recipe))
    model.load_state_dict(state)
    x = torch.ones(2, 32)
    assert torch.equal(model(x), theirs(x))


def test_a_dense_checkpoint_is_refused_and_can_be_taken_over() -> None:
    model = nested()
    dense = nn.Sequential(
        OrderedDict(encoder=nn.Sequential(OrderedDict(fc=nn.Linear(32, 32))), head=nn.Linear(32, 4))
    )
    with pytest.raises(
        PatternError, match=r"'encoder\.fc': .* shape \(32, 32\) without .* SparseLinear.from_dense"
    ):
        model.load_state_dict(dense.state_dict())
    fc = SparseLinear.from_dense(dense.encoder.fc, model.encoder.fc.pattern)
    assert torch.equal(fc.dense_weight() != 0, model.encoder.fc.dense_weight() != 0)


UNREADABLE: list[Any] = [
    torch.tensor([1, 2, 3], dtype=torch.uint8),
    torch.zeros(0, dtype=torch.uint8),
    torch.full((5,), 255, dtype=torch.uint8),
    torch.tensor(list(b"[" * 100_000), dtype=torch.uint8),
    torch.tensor([300, -1]),
    torch.tensor([1.5]),
    torch.tensor(10**15),
    torch.zeros(2, 3, dtype=torch.uint8),
    {"recipe": {}},
    "block",
    7,
]


@pytest.mark.parametrize("state", UNREADABLE, ids=lambda s: str(s)[:40])
def test_an_unreadable_recipe_names_the_layer(state: Any) -> None:
    model = nested()
    with pytest.raises(
        PatternError, match=r"'encoder\.fc': the checkpoint holds no pattern's recipe that can be read"
    ):
        model.load_state_dict({**model.state_dict(), "encoder.fc._extra_state": state})


@pytest.mark.parametrize("text", [b"{}", b"[]", b"null", b'{"digest": 3}', b'{"digest": null}'])
def test_a_recipe_that_says_nothing_is_another_pattern(text: bytes) -> None:
    model = nested()
    state = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(PatternError, match=r"'encoder\.fc': the checkpoint's pattern is None"):
        model.load_state_dict({**model.state_dict(), "encoder.fc._extra_state": state})


def test_a_layer_that_is_the_whole_model() -> None:
    with pytest.raises(PatternError, match=r"^this layer: the checkpoint's pattern is"):
        SparseLinear(32, 32, 0.25, blocks=4).load_state_dict(SparseLinear(32, 32, 0.25, blocks=8).state_dict())


def test_a_missing_pattern_is_a_missing_key() -> None:
    model = nested()
    state = {k: v for k, v in model.state_dict().items() if "_extra_state" not in k}
    with pytest.raises(RuntimeError, match=r"Missing key.*encoder\.fc\._extra_state"):
        model.load_state_dict(state)
    model.load_state_dict(state, strict=False)


def test_the_digest_is_what_counts() -> None:
    """Two recipes that lead to the same joins are the same pattern."""
    a, b = (SparseLinear(32, 32, 1, pattern=BlockPattern(32, 32, 1, 4, seed=s)) for s in (0, 9))
    a.load_state_dict(b.state_dict())
    assert torch.equal(a.weight, b.weight)


def test_adam_holds_two_values_per_connection(case: Any) -> None:
    layer = case.make(bias=False)
    optimiser = torch.optim.Adam(layer.parameters())
    layer(case.inputs()).sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape
    optimiser.step()
    (state,) = optimiser.state.values()
    held = [v.numel() for v in state.values() if isinstance(v, Tensor) and v.dim() > 0]
    assert held == [layer.weight.numel()] * 2
