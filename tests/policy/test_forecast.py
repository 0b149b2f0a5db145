import math

import pytest

from offramp.errors import ConfigError
from offramp.policy.forecast import Forecast

#: Two cuts; the server four times as fast as the edge; 10 Mbit/s.
SEEN = Forecast(
    stage_ms=(8.0, 4.0, 4.0),
    exit_ms=(0.5, 0.25, 0.0),
    tail_ms=(4.0, 2.0, 1.0),
    sent_bytes=(1000, 4000, 500),
    round_trip_ms=20.0,
    ms_per_byte=8e-4,
)


def test_a_split_s_latency_is_head_transfer_and_tail():
    """T_l of dynamic split computing (PAPERS.md §6), sending the input and staying on the edge among them."""
    assert SEEN.split_ms(-1) == pytest.approx(20 + 0.8 + 4)
    assert SEEN.split_ms(0) == pytest.approx(8 + 20 + 3.2 + 2)
    assert SEEN.split_ms(1) == pytest.approx(12 + 20 + 0.4 + 1)
    assert SEEN.split_ms(2) == pytest.approx(16)


def test_what_the_exit_answers_is_not_sent():
    assert SEEN.split_ms(0, sure=0.75) == pytest.approx(8 + 0.5 + 0.25 * (20 + 3.2 + 2))
    assert SEEN.split_ms(1, sure=1.0) == pytest.approx(12 + 0.25)


def test_the_link_s_rate():
    assert SEEN.rate_mbps == pytest.approx(10)
    assert Forecast((1.0,), (0.0,), (0.0,), (4,)).rate_mbps == math.inf


@pytest.mark.parametrize(
    "wrong",
    [
        {"exit_ms": (0.0,)},
        {"stage_ms": (1.0, -1.0, 1.0)},
        {"tail_ms": (1.0, math.nan, 1.0)},
        {"round_trip_ms": math.inf},
        {"ms_per_byte": -1.0},
        {"stage_work": ((1, 1),)},
    ],
)
def test_what_no_forecast_can_be(wrong):
    from dataclasses import replace

    with pytest.raises(ConfigError):
        replace(SEEN, **wrong)
