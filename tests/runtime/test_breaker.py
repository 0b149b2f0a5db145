import math

import pytest

from offramp.errors import ConfigError
from offramp.runtime.breaker import CircuitBreaker


def failed(breaker, times):
    for _ in range(times):
        breaker.failed()
    return breaker


def test_closed_until_enough_failures_in_a_row(clock):
    breaker = CircuitBreaker(failures=3, reset_s=1.0, clock=clock)
    failed(breaker, 2)
    assert breaker.allows()
    assert not breaker.open
    breaker.succeeded()
    failed(breaker, 2)
    assert breaker.allows()
    breaker.failed()
    assert breaker.open
    assert not breaker.allows()


def test_a_probe_is_allowed_after_the_reset_time_and_not_before(clock):
    breaker = failed(CircuitBreaker(failures=1, reset_s=2.0, clock=clock), 1)
    clock.now += 1.99
    assert not breaker.allows()
    clock.now += 0.01
    assert breaker.allows()
    assert breaker.open


def test_a_failed_probe_waits_again(clock):
    breaker = failed(CircuitBreaker(failures=3, reset_s=2.0, clock=clock), 3)
    clock.now += 2.0
    breaker.failed()
    assert not breaker.allows()
    clock.now += 2.0
    assert breaker.allows()


def test_an_answered_probe_closes_it_for_good(clock):
    breaker = failed(CircuitBreaker(failures=2, reset_s=2.0, clock=clock), 2)
    clock.now += 2.0
    breaker.succeeded()
    assert not breaker.open
    breaker.failed()
    assert breaker.allows()


def test_while_a_probe_is_out_there_is_no_other(clock):
    breaker = failed(CircuitBreaker(failures=1, reset_s=2.0, clock=clock), 1)
    clock.now += 2.0
    assert breaker.allows()
    breaker.begun()
    assert not breaker.allows()
    clock.now += 2.0
    assert breaker.allows()  # the probe never came back
    breaker.begun()
    breaker.succeeded()
    breaker.begun()
    assert breaker.allows()


def test_no_reset_time_probes_at_once(clock):
    breaker = failed(CircuitBreaker(failures=1, reset_s=0.0, clock=clock), 5)
    assert breaker.open
    assert breaker.allows()


@pytest.mark.parametrize("bad", [{"failures": 0}, {"failures": -1}, {"reset_s": -0.1}, {"reset_s": math.nan}])
def test_bad_settings(bad):
    with pytest.raises(ConfigError):
        CircuitBreaker(**bad)
