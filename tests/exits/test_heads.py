from __future__ import annotations

import pytest
import torch
from torch import nn

from offramp.errors import ConfigError
from offramp.exits.heads import PooledHead


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
