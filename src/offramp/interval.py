"""The mean of repeated runs, and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["interval", "mean"]

#: Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t; 0 for a single value."""
    n = len(values)
    if n < 2:
        return 0.0
    middle = mean(values)
    deviation = math.sqrt(sum((v - middle) ** 2 for v in values) / (n - 1))
    return _t95(n - 1) * deviation / math.sqrt(n)


def _t95(freedom: int) -> float:
    """The two-sided 95 % point of Student's t; beyond the table by its expansion (Fisher and Cornish 1960)."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z, v = 1.959964, freedom
    terms = (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    return z + sum(terms) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
