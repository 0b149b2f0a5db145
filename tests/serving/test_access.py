import threading

import pytest

from offramp.errors import AccessError, ConfigError, ServerBusyError
from offramp.serving.access import _REMEMBERED, Access, read_tokens

GOOD, NEXT = "a-token-of-enough-characters", "another/token+of=enough~chars"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


# --- tokens ---------------------------------------------------------------------------------------------


def test_without_tokens_and_rate_everybody_may_ask():
    for header in (None, "", "Bearer x"):
        Access().check("10.0.0.1", header)


@pytest.mark.parametrize("header", [f"Bearer {GOOD}", f"bearer {GOOD}", f"BEARER  {NEXT} "])
def test_any_of_the_tokens_will_do(header):
    Access([GOOD, NEXT]).check("10.0.0.1", header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        GOOD,
        f"Basic {GOOD}",
        f"Bearer {GOOD}x",
        f"Bearer {GOOD[:-1]}",
        f"Bearer {GOOD.upper()}",
        f"Bearer {GOOD} {NEXT}",
        f"Bearer {GOOD},{NEXT}",
        "Bearer \ud800\x00é" + "x" * 100_000,
    ],
)
def test_anything_else_is_refused_and_not_repeated(header):
    with pytest.raises(AccessError) as caught:
        Access([GOOD, NEXT]).check("10.0.0.1", header)
    assert GOOD not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_every_token_is_compared_whichever_matches(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "offramp.serving.access.hmac.compare_digest", lambda a, b: seen.append((len(a), len(b))) or a == b
    )
    access = Access([GOOD, NEXT, "x" * 500])
    access.check("10.0.0.1", f"Bearer {GOOD}")
    with pytest.raises(AccessError):
        access.check("10.0.0.1", "Bearer y")
    assert seen == [(32, 32)] * 6  # all of one length, all of them, each time


def test_tokens_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"{GOOD}\n\n  {NEXT}\n")
    assert read_tokens(file, {"OFFRAMP_TOKEN": "x" * 20}) == (GOOD, NEXT)
    assert read_tokens(None, {"OFFRAMP_TOKEN": f"{GOOD}\n"}) == (GOOD,)
    assert read_tokens(None, {}) == ()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"short", b"a token with blanks in", b"\xff" * 20, b"x" * 5000])
def test_what_is_no_token_is_an_error_that_does_not_repeat_it(tmp_path, content):
    file = tmp_path / "tokens"
    file.write_bytes(GOOD.encode() + b"\n" + content if content.strip() else content)
    with pytest.raises(ConfigError, match="tokens") as caught:
        read_tokens(file, {})
    assert GOOD not in str(caught.value)
    if content.isascii() and content.strip():
        assert content.decode() not in str(caught.value)


def test_a_missing_file_and_an_empty_variable(tmp_path):
    for file in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match=str(file)):
            read_tokens(file, {})
    with pytest.raises(ConfigError, match="OFFRAMP_TOKEN"):
        read_tokens(None, {"OFFRAMP_TOKEN": ""})


# --- rates ----------------------------------------------------------------------------------------------


def allowed(access, client, times):
    count = 0
    for _ in range(times):
        try:
            access.check(client, None)
            count += 1
        except ServerBusyError:
            continue
    return count


def test_a_burst_of_one_second_then_the_rate():
    clock = Clock()
    access = Access(rate=8, clock=clock)
    assert allowed(access, "10.0.0.1", 50) == 8
    clock.now += 0.4375
    assert allowed(access, "10.0.0.1", 50) == 3
    clock.now += 0.0625  # with the half request left over
    assert allowed(access, "10.0.0.1", 50) == 1
    clock.now += 1000
    assert allowed(access, "10.0.0.1", 50) == 8


def test_a_rate_below_one():
    clock = Clock()
    access = Access(rate=0.5, clock=clock)
    assert allowed(access, "10.0.0.1", 5) == 1
    clock.now += 1.9
    assert allowed(access, "10.0.0.1", 5) == 0
    clock.now += 0.2
    assert allowed(access, "10.0.0.1", 5) == 1


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("unix", "unix", True),
    ],
)
def test_whose_rate_counts(first, second, shared):
    access = Access(rate=3, clock=Clock())
    assert allowed(access, first, 5) == 3
    assert allowed(access, second, 5) == (0 if shared else 3)


def test_a_wrong_token_costs_others_nothing():
    access = Access([GOOD], rate=2, clock=Clock())
    for _ in range(10):
        with pytest.raises(AccessError):
            access.check("10.0.0.1", "Bearer wrong")
    access.check("10.0.0.1", f"Bearer {GOOD}")


def test_memory_is_bounded_and_a_busy_client_is_not_forgotten():
    access = Access(rate=2, clock=Clock())
    allowed(access, "192.0.2.1", 3)
    for i in range(2 * _REMEMBERED):
        access.check(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", None)
        if i % 1000 == 0:
            assert allowed(access, "192.0.2.1", 1) == 0
    assert len(access._left) == _REMEMBERED


def test_many_threads_get_no_more_than_one():
    access, counts = Access(rate=100, clock=Clock()), []
    threads = [threading.Thread(target=lambda: counts.append(allowed(access, "10.0.0.1", 200))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 100


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_cannot_be(rate):
    with pytest.raises(ConfigError, match="rate"):
        Access(rate=rate)
