from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import ConfigError
from offramp.exits.heads import ConvHead, DeepHead, PooledHead, TokenHead, head_for, reduced


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((2, 6, 8, 8), 6 * 4),
        ((2, 6, 7, 5), 6 * 4),
        ((2, 6, 1, 9), 6 * 2),  # kept as it is where it is smaller
        ((2, 6, 1, 1), 6),
        ((2, 5, 6), 6),
        ((2, 6), 6),
    ],
)
def test_features_of_every_rank(shape: tuple[int, ...], features: int) -> None:
    head = PooledHead(3, pool=2)
    assert head(torch.zeros(shape)).shape == (2, 3)
    assert head.linear.in_features == features


def passing(head: PooledHead, features: int) -> PooledHead:
    """With the identity in place of its linear layer, so that a head shows what it pools."""
    head.linear = nn.Identity()
    assert head.linear(torch.zeros(1, features)).shape == (1, features)
    return head


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 7, 8, 11, 14])
@pytest.mark.parametrize("width", [1, 4, 6, 13])
@pytest.mark.parametrize("pool", [1, 2, 3, 4, 5])
def test_every_pixel_counts(height: int, width: int, pool: int) -> None:
    x = torch.zeros(1, 1, height, width, requires_grad=True)
    places = passing(PooledHead(2, pool), pool * pool)(x)
    assert places.shape == (1, min(pool, height) * min(pool, width))
    places.sum().backward()
    assert x.grad is not None
    assert (x.grad > 0).all()
    assert x.grad.sum().item() == pytest.approx(places.numel())  # each place is an average


def test_windows_are_the_obvious_ones_where_the_size_divides() -> None:
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    expected = x.reshape(2, 3, 4, 2, 4, 3).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(passing(PooledHead(2, 4), 48)(x), expected)


def test_tokens_are_averaged() -> None:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(passing(PooledHead(2), 6)(x), x.mean(dim=1))


@pytest.mark.parametrize("rank", [1, 5])
def test_other_ranks_are_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"rank 2, 3 or 4, not {rank}"):
        PooledHead(2)(torch.zeros((2,) * rank))


@pytest.mark.parametrize(("classes", "pool"), [(0, 1), (3, 0), (-1, 2)])
def test_sizes_that_cannot_be(classes: int, pool: int) -> None:
    with pytest.raises(ConfigError, match="at least one class and one place"):
        PooledHead(classes, pool)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_signals_are_averaged_over_their_length() -> None:
    x = drawn(2, 5, 7)
    torch.testing.assert_close(passing(PooledHead(2, channels_first=True), 5)(x), x.mean(dim=2))


@pytest.mark.parametrize(
    ("shape", "over", "channels_first"),
    [
        ((6, 4, 5, 3), (0, 2, 3), False),
        ((6, 5, 4), (0, 1), False),
        ((6, 4, 5), (0, 2), True),
        ((6, 4), (0,), False),
    ],
)
def test_i_splitees_exit(shape: tuple[int, ...], over: tuple[int, ...], channels_first: bool) -> None:
    """Batch normalisation over the channels, then the mean of all places (arXiv 2401.10541)."""
    x = 3 * drawn(*shape) + 1
    head = PooledHead(2, norm=True, channels_first=channels_first).train()
    head.linear = nn.Identity()
    spread, mean = torch.var_mean(x, over, keepdim=True, correction=0)
    expected = (x - mean) / (spread + 1e-5).sqrt()
    places = tuple(d for d in over if d > 0)
    torch.testing.assert_close(head(x), expected.mean(places) if places else expected, atol=1e-5, rtol=1e-4)
    assert head.norm is not None
    assert head.norm.num_features == 4


def test_the_convolution_by_hand() -> None:
    head = ConvHead(3, 5, places=4).eval()
    x = drawn(2, 6, 8, 8)
    head(x)
    weight = torch.einsum("oikl,ocxy->ockl", head.depthwise.weight, head.pointwise.weight)
    pooled = x.reshape(2, 6, 4, 2, 4, 2).mean(dim=(3, 5))
    mixed = F.relu(head.norm(F.conv2d(pooled, weight, padding=1)))
    torch.testing.assert_close(head(x), head.linear(mixed.mean((2, 3))), atol=1e-5, rtol=1e-4)


def test_the_two_convolutions_by_hand() -> None:
    head = DeepHead(3, 5, places=4).eval()
    x = drawn(2, 6, 8, 8)
    head(x)
    for norm, scale in ((head.first_norm, 0.5), (head.second_norm, 3.0)):  # each in its place
        nn.init.constant_(norm.weight, scale)
        nn.init.constant_(norm.bias, scale / 9)
    pooled = x.reshape(2, 6, 4, 2, 4, 2).mean(dim=(3, 5))
    halved = F.conv2d(pooled, head.first.weight, padding=1)[:, :, ::2, ::2]
    first = (0.5 * halved / (1 + 1e-5) ** 0.5 + 0.5 / 9).clamp(min=0)
    second = (3.0 * F.conv2d(first, head.second.weight, padding=1) / (1 + 1e-5) ** 0.5 + 3.0 / 9).clamp(min=0)
    torch.testing.assert_close(head(x), head.linear(second.mean((2, 3))), atol=1e-5, rtol=1e-4)


def test_the_token_by_hand() -> None:
    x = 5 * drawn(2, 7, 6) + 2
    for take, token in (("mean", x.mean(1)), ("first", x[:, 0])):
        head = TokenHead(3, take)  # type: ignore[arg-type]
        logits = head(x)
        torch.testing.assert_close(logits, head.linear(F.layer_norm(token, (6,))))
        torch.testing.assert_close(head(x.unflatten(1, (7, 1))), logits)


HEADS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: PooledHead(3), (4, 6, 9, 7)),
    (lambda: PooledHead(3, 2), (4, 6, 9, 7)),
    (lambda: PooledHead(3, 2), (4, 5, 6)),
    (lambda: PooledHead(3, channels_first=True), (4, 5, 6)),
    (lambda: PooledHead(3), (4, 6)),
    (lambda: PooledHead(3, norm=True), (4, 6, 9, 7)),
    (lambda: ConvHead(3), (4, 6, 19, 17)),
    (lambda: ConvHead(3), (4, 6, 3, 1)),
    (lambda: DeepHead(3), (4, 6, 19, 17)),
    (lambda: DeepHead(3), (4, 6, 3, 1)),
    (lambda: TokenHead(3), (4, 5, 6)),
    (lambda: TokenHead(3, "first"), (4, 5, 6)),
]


@pytest.mark.parametrize(("make", "shape"), HEADS)
def test_a_reduced_feature_gives_the_same_logits(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    head, x = make(), drawn(*shape)
    head(x)
    head.eval()
    small = reduced(head, x)
    if isinstance(head, PooledHead) and head.norm is not None:  # a mean of means rounds in another order
        torch.testing.assert_close(head(small), head(x))
    else:
        assert torch.equal(head(small), head(x))


@pytest.mark.parametrize(("make", "shape"), HEADS)
def test_copies_compute_the_same(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    lazy, x = make(), drawn(*shape)
    if getattr(lazy, "norm", None) is None or isinstance(
        lazy, (ConvHead, DeepHead)
    ):  # torch copies no unsized statistics
        for unsized in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
            assert unsized(x).shape == (4, 3)
    lazy(x)
    lazy.eval()
    for twin in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
        assert torch.equal(twin(x), lazy(x))


def test_features_of_another_form_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ConvHead takes feature maps.*not features of rank 3"):
        ConvHead(2)(torch.zeros(2, 3, 4))
    with pytest.raises(ConfigError, match=r"DeepHead takes feature maps.*not features of rank 2"):
        DeepHead(2)(torch.zeros(2, 3))
    with pytest.raises(ConfigError, match=r"TokenHead takes tokens.*not features of rank 2"):
        TokenHead(2)(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvHead(0), "one class and one channel"),
        (lambda: ConvHead(2, 0), "one class and one channel"),
        (lambda: ConvHead(2, places=0), "one class and one place"),
        (lambda: DeepHead(0), "one class and one channel"),
        (lambda: DeepHead(2, 0), "one class and one channel"),
        (lambda: DeepHead(2, places=0), "one class and one place"),
        (lambda: TokenHead(0), "one class"),
        (lambda: TokenHead(2, "last"), '"mean" or "first", not \'last\''),
    ],
)
def test_heads_that_cannot_be(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("shape", "layout", "kind"),
    [
        ((2, 6), None, PooledHead),
        ((2, 5, 6), None, TokenHead),
        ((2, 5, 6), "channels_last", TokenHead),
        ((2, 5, 6), "channels_first", PooledHead),
        ((2, 6, 8, 8), None, ConvHead),
        ((2, 6, 8, 2), None, PooledHead),
        ((2, 8, 8, 6), "channels_last", TokenHead),
    ],
)
def test_the_head_for_a_feature(shape: tuple[int, ...], layout: str | None, kind: type[nn.Module]) -> None:
    head = head_for(torch.zeros(shape), 3, layout)  # type: ignore[arg-type]
    assert type(head) is kind
    assert head(torch.zeros(shape)).shape == (2, 3)


@pytest.mark.parametrize(("shape", "first"), [((8, 5, 6, 7), True), ((8, 5, 6), True), ((8, 6, 5), False)])
def test_a_head_with_normalisation_learns_the_same_from_what_it_has_to_see(
    shape: tuple[int, ...], first: bool
) -> None:
    """The statistics of a batch, logits and gradients; the running variance but for its correction."""
    x = 3 * drawn(*shape) + 1
    whole = PooledHead(3, norm=True, channels_first=first)
    whole(x)
    assert whole.norm is not None
    assert whole.norm.running_var is not None
    first_variance = whole.norm.running_var.clone()
    small = copy.deepcopy(whole)
    for head, feature in ((whole, x), (small, reduced(whole, x))):
        head(feature).square().sum().backward()
    torch.testing.assert_close(small(reduced(small, x)), whole(x))
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(small.get_parameter(name).grad, parameter.grad)
    assert small.norm is not None
    torch.testing.assert_close(small.norm.running_mean, whole.norm.running_mean)
    n, few = x.numel() // 5, 2 * 8
    start = 0.9**2 * first_variance  # what two batches leave of it
    grown = (whole.norm.running_var - start) * (n - 1) / n * few / (few - 1) + start
    torch.testing.assert_close(small.norm.running_var, grown)


@pytest.mark.parametrize("feature", [torch.zeros(3), torch.zeros(1, 1, 1, 1, 1), torch.zeros(2, 6).long()])
def test_no_head_for_a_feature(feature: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"no head is made.*Tap another submodule, or give a head of your own"):
        head_for(feature, 3)


def test_a_head_of_ones_own_sees_the_whole_feature() -> None:
    class Largest(PooledHead):
        def forward(self, feature: Tensor) -> Tensor:
            return self.linear(feature.amax((2, 3)))

    x = drawn(2, 3, 4, 4)
    for head in (Largest(2), nn.Sequential(nn.Flatten(), nn.LazyLinear(2))):
        assert reduced(head, x) is x


@pytest.mark.parametrize(
    ("head", "shape", "small"),
    [
        (PooledHead(3, 2), (4, 6, 9, 7), (4, 6, 2, 2)),
        (PooledHead(3), (4, 5, 6), (4, 6)),
        (PooledHead(3, norm=True), (4, 6, 9, 7), (4, 6, 1, 2)),  # its statistics are over all places
        (PooledHead(3, 2, norm=True), (4, 6, 9, 7), (4, 6, 9, 7)),
        (PooledHead(3, norm=True), (4, 5, 6), (4, 2, 6)),
        (PooledHead(3, norm=True, channels_first=True), (4, 6, 5), (4, 6, 2)),
        (PooledHead(3, norm=True), (4, 6), (4, 6)),
        (ConvHead(3), (4, 6, 19, 3), (4, 6, 4, 3)),
        (DeepHead(3), (4, 6, 19, 3), (4, 6, 8, 3)),
        (TokenHead(3), (4, 5, 6), (4, 1, 6)),
    ],
)
def test_what_a_head_has_to_see(head: nn.Module, shape: tuple[int, ...], small: tuple[int, ...]) -> None:
    assert reduced(head, drawn(*shape)).shape == small
