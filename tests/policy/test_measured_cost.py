"""Cost from milliseconds, bytes and modelled energy."""

import math

import pytest

from offramp.errors import ConfigError
from offramp.policy.cost import MeasuredCost
from offramp.policy.energy import EnergyModel
from offramp.policy.forecast import Forecast

SEEN = Forecast(
    stage_ms=(8.0, 4.0, 4.0),
    exit_ms=(0.5, 0.25, 0.0),
    tail_ms=(4.0, 2.0, 1.0),
    sent_bytes=(1000, 4000, 500),
    round_trip_ms=20.0,
    ms_per_byte=8e-4,
    stage_work=((10**9, 10**6), (10**9, 2 * 10**6), (10**9, 10**6)),
    exit_work=((10**6, 10**3), (10**6, 10**3), (0, 0)),
)


def test_latency_alone_is_every_split_s_predicted_latency_over_the_dearest():
    model = MeasuredCost().prices(SEEN).model(SEEN)
    dearest = 12 + 20 + 0.4 + 1  # cut 1
    for split in (-1, 0, 1, 2):
        assert model.paid(split, split < 2) == pytest.approx(SEEN.split_ms(split) / dearest)
    assert model.paid(1, False, (0, 1)) == pytest.approx((12 + 0.75) / dearest)


def test_costs_begin_between_0_and_1_whatever_is_weighed():
    for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 1, 5), (1e-9, 0, 3)):
        model = MeasuredCost(*weights).prices(SEEN).model(SEEN)
        costs = [model.paid(k, k < 2) for k in (-1, 0, 1, 2)]
        assert all(0 <= cost <= 1 + 1e-12 for cost in costs)
        if sum(map(bool, weights)) == 1:
            assert max(costs) == pytest.approx(1)


def test_weights_are_shares_whatever_their_size():
    one, ten = (MeasuredCost(w, 2 * w, 0).prices(SEEN).model(SEEN) for w in (1.0, 10.0))
    assert one.stages == pytest.approx(ten.stages)
    assert one.sends == pytest.approx(ten.sends)


def test_energy_is_the_model_s_at_the_link_s_rate():
    model = MeasuredCost(0, 0, 1).prices(SEEN).model(SEEN)
    energy = EnergyModel(rate_mbps=10)
    whole = sum(energy.compute_mj(*work) for work in SEEN.stage_work)
    early = energy.compute_mj(*SEEN.stage_work[0]) + energy.upload_mj(4000)
    assert model.paid(0, True) / model.paid(2, False) == pytest.approx(early / whole)


def test_what_was_paid_is_what_was_measured():
    prices = MeasuredCost(1, 1, 0).prices(SEEN)
    paid = prices.paid(SEEN, stage=0, exits=(0,), latency_ms=50.0, payload_bytes=400)
    assert paid == pytest.approx(0.5 * 50 / 33.4 + 0.5 * 400 / 4000)
    with_energy = MeasuredCost(0, 0, 1).prices(SEEN)
    model = with_energy.model(SEEN)
    assert with_energy.paid(SEEN, 0, (0,), 1.0, 4000) == pytest.approx(model.paid(0, True, (0,)))


def test_a_slower_link_costs_more_by_the_same_prices():
    from dataclasses import replace

    prices = MeasuredCost().prices(SEEN)
    slow = replace(SEEN, ms_per_byte=8e-3, round_trip_ms=50.0)
    before, after = prices.model(SEEN), prices.model(slow)
    assert after.stages == before.stages
    assert after.paid(0, True) == pytest.approx(slow.split_ms(0) / SEEN.split_ms(1))
    assert after.paid(0, True) > 1


def test_words_say_what_a_cost_of_1_is():
    assert MeasuredCost(3, 1, 0).prices(SEEN).words == "0.75·ms/33.4 + 0.25·bytes/4000"


@pytest.mark.parametrize("weights", [(-1, 0, 0), (math.nan, 1, 0), (0, 0, 0), (1, math.inf, 0), (1e308, 1e308, 0)])
def test_weights_that_cannot_be(weights):
    with pytest.raises(ConfigError, match="weights must be at least 0"):
        MeasuredCost(*weights)


def test_what_no_split_takes_cannot_be_weighed():
    alone = Forecast((1.0,), (0.0,), (0.0,), (0,))
    with pytest.raises(ConfigError, match="payload cannot be weighed"):
        MeasuredCost(1, 1, 0).prices(alone)
