from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.exits.thresholds import (
    FITTING_SHARE,
    NEVER,
    allowed_losses,
    answering,
    certified_threshold,
    empirical_threshold,
    samples_needed,
)

many = settings(max_examples=150, derandomize=True, deadline=None)


def drop(confidence: np.ndarray, right: np.ndarray, threshold: float) -> float:
    answers = [
        next((right[e, i] for e in range(len(confidence)) if confidence[e, i] >= threshold), right[-1, i])
        for i in range(confidence.shape[1])
    ]
    return float(right[-1].mean() - np.mean(answers))


def brute_force_threshold(confidence: np.ndarray, right: np.ndarray, max_drop: float) -> float:
    """The lowest confidence at which, and above which, no threshold costs the cascade too much."""
    lowest = NEVER
    for threshold in sorted(set(confidence.ravel().tolist()), reverse=True):
        if drop(confidence, right, threshold) > max_drop + 1e-9:
            break
        lowest = threshold
    return lowest


@st.composite
def cascades(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of 1 to 3 gates in twelfths, with ties, and whether each exit is right."""
    gates, n = draw(st.integers(1, 3)), draw(st.integers(1, 25))
    twelfths = st.lists(st.integers(1, 12), min_size=gates * n, max_size=gates * n)
    rights = st.lists(st.booleans(), min_size=(gates + 1) * n, max_size=(gates + 1) * n)
    confidence = np.array(draw(twelfths)).reshape(gates, n) / 12
    return confidence, np.array(draw(rights)).reshape(gates + 1, n)


@many
@given(cascades(), st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.5, 1.0]))
def test_an_empirical_threshold_costs_what_brute_force_says(
    cascade: tuple[np.ndarray, np.ndarray], max_drop: float
) -> None:
    confidence, right = cascade
    found = empirical_threshold(confidence, right, max_drop)
    assert drop(confidence, right, found) <= max_drop + 1e-9
    # A confidence behind an open gate changes nothing, so the same cascade may have a lower threshold.
    expected = brute_force_threshold(confidence, right, max_drop)
    assert answering(confidence, found).tolist() == answering(confidence, expected).tolist()


def test_empirical_thresholds_by_hand() -> None:
    confidence = np.array([[0.9, 0.8, 0.7, 0.6]])
    last = np.array([True, True, True, True])
    early = np.array([True, True, False, True])
    assert empirical_threshold(confidence, np.stack([early, last]), 0.0) == 0.8
    assert empirical_threshold(confidence, np.stack([early, last]), 0.25) == 0.6
    assert empirical_threshold(confidence, np.stack([~last, last]), 0.1) == NEVER
    assert empirical_threshold(confidence, np.stack([early, ~last]), 0.0) == 0.6  # the exit is the better one


def test_gates_that_each_keep_the_drop_may_add_up() -> None:
    """Each of two gates alone loses two of twenty; both together lose four. The cascade is what counts."""
    confidence = np.full((2, 20), 0.1)
    confidence[0, :10] = confidence[1, 10:] = 0.9
    right = np.ones((3, 20), bool)
    right[0, :2] = right[1, 10:12] = False
    for gate in (0, 1):
        assert empirical_threshold(confidence[[gate]], right[[gate, 2]], 0.1) <= 0.9
    assert empirical_threshold(confidence, right, 0.1) == NEVER
    assert empirical_threshold(confidence, right, 0.2) <= 0.9


def test_the_first_sure_exit_answers() -> None:
    confidence = np.array([[0.9, 0.1, 0.5], [0.9, 0.9, 0.1]])
    assert answering(confidence, 0.5).tolist() == [0, 1, 0]
    assert answering(confidence, 0.6).tolist() == [0, 1, 2]
    assert answering(confidence, NEVER).tolist() == [2, 2, 2]
    assert answering(confidence, 0.0).tolist() == [0, 0, 0]
    assert answering(np.empty((0, 3)), 0.5).tolist() == [0, 0, 0]  # without gates the last exit is exit 0


# --- the exact test --------------------------------------------------------------------------------------


def binomial_tail(n: int, most: int, p: float) -> float:
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(most + 1))


@many
@given(st.integers(1, 300), st.floats(0.001, 0.6), st.floats(0.01, 0.5))
def test_allowed_losses_are_the_most_that_the_binomial_tail_allows(n: int, p: float, delta: float) -> None:
    found = allowed_losses(n, p, delta)
    assert binomial_tail(n, found, p) <= delta * (1 + 1e-9)
    assert binomial_tail(n, found + 1, p) > delta * (1 - 1e-9)


def test_allowed_losses_by_hand() -> None:
    assert allowed_losses(459, 0.005, 0.1) == -1  # 0.995^459 = 0.1002
    assert allowed_losses(460, 0.005, 0.1) == 0
    assert allowed_losses(800, 0.005, 0.1) == 1
    assert allowed_losses(4000, 0.005, 0.1) == 13
    assert allowed_losses(100, 0.0, 0.1) == -1
    assert allowed_losses(100, 1.0, 0.1) == 100
    assert allowed_losses(1_000_000, 0.01, 0.05) == 9836  # 10,000 − 1.645·√9,900: no overflow


@many
@given(st.floats(0.001, 1), st.floats(0.001, 0.9))
def test_the_samples_needed_are_the_fewest_that_can_be_enough(max_drop: float, delta: float) -> None:
    needed = samples_needed(max_drop, delta)
    assert needed is not None
    testing = needed - needed // FITTING_SHARE
    assert allowed_losses(testing, max_drop, delta) >= 0
    fewer = needed - 1 - (needed - 1) // FITTING_SHARE
    assert fewer == 0 or allowed_losses(fewer, max_drop, delta) < 1
    if max_drop < 1:
        assert (1 - max_drop) ** fewer > delta * (1 - 1e-9)


def test_nothing_shows_that_nothing_is_lost() -> None:
    assert samples_needed(0.0, 0.1) is None
    assert samples_needed(0.005, 0.1) == 574  # 460 to test with, 114 to fit with


# --- fixed-sequence testing ------------------------------------------------------------------------------


def slow_certified(
    confidence: np.ndarray, right: np.ndarray, candidates: list[float], max_drop: float, delta: float
) -> float:
    """Tests candidates one by one, from strict to lax, each by the binomial tail of the samples lost."""
    found = NEVER
    for threshold in candidates:
        lost = 0
        for i in range(confidence.shape[1]):
            answer = next((e for e in range(len(confidence)) if confidence[e, i] >= threshold), len(confidence))
            lost += bool(right[-1, i] and not right[answer, i])
        if binomial_tail(confidence.shape[1], lost, max_drop) > delta:
            break
        found = threshold
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("gates", [1, 2, 3])
def test_a_certified_threshold_is_the_slow_one(seed: int, gates: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, fitting = rng.random((gates, 150)), rng.random((gates, 40))
    right = rng.random((gates + 1, 150)) < 0.3 + 0.7 * np.vstack([confidence, np.ones(150)])
    reached = np.sort(np.maximum.accumulate(fitting, axis=0).ravel())
    shares = np.arange(1, 201) / 200
    candidates = [*np.quantile(reached, 1 - shares, method="inverted_cdf").tolist(), 0.0]
    for max_drop in (0.02, 0.05, 0.2, 0.6, 1.0):
        found = certified_threshold(confidence, right, fitting, max_drop, 0.1)
        assert found == slow_certified(confidence, right, candidates, max_drop, 0.1)


def population(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two gates and a last exit, 95 % right. Confidence c is right with probability c² and 0.85·c + 0.15."""
    confidence = 1 - rng.beta(0.5, 2.0, (2, n))
    odds = np.stack([confidence[0] ** 2, 0.85 * confidence[1] + 0.15, np.full(n, 0.95)])
    return confidence, rng.random((3, n)) < odds


@pytest.fixture(scope="module")
def true_loss() -> Callable[[float], float]:
    """The share that the cascade loses at a threshold, of 100,000 samples; between 101 thresholds, on a line."""
    confidence, right = population(100_000, np.random.default_rng(12345))
    grid = np.linspace(0, 1, 101)
    columns = np.arange(right.shape[1])
    losses = [(right[-1] & ~right[answering(confidence, t), columns]).mean() for t in grid]
    return lambda threshold: float(np.interp(threshold, grid, losses))


@pytest.mark.parametrize(("n", "max_drop", "delta"), [(600, 0.02, 0.1), (2000, 0.01, 0.3), (300, 0.05, 0.5)])
def test_more_is_lost_in_at_most_a_share_delta_of_draws(
    true_loss: Callable[[float], float], n: int, max_drop: float, delta: float
) -> None:
    """300 draws of held-out samples; beyond δ by less than four standard errors, and not vacuous."""
    rng = np.random.default_rng(7)
    violations, early, draws = 0, 0.0, 300
    for _ in range(draws):
        confidence, right = population(n, rng)
        fitting, _ = population(n // 4, rng)
        found = certified_threshold(confidence, right, fitting, max_drop, delta)
        violations += true_loss(found) > max_drop
        early += float((answering(confidence, found) < 2).mean()) / draws
    assert violations / draws <= delta + 4 * math.sqrt(delta * (1 - delta) / draws)
    assert early > 0.1


def test_the_best_looking_threshold_breaks_its_promise_far_more_often(
    true_loss: Callable[[float], float],
) -> None:
    """What the procedure is for: the empirical choice loses more than allowed in about half of the draws."""
    rng = np.random.default_rng(7)
    over = 0
    for _ in range(100):
        confidence, right = population(600, rng)
        over += true_loss(empirical_threshold(confidence, right | ~right[-1], 0.02)) > 0.02
    assert over / 100 > 0.3
