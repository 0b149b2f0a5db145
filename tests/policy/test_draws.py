import numpy as np
import pytest

from offramp.policy.draws import uniform, uniforms


def test_one_by_one_and_in_arrays_they_are_the_same():
    for seed in (0, 1, 2**40, -3):
        drawn = uniforms(seed, 3, 50)
        assert drawn.tolist() == [[uniform(seed + run, step) for step in range(50)] for run in range(3)]


def test_the_published_sequence():
    """SplitMix64 from the mixed seed: the reference generator's first outputs for the state 1234567."""
    mask = 2**64 - 1

    def reference(state):
        while True:
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            yield z ^ (z >> 31)

    known = reference(1234567)
    assert [next(known) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    # A seed of 0 stays 0 when it is mixed.
    sequence = reference(0)
    assert [uniform(0, step) for step in range(5)] == [(next(sequence) >> 11) / 2**53 for _ in range(5)]


@pytest.mark.parametrize("axis", [0, 1])
def test_they_are_even_and_independent_of_their_neighbours(axis):
    drawn = uniforms(0, 300, 300)
    assert 0 <= drawn.min() < drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert ((counts - 4500) ** 2 / 4500).sum() < 43.8  # χ² of 19 degrees of freedom, p = .001
    one, other = (np.delete(drawn, end, axis=axis).ravel() - 0.5 for end in (0, -1))
    assert abs(12 * (one * other).mean()) < 5 / np.sqrt(len(one))
