from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import ConfigError, LayerNameError
from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit


def backbone() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 16, 3)),
    )


X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def wrapped() -> MultiExit:
    return MultiExit(backbone(), {"0": PooledHead(3, 2), "1": PooledHead(3)}, example_input=X)


class Calls(nn.Module):
    """Runs its children in an order of one's own."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


def test_outputs_equal_those_computed_by_hand() -> None:
    net = wrapped().eval()
    first = net.model[0](X)
    second = net.model[1](first)
    last = net.model[2](second)
    net(X)  # a pass leaves nothing behind for the next
    features, logits = net.forward_features(X)
    for got, expected in zip(features, (first, second), strict=True):
        assert torch.equal(got, expected)
    for got, expected in zip(logits, (net.heads[0](first), net.heads[1](second), last), strict=True):
        assert torch.equal(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(net(X), logits, strict=True))


def test_gradients_reach_the_backbone_from_every_exit() -> None:
    net = wrapped()
    for i in range(3):
        net.zero_grad()
        net(X)[i].sum().backward()
        assert net.model[0][0].weight.grad is not None
        assert net.model[0][0].weight.grad.abs().sum() > 0


def test_exit_parameters_are_the_heads() -> None:
    net = wrapped()
    assert [tuple(p.shape) for p in net.exit_parameters()] == [(3, 16), (3,), (3, 8), (3,)]


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    model = nn.ModuleDict({"layer1": nn.Linear(2, 2), "layer2": nn.Linear(2, 2)})
    with pytest.raises(LayerNameError, match=r"no submodule 'layr1'; did you mean layer1"):
        MultiExit(model, {"layr1": PooledHead(2)})
    with pytest.raises(LayerNameError, match=r"did you mean layer1, layer2"):
        MultiExit(model, {"qqq": PooledHead(2)})


def test_no_exits_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one exit"):
        MultiExit(backbone(), {})


@pytest.mark.parametrize("early", [True, False])
def test_exits_out_of_order_are_refused(early: bool) -> None:
    exits: dict[str, nn.Module] = {"b": PooledHead(2), "a": PooledHead(2)}
    with pytest.raises(ConfigError, match="in the order in which they run: a, b"):
        MultiExit(Calls("abc"), exits, example_input=torch.zeros(1, 4) if early else None)(torch.zeros(1, 4))


def test_a_submodule_that_does_not_run_is_refused() -> None:
    net = MultiExit(Calls("ac"), {"a": PooledHead(2), "b": PooledHead(2)})
    with pytest.raises(ConfigError, match="'b' did not run"):
        net(torch.zeros(1, 4))


def test_a_submodule_that_runs_twice_is_refused() -> None:
    net = MultiExit(Calls("aab"), {"a": PooledHead(2)})
    with pytest.raises(ConfigError, match="'a' runs more than once"):
        net(torch.zeros(1, 4))


def test_an_output_that_is_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.last = Pair(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.pair(x)[0])
            return out

    with pytest.raises(ConfigError, match="'pair' gives a tuple; an exit needs one tensor"):
        MultiExit(Net(), {"pair": PooledHead(2)}, example_input=torch.zeros(1, 4))


def test_after_a_failed_pass_the_next_one_works() -> None:
    net = wrapped().eval()
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 1, 5, 5))  # fails in the last stage, with features seen
    assert len(net(X)) == 3


def test_the_wrapped_model_still_runs_on_its_own() -> None:
    net = wrapped().eval()
    expected = net(X)[-1]
    for _ in range(2):
        assert torch.equal(net.model(X), expected)
    assert torch.equal(net(X)[-1], expected)


def test_two_wrappers_of_one_model_do_not_disturb_each_other() -> None:
    model = backbone().eval()
    nets = [MultiExit(model, {name: PooledHead(3)}, example_input=X).eval() for name in ("0", "1")]
    for _ in range(2):
        for net in nets:
            assert torch.equal(net(X)[-1], model[2](model[1](model[0](X))))


def twins(net: MultiExit) -> list[Any]:
    return [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]


def test_copies_are_equal_and_independent() -> None:
    net = wrapped().eval()
    expected = net(X)
    for twin in twins(net):
        assert all(torch.equal(a, b) for a, b in zip(twin(X), expected, strict=True))
        with torch.no_grad():
            for p in twin.parameters():
                p.add_(1)
        assert not any(torch.equal(a, b) for a, b in zip(twin(X), expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(net(X), expected, strict=True))


def test_materialising_changes_nothing_else() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    model.train()
    model[1].eval()
    running = model[1].running_mean.clone()
    net = MultiExit(model, {"1": PooledHead(3)})
    net.materialise(X)
    assert net.heads[0].linear.in_features == 4
    assert torch.equal(model[1].running_mean, running)
    assert (net.training, model.training, model[1].training) == (True, True, False)


def test_a_state_dict_goes_round() -> None:
    net, other = wrapped().eval(), wrapped().eval()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    other.load_state_dict(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(net(X), other(X), strict=True))
