"""Networks with several inputs through training, evaluation and calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import offramp as off
from offramp.errors import ConfigError
from offramp.inputs import batch_size, on_device, pair, run, tensors

IDS = torch.randint(8, (96, 5), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(5) < (torch.arange(96) % 3 + 3).unsqueeze(1)
Y = (IDS[:, 0] >= 4).long()


class Block(nn.Module):
    """Hidden states and what else it knows, as transformer blocks give them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attention(x, x, x, key_padding_mask=~mask)
        return self.norm(x + y), weights


class Encoder(nn.Module):
    """Token ids and a mask to a dict of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(8, 16), nn.Linear(16, 2)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.words(ids)
        for block in self.blocks:
            x, _ = block(x, mask)
        return {"logits": self.last(x[:, 0])}


class Samples(Dataset[Any]):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        self.form = form

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, i: int) -> Any:
        return self.form(IDS[i], MASK[i]), Y[i]


FORMS = {
    "tuple": lambda ids, mask: (ids, mask),  # which a DataLoader makes a list
    "dict": lambda ids, mask: {"mask": mask, "ids": ids},
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_training_evaluation_and_calibration(form: str, frozen: bool) -> None:
    torch.manual_seed(0)
    loader = DataLoader(Samples(FORMS[form]), batch_size=16)
    example, _ = next(iter(loader))
    net = off.MultiExit(
        Encoder(), {"blocks.0": off.TokenHead(2, "first"), "blocks.1": None}, example_input=example
    )
    assert isinstance(net.heads[1], off.TokenHead)
    result = off.fit(net, loader, loader, epochs=6, lr=3e-2, frozen=frozen, progress=False, accelerator="cpu")
    seen = off.evaluate(net, loader)
    assert seen.accuracy[0] > 0.9
    assert result.history[-1] == pytest.approx(seen.accuracy)
    with torch.no_grad():
        for got, expected in zip(seen.logits, net(IDS, MASK), strict=True):
            np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    found = off.calibrate(net, loader, delta=None)
    inputs, *cuts = found.crossing
    assert {tuple(v.shape[1:]) for v in inputs} == {tuple(IDS.shape[1:]), tuple(MASK.shape[1:])}
    assert [len(cut) for cut in cuts] == [1, 1]


def test_plain_lists_of_batches_will_do() -> None:
    batches = [({"ids": IDS[i::4], "mask": MASK[i::4]}, Y[i::4]) for i in range(4)]
    net = off.MultiExit(Encoder(), ["blocks.0"], example_input=batches[0][0])
    result = off.fit(net, batches, batches, epochs=2, progress=False, accelerator="cpu")
    assert result.epochs == len(result.history) == 2
    assert len(off.evaluate(net, batches).labels) == 96


@pytest.mark.parametrize(
    "batch",
    [
        {"ids": IDS, "mask": MASK, "labels": Y},
        (IDS, MASK, Y),
        (IDS,),
        IDS,
        (IDS, 3),
        ("text", Y),
    ],
)
def test_batches_of_another_form_are_told_which_one_is_needed(batch: Any) -> None:
    net = off.MultiExit(Encoder(), {"blocks.0": off.TokenHead(2)}, example_input=(IDS, MASK))
    for use in (
        lambda: off.evaluate(net, [batch]),
        lambda: off.fit(net, [batch], epochs=1, progress=False, accelerator="cpu"),
    ):
        with pytest.raises(ConfigError, match=r"a batch is a pair of inputs and class indices.*in the loader"):
            use()


def test_inputs_of_every_form() -> None:
    a, b = torch.zeros(3, 2), torch.ones(3)
    assert run(lambda x: x, a) is a
    assert run(lambda x, y: (x, y), (a, b)) == run(lambda x, y: (x, y), {"y": b, "x": a}) == (a, b)
    assert tensors(a) == (a,)
    assert tensors((a, None, b)) == tensors({"a": a, "flag": True, "b": b}) == (a, b)
    assert [batch_size(x) for x in (a, (torch.tensor(1.0), a), {"flag": True}, torch.zeros(0, 2))] == [3, 3, 1, 0]
    moved = on_device({"a": a, "flag": True}, torch.device("meta"))
    assert moved["a"].device.type == "meta"  # type: ignore[index]
    assert moved["flag"] is True  # type: ignore[index]
    assert pair([a, b]) == (a, b)
