from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import ConfigError, LayerNameError
from offramp.exits.heads import ConvHead, PooledHead, TokenHead
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


def test_a_classifier_makes_the_last_exit_of_features() -> None:
    body, classifier = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 3)
    x = torch.randn(2, 6)
    net = MultiExit(body, {"0": None}, classifier=classifier, example_input=x)
    features, logits = net.forward_features(x)
    assert torch.equal(logits[-1], classifier(body(x)))
    assert logits[0].shape == (2, 3)  # as many classes as the classifier has
    assert [id(p) for p in net.exit_parameters()][2:] == [id(p) for p in classifier.parameters()]
    assert torch.equal(net.backbone(x)[1], body(x))
    assert len(features) == 1


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
    with pytest.raises(ConfigError, match=r"'a' runs more than once.*nn.Identity"):
        net(torch.zeros(1, 4))


class Giving(nn.Module):
    """A first part whose output is of a form of one's own, and a second that takes the tensor in it."""

    class First(nn.Module):
        def __init__(self, form: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.form, self.linear = form, nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return self.form(self.linear(x))

    def __init__(self, form: Callable[[Tensor], Any], last: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.first, self.second, self.last = self.First(form), nn.Linear(4, 2), last

    def forward(self, x: Tensor) -> Any:
        seen: list[Tensor] = []
        with_hook = self.first.linear.register_forward_hook(lambda m, a, out: seen.append(out))
        self.first(x)
        with_hook.remove()
        return self.last(self.second(seen[0]))


@pytest.mark.parametrize(
    "form",
    [lambda x: (x, x.sum()), lambda x: [x], lambda x: {"hidden": x, "more": None}, lambda x: (x, None)],
    ids=["tuple", "list", "dict", "with none"],
)
def test_the_first_item_of_an_output_feeds_the_exit(form: Callable[[Tensor], Any]) -> None:
    model = Giving(form)
    net = MultiExit(model, {"first": PooledHead(2)}, example_input=torch.zeros(1, 4))
    x = torch.randn(3, 4)
    assert torch.equal(net.forward_features(x)[0][0], model.first.linear(x))


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (lambda x: (None, x), "tuple"),
        (lambda x: {}, "dict"),
        (lambda x: None, "NoneType"),
        (lambda x: (), "tuple"),
    ],
)
def test_an_output_that_holds_no_tensor_first_is_refused(form: Callable[[Tensor], Any], kind: str) -> None:
    with pytest.raises(
        ConfigError, match=f"'first' gives a {kind} whose first item is no tensor.*Tap a submodule"
    ):
        MultiExit(Giving(form), {"first": PooledHead(2)}, example_input=torch.zeros(1, 4))


def test_logits_may_come_in_a_dict() -> None:
    model = Giving(lambda x: x, last=lambda x: {"loss": None, "logits": x})
    net = MultiExit(model, {"first": PooledHead(2)}, example_input=torch.zeros(1, 4))
    x = torch.randn(3, 4)
    assert torch.equal(net(x)[-1], model.second(model.first.linear(x)))


@pytest.mark.parametrize("last", [lambda x: (x, x), lambda x: {"scores": x}], ids=["tuple", "dict"])
def test_a_model_whose_output_is_no_logits_is_told_the_way_out(last: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ConfigError, match=r"must be one tensor of logits.*Wrap the model"):
        MultiExit(Giving(lambda x: x, last), {"first": PooledHead(2)}, example_input=torch.zeros(1, 4))


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


# --- several inputs, and heads that are chosen ------------------------------------------------------------


class Two(nn.Module):
    """Two inputs, one of them optional."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        x = self.left(a)
        return self.both(x if b is None else x + self.right(b))


def test_inputs_by_place_and_by_name() -> None:
    a, b = torch.randn(5, 4), torch.randn(5, 3)
    model = Two().eval()
    for example in ((a, b), {"a": a, "b": b}, [a, b]):
        net = MultiExit(model, {"left": PooledHead(2)}, example_input=example).eval()
        for got in (net(a, b), net(a=a, b=b), net(a, b=b)):
            assert torch.equal(got[-1], model(a, b))
            assert torch.equal(got[0], net.heads[0](model.left(a)))


class Mixed(nn.Module):
    """A feature of every kind on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 6, 3, padding=1)
        self.small = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.AvgPool2d(4))
        self.token, self.norm = nn.Linear(8, 12), nn.LayerNorm(12)
        self.signal = nn.Conv1d(4, 5, 1)
        self.plain, self.last = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.small(self.early(x)).flatten(2).transpose(1, 2)  # (N, 4, 8)
        x = self.signal(self.norm(self.token(x)))
        x = self.plain(x.mean(2))
        y: Tensor = self.last(x)
        return y


NAMES = ["early", "small", "norm", "signal", "plain"]


def test_heads_are_chosen_by_what_they_see() -> None:
    net = MultiExit(Mixed(), NAMES, example_input=torch.zeros(1, 3, 8, 8))
    assert [type(h) for h in net.heads] == [ConvHead, PooledHead, TokenHead, PooledHead, PooledHead]
    small, signal, plain = (net.heads[i] for i in (1, 3, 4))
    assert small.norm is not None  # type: ignore[union-attr]
    assert signal.linear.in_features == 5  # type: ignore[union-attr]
    assert plain.norm is None  # type: ignore[union-attr]
    assert [tuple(z.shape) for z in net(torch.zeros(2, 3, 8, 8))] == [(2, 3)] * 6
    assert not any(m._forward_hooks for n, m in net.model.named_modules() if n not in NAMES)


def test_a_dict_may_leave_some_heads_open() -> None:
    own = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    net = MultiExit(Mixed(), {"early": None, "small": own, "plain": None}, example_input=torch.zeros(1, 3, 8, 8))
    assert net.heads[1] is own
    assert [type(net.heads[i]) for i in (0, 2)] == [ConvHead, PooledHead]


def test_a_signal_whose_channels_and_length_are_equal_is_still_a_signal() -> None:
    model = nn.Sequential(nn.Conv1d(2, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    net = MultiExit(model, ["1"], example_input=torch.zeros(1, 2, 6))
    assert isinstance(net.heads[0], PooledHead)
    assert net.heads[0].channels_first


def test_maps_with_their_channels_last_are_tokens() -> None:
    class Windowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.last = nn.Linear(3, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.mix(x.permute(0, 2, 3, 1)).mean((1, 2)))
            return y

    net = MultiExit(Windowed(), ["mix"], example_input=torch.zeros(1, 3, 8, 8))
    assert isinstance(net.heads[0], TokenHead)
    assert net.heads[0].linear.in_features == 6


def test_heads_are_chosen_only_from_an_example() -> None:
    with pytest.raises(ConfigError, match=r"choose a head for 'early'.*give example_input"):
        MultiExit(Mixed(), NAMES)


def test_names_that_are_no_list_or_stand_twice() -> None:
    with pytest.raises(ConfigError, match=r"exits=\['early'\]"):
        MultiExit(Mixed(), "early")
    with pytest.raises(ConfigError, match="names one twice"):
        MultiExit(Mixed(), ["early", "early"])


def test_a_feature_that_no_head_takes() -> None:
    model = nn.Sequential(nn.Unflatten(1, (2, 2, 2, 2)), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ConfigError, match=r"no head is made for a feature \(1, 2, 2, 2, 2\).*head of your own"):
        MultiExit(model, ["0"], example_input=torch.zeros(1, 16))
    assert not any(m._forward_hooks for m in model.modules())  # nothing is left behind


def test_the_number_of_classes_needs_logits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(ConfigError, match=r"logits \(N, classes\), not \(1, 2, 8, 8\)"):
        MultiExit(model, ["0"], example_input=torch.zeros(1, 3, 8, 8))


def test_copies_with_every_head() -> None:
    net = MultiExit(Mixed(), NAMES, example_input=torch.zeros(1, 3, 8, 8)).eval()
    x = torch.randn(2, 3, 8, 8)
    for twin in twins(net):
        assert all(torch.equal(a, b) for a, b in zip(twin(x), net(x), strict=True))
    lazy = MultiExit(Mixed(), {"early": ConvHead(3), "norm": TokenHead(3), "plain": PooledHead(3)})
    for twin in twins(lazy):
        twin.materialise(x)
        assert len(twin(x)) == 4
