"""What a link takes, by the transfers that were made over it."""

from __future__ import annotations

import math

from offramp.errors import ConfigError

__all__ = ["LATE_MS", "LinkEstimate"]

#: Where nobody has measured: what round trips and rates are about. Only how they share the first surprise.
_USUAL_MS, _USUAL_MS_PER_BYTE = 20.0, 8e-3 / 10.0
#: By what part of themselves they wander from one transfer to the next.
_DRIFT = 0.1
#: How much one transfer teaches of how much larger chance is here.
_LEARNT = 0.05
#: Deviations beyond which a surprise is no chance: the link has become another one.
_ANOTHER = 3.0
#: The part of a transfer's expected time that is chance.
_NOISE = 0.15
#: The milliseconds that a process may come too late, whatever it does.
LATE_MS = 1.0


class LinkEstimate:
    """Round trip and rate of a link, as a Kalman filter on (a, b) of a + b·bytes milliseconds (Kalman 1960).

    a and b wander by a part of themselves from transfer to transfer; payloads of different sizes tell them apart.
    A transfer that took far longer or shorter than expected may be chance, and is left out; two in a row say that
    the link has changed: either may be the cause, and both become as doubtful as the surprise was large, so that a
    few transfers teach the new link.
    A link that nobody has used counts as free: a policy that believes it tries it, and knows better.

    Args:
        link_mbps: The rate in Mbit/s, if somebody says; where it begins.

    Raises:
        ConfigError: A rate that is not above 0.
    """

    def __init__(self, link_mbps: float | None = None) -> None:
        if link_mbps is not None and not link_mbps > 0:
            raise ConfigError(f"link_mbps must be above 0, not {link_mbps}")
        self.round_trip_ms = 0.0
        self.ms_per_byte = 0.0 if link_mbps is None else 8e-3 / link_mbps
        rate = 0.3 * self.ms_per_byte or _USUAL_MS_PER_BYTE
        self._covariance = (_USUAL_MS**2, 0.0, rate**2)
        #: How many times larger than usual the variance of chance has turned out.
        self._chance = 1.0
        #: Whether the last transfer was a surprise; before the first one nothing can be.
        self._surprised = True

    def doubt_ms(self, payload_bytes: int) -> float:
        """The standard deviation of what a transfer is expected to take."""
        aa, ab, bb = self._covariance
        return math.sqrt(max(0.0, aa + (2 * ab + bb * payload_bytes) * payload_bytes))

    def took(self, payload_bytes: int, ms: float) -> None:
        """A transfer of so many bytes took so long, the server's own time left out."""
        aa, ab, bb = self._covariance
        aa += (_DRIFT * self.round_trip_ms) ** 2
        bb += (_DRIFT * self.ms_per_byte) ** 2
        # With h = (1, bytes): innovation, its variance, and the gain.
        expected = self.round_trip_ms + self.ms_per_byte * payload_bytes
        usual = (_NOISE * expected + LATE_MS) ** 2
        surprise, noise = ms - expected, usual * max(1.0, self._chance)
        doubt = aa + (2 * ab + bb * payload_bytes) * payload_bytes
        if doubt < noise:  # what surprises is chance rather than what is not known yet
            self._chance += _LEARNT * (min(surprise**2, _ANOTHER**2 * noise) / usual - self._chance)
        if surprise**2 > _ANOTHER**2 * (doubt + noise):
            if not self._surprised:
                self._surprised = True
                return
            aa += (surprise / 2) ** 2
            bb += (surprise / 2 / max(1, payload_bytes)) ** 2
        self._surprised = False
        ah, bh = aa + ab * payload_bytes, ab + bb * payload_bytes
        variance = ah + bh * payload_bytes + noise
        gain_a, gain_b = ah / variance, bh / variance
        self.round_trip_ms = max(0.0, self.round_trip_ms + gain_a * surprise)
        self.ms_per_byte = max(0.0, self.ms_per_byte + gain_b * surprise)
        covariance = (aa - gain_a * ah, ab - gain_a * bh, bb - gain_b * bh)
        if all(map(math.isfinite, covariance)):
            self._covariance = covariance
