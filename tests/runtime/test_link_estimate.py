import random

import pytest

from offramp.errors import ConfigError
from offramp.runtime.link_estimate import LinkEstimate


def drive(link, rate_mbps, round_trip_ms, sizes, *, noise=0.0, seed=0):
    rng = random.Random(seed)
    for size in sizes:
        ms = round_trip_ms + 8e-3 * size / rate_mbps
        link.took(size, ms * (1 + rng.uniform(-noise, noise)))


def predicted(link, size):
    return link.round_trip_ms + link.ms_per_byte * size


@pytest.mark.parametrize(("rate", "round_trip"), [(1, 50), (10, 20), (100, 5), (0.1, 200)])
def test_round_trip_and_rate_are_told_apart_by_payloads_of_two_sizes(rate, round_trip):
    link = LinkEstimate()
    drive(link, rate, round_trip, [3000, 60_000] * 15)
    assert link.round_trip_ms == pytest.approx(round_trip, rel=0.1, abs=0.3)
    assert 8e-3 / link.ms_per_byte == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("size", [2000, 50_000])
def test_with_one_size_at_least_that_one_is_predicted(size):
    link = LinkEstimate()
    drive(link, 10, 20, [size] * 20, noise=0.1)
    assert predicted(link, size) == pytest.approx(20 + 8e-4 * size, rel=0.15)


def test_a_link_that_drops_is_known_after_a_few_transfers():
    link = LinkEstimate()
    drive(link, 100, 5, [50_000, 5000] * 20, noise=0.1)
    drive(link, 1, 50, [50_000, 5000, 5000, 50_000, 5000, 5000], noise=0.1)
    for size in (5000, 50_000):
        assert predicted(link, size) == pytest.approx(50 + 8e-3 * size, rel=0.3)


def test_a_link_that_recovers_is_known_after_a_few_transfers():
    link = LinkEstimate()
    drive(link, 1, 50, [5000, 50_000] * 20, noise=0.1)
    drive(link, 100, 5, [5000] * 12, noise=0.1)
    assert predicted(link, 50_000) < 60


def test_nobody_knows_and_so_a_link_is_free():
    link = LinkEstimate()
    assert (link.round_trip_ms, link.ms_per_byte) == (0, 0)
    assert LinkEstimate(10.0).ms_per_byte == pytest.approx(8e-4)


def test_nothing_is_ever_below_nothing():
    link, rng = LinkEstimate(), random.Random(0)
    for _ in range(3000):
        link.took(rng.choice((0, 1, 10, 10**4, 10**7)), rng.choice((0.0, 1e-3, 5.0, 1e5)))
        assert 0 <= link.round_trip_ms < 1e9
        assert 0 <= link.ms_per_byte < 1e9


def test_a_rate_that_cannot_be():
    for rate in (0.0, -1.0):
        with pytest.raises(ConfigError, match="above 0"):
            LinkEstimate(rate)
