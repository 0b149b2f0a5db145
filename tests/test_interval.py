"""The mean of repeated runs, and its interval."""

import math

import pytest

from offramp.interval import interval, mean

#: Two-sided 95 % points of Student's t as tables print them, by degrees of freedom.
STUDENT = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228, 12: 2.179, 20: 2.086, 40: 2.021, 120: 1.980}


@pytest.mark.parametrize(("freedom", "point"), STUDENT.items())
def test_intervals_are_students(freedom: int, point: float) -> None:
    values = [5.0, *(4.0, 6.0) * (freedom // 2)]  # deviation 1 about 5
    assert mean(values) == 5
    assert interval(values) == pytest.approx(point / math.sqrt(len(values)), rel=5e-4)


def test_intervals_of_few_values() -> None:
    assert interval([7.0]) == 0
    assert interval([3.0, 3.0, 3.0]) == 0
    assert interval([0.0, 2.0]) == pytest.approx(12.706)  # deviation √2, over √2 values
    assert interval([0.0, 20.0]) == pytest.approx(127.06)


def test_intervals_narrow_from_each_degree_of_freedom_to_the_next() -> None:
    points = [interval([1.0, *([0.0] * n)]) * (n + 1) for n in range(1, 40)]  # t alone: deviation 1/√(n + 1)
    assert points == sorted(points, reverse=True)
    assert points[-1] == pytest.approx(2.023, abs=1e-3)
