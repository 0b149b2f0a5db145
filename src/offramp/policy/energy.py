"""Modelled energy: what computing, reading weights and sending cost, by published constants."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.errors import ConfigError

__all__ = ["EnergyModel"]


@dataclass(frozen=True)
class EnergyModel:
    """A model of energy, not a measurement.

    Attributes:
        mac_pj: Picojoules of a 32-bit floating-point multiplication and addition: 3.7 + 0.9 in a 45 nm process
            (Horowitz, ISSCC 2014, "Computing's energy problem").
        weight_pj: Picojoules of a 32-bit weight read from DRAM, once per inference: 640 (the same figures, as
            Han et al. 2015 give them, arXiv 1506.02626, table 1).
        upload_mw_per_mbps: Milliwatts of a Wi-Fi radio per Mbit/s sent: 283.17 (Huang et al., MobiSys 2012).
        radio_mw: Its milliwatts at any rate: 132.86 (the same).
        rate_mbps: The link's rate.

    Raises:
        ConfigError: A rate that is not above 0, or a negative constant.
    """

    mac_pj: float = 4.6
    weight_pj: float = 640.0
    upload_mw_per_mbps: float = 283.17
    radio_mw: float = 132.86
    rate_mbps: float = 10.0

    def __post_init__(self) -> None:
        if not self.rate_mbps > 0:
            raise ConfigError(f"rate_mbps must be above 0, not {self.rate_mbps}")
        for name in ("mac_pj", "weight_pj", "upload_mw_per_mbps", "radio_mw"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")

    def compute_mj(self, macs: float, weights: float) -> float:
        """Millijoules of `macs` multiply-accumulates on `weights` weights that are read once."""
        return (macs * self.mac_pj + weights * self.weight_pj) * 1e-9

    def upload_mj(self, payload_bytes: float) -> float:
        """Millijoules of sending `payload_bytes` bytes."""
        milliwatts = self.upload_mw_per_mbps * self.rate_mbps + self.radio_mw
        return milliwatts * payload_bytes * 8 / (self.rate_mbps * 1e6)
