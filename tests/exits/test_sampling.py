from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.exits.sampling import CutSamples, samples_kept


def rows(tensor: NDArray[np.generic], chosen: NDArray[np.int64]) -> NDArray[np.generic]:
    return tensor[chosen]


def test_the_same_samples_of_every_tensor_are_kept() -> None:
    kept = CutSamples()
    data = np.arange(1000)
    for part in np.array_split(data, 13):
        kept.add([part, 10.0 * part[:, None] + np.arange(3)], rows)
    first, second = kept.kept
    assert first.shape == (64,)
    assert len(set(first.tolist())) == 64
    np.testing.assert_array_equal(second, 10.0 * first[:, None] + np.arange(3))


def test_every_sample_has_the_same_chance() -> None:
    """Early or late, whatever the batches are: 640 of 1,000 draws of 64 out of 100."""
    counts = np.zeros(100)
    for seed in range(1000):
        kept = CutSamples(seed)
        for part in np.split(np.arange(100), [1, 70, 90]):
            kept.add([part], rows)
        counts[kept.kept[0]] += 1
    assert counts.sum() == 64_000
    assert np.abs(counts - 640).max() < 4.5 * np.sqrt(640 * 0.36)


def test_few_samples_are_all_kept() -> None:
    kept = CutSamples()
    kept.add([np.arange(5)], rows)
    kept.add([np.arange(5, 7)], rows)
    assert sorted(kept.kept[0].tolist()) == list(range(7))


def test_of_large_tensors_fewer_samples_are_kept() -> None:
    assert [samples_kept(shape) for shape in ((), (16, 1024), (2**17,), (2**20,), (3, 1024, 1024))] == [
        64, 64, 8, 8, 8,
    ]  # fmt: skip
    kept, twin = CutSamples(), CutSamples()
    for start in range(0, 200, 50):
        part = np.arange(start, start + 50)
        kept.add([part, np.broadcast_to(part[:, None], (50, 2**16))], rows)
        twin.add([part], rows)
    small, large = kept.kept
    assert large.shape == (16, 2**16)
    np.testing.assert_array_equal(large[:, 0], small[:16])
    np.testing.assert_array_equal(small, twin.kept[0])
