"""The studies' networks, counted by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from offramp.exits.network import MultiExit
from offramp.reproduce.networks import (
    he_normal_,
    mlp,
    narrowed,
    small_conv,
    wide_conv,
    with_exit,
)
from offramp.sparse.block import BlockPattern
from offramp.sparse.config import SparsityConfig
from offramp.sparse.counting import Counts, count
from offramp.sparse.layers import SparseLinear
from offramp.sparse.sparsify import sparsify_

ROW, GREY, COLOUR = torch.zeros(1, 6), torch.zeros(1, 1, 28, 28), torch.zeros(1, 3, 32, 32)


def test_a_fully_connected_network_is_counted() -> None:
    net = mlp((6, 4, 5, 3))
    assert [type(layer) for layer in net] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert count(net, ROW) == Counts(6 * 4 + 4 * 5 + 5 * 3, 6 * 4 + 4 * 5 + 5 * 3)


def test_a_small_convolutional_network_is_counted() -> None:
    weights = [2 * 1 * 25, 3 * 2 * 9, 4 * 3 * 9, 4 * 16 * 5, 5 * 10]
    places = [14 * 14, 7 * 7, 4 * 4, 1, 1]
    macs = sum(w * p for w, p in zip(weights, places, strict=True))
    assert count(small_conv((2, 3, 4, 5)), GREY) == Counts(sum(weights), macs) == Counts(582, 14_544)


def test_a_wide_convolutional_network_is_counted() -> None:
    weights = [2 * 3 * 9, 3 * 2 * 9, 4 * 3 * 9, 5 * 4 * 9, 5 * 10]
    places = [16 * 16, 16 * 16, 8 * 8, 4 * 4, 1]
    macs = sum(w * p for w, p in zip(weights, places, strict=True))
    assert count(wide_conv((2, 3, 4, 5)), COLOUR) == Counts(sum(weights), macs) == Counts(446, 37_490)


def test_classes_are_as_told() -> None:
    assert small_conv((1, 1, 1, 1), classes=7)(GREY).shape == (1, 7)
    assert wide_conv((1, 1, 1, 1), classes=7).eval()(COLOUR).shape == (1, 7)


def test_sparse_layers_count_what_they_hold() -> None:
    net = mlp((6, 4, 3))
    net[0] = SparseLinear.from_dense(net[0], BlockPattern(6, 4, 1, 2))
    assert count(net, ROW) == Counts(12 + 12, 12 + 12)
    conv = small_conv((16, 32, 64, 32))
    dense = count(conv, GREY)
    report = sparsify_(conv, SparsityConfig(density=0.5), example_input=GREY)
    assert report.macs is not None
    assert count(conv, GREY) == Counts(report.weights, report.macs)
    assert report.weights < dense.weights


def test_counting_changes_nothing() -> None:
    net = wide_conv((2, 2, 2, 2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count(net, torch.ones(1, 3, 32, 32))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "example", "width"),
    [(mlp((6, 4, 3)), ROW, 4), (small_conv((2, 3, 4, 5)), GREY, 3), (wide_conv((2, 3, 4, 5)), COLOUR, 3)],
    ids=["mlp", "small", "wide"],
)
def test_an_exit_adds_one_linear_layer(net: nn.Sequential, example: torch.Tensor, width: int) -> None:
    before = count(net, example)
    exits = with_exit(net, "1", example, classes=3)
    assert isinstance(exits, MultiExit)
    assert exits.exit_names == ("1",)
    early, last = exits.eval()(example)
    assert early.shape == (1, 3)
    assert torch.equal(last, net(example))
    assert count(exits, example) == Counts(before.weights + 3 * width, before.macs + 3 * width)


# --- Narrow rivals ---------------------------------------------------------------------------------------


class Sized(nn.Module):
    """A network that is nothing but its widths."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)


def connections(net: nn.Module) -> int:
    assert isinstance(net, Sized)
    every = (8, *net.widths, 10)
    return sum(a * b for a, b in itertools.pairwise(every))


@pytest.mark.parametrize("widths", [(40,), (40, 10), (10, 40, 25), (7, 7)])
@pytest.mark.parametrize("part", [0.02, 0.1, 0.25, 0.5, 0.9, 1.0, 3.0])
def test_narrow_networks_cost_as_much_as_they_may_and_no_more(widths: tuple[int, ...], part: float) -> None:
    smallest = connections(Sized([1] * len(widths)))
    target = max(smallest, int(part * connections(Sized(widths))))
    found = narrowed(widths, Sized, connections, target)
    assert connections(Sized(found)) <= target
    widest = max(widths)
    tried = {tuple(max(1, round(w * n / widest)) for w in widths) for n in range(1, widest + 1)}
    allowed = [w for w in tried if connections(Sized(w)) <= target]
    assert found in tried
    assert connections(Sized(found)) == max(connections(Sized(w)) for w in allowed)


def test_narrow_networks_are_never_wider_than_the_full_one() -> None:
    assert narrowed((40, 10), Sized, connections, 10**9) == (40, 10)


def test_narrow_networks_keep_the_proportions() -> None:
    assert narrowed((400, 100), Sized, connections, connections(Sized((52, 13)))) == (52, 13)
    assert narrowed((40, 2), Sized, connections, connections(Sized((10, 1)))) == (10, 1)  # never without neurons


# --- Initial weights -------------------------------------------------------------------------------------


def test_weights_are_drawn_by_the_fan_ins_that_are_given() -> None:
    torch.manual_seed(0)
    net = mlp((200, 100, 50))
    he_normal_(net, (800, 2), bias=0.1)
    for layer, fan_in in ((net[0], 800), (net[2], 2)):
        assert isinstance(layer, nn.Linear)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
        assert layer.weight.mean().item() == pytest.approx(0, abs=4 * math.sqrt(2 / fan_in / layer.weight.numel()))
        assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.1))


def test_another_number_of_fan_ins_than_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        he_normal_(mlp((6, 4, 3)), (6,), bias=0.1)


def test_layers_without_biases_are_drawn_too() -> None:
    layer = nn.Linear(4, 4, bias=False)
    before = layer.weight.clone()
    he_normal_(nn.Sequential(layer), (4,), bias=0.1)
    assert not torch.equal(layer.weight, before)
    assert layer.bias is None
