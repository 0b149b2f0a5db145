"""Modelled energy, by the published constants and by hand."""

import dataclasses

import pytest

from offramp.errors import ConfigError
from offramp.policy.energy import EnergyModel

MODEL = EnergyModel()


def test_a_multiply_accumulate_costs_4_6_picojoules():
    assert MODEL.compute_mj(10**9, 0) == pytest.approx(4.6)


def test_a_weight_read_costs_640_picojoules():
    assert MODEL.compute_mj(0, 10**9) == pytest.approx(640)


def test_computing_is_both():
    """The paper's 2,360 weights, each used once: 10.856 nJ and 1,510.4 nJ."""
    assert MODEL.compute_mj(2360, 2360) == pytest.approx((10.856 + 1510.4) * 1e-6)


def test_wi_fi_takes_3_watts_at_10_megabits_a_second():
    """1,250 bytes are a millisecond of 283.17·10 + 132.86 mW."""
    assert MODEL.upload_mj(1250) == pytest.approx(2.96456)


@pytest.mark.parametrize(("rate", "joules"), [(1, 0.41603), (10, 0.296456), (100, 0.2844986)])
def test_a_fast_link_pays_its_idle_power_for_a_shorter_time(rate, joules):
    assert EnergyModel(rate_mbps=rate).upload_mj(125_000) == pytest.approx(1e3 * joules)


def test_nothing_computed_and_nothing_sent_is_free():
    assert MODEL.compute_mj(0, 0) == 0
    assert MODEL.upload_mj(0) == 0


def test_sending_a_value_outweighs_computing_with_many():
    """What the model is for: a cut of 40 floats costs as much as reading hundreds of weights."""
    assert MODEL.upload_mj(160) > MODEL.compute_mj(500, 500)


def test_energy_is_proportional():
    assert MODEL.compute_mj(30, 12) == pytest.approx(3 * MODEL.compute_mj(10, 4))
    assert MODEL.upload_mj(300) == pytest.approx(3 * MODEL.upload_mj(100))


def test_constants_can_be_others():
    model = EnergyModel(mac_pj=1, weight_pj=2, upload_mw_per_mbps=3, radio_mw=4, rate_mbps=5)
    assert model.compute_mj(1e9, 1e9) == pytest.approx(3)
    assert model.upload_mj(625_000) == pytest.approx(3 * 5 + 4)  # a second


def test_a_model_is_frozen_and_written_with_its_constants():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODEL.mac_pj = 1  # type: ignore[misc]
    assert dataclasses.asdict(MODEL) == {
        "mac_pj": 4.6,
        "weight_pj": 640.0,
        "upload_mw_per_mbps": 283.17,
        "radio_mw": 132.86,
        "rate_mbps": 10.0,
    }


@pytest.mark.parametrize(
    ("field", "value"), [("rate_mbps", 0.0), ("rate_mbps", float("nan")), ("mac_pj", -1.0), ("radio_mw", -0.1)]
)
def test_constants_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be"):
        EnergyModel(**{field: value})
