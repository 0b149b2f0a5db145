import asyncio
import math
import random
import socket
import time
from itertools import pairwise

import pytest

from offramp.errors import ConfigError, PortError
from offramp.serving.link import Link, LinkSettings, _Direction, parse_delay, parse_outage, parse_rate

DATA = random.Random(0).randbytes(1_000_000)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("10mbit", 10e6),
        ("500kbit", 500e3),
        ("1gbit", 1e9),
        ("8000bit", 8000),
        ("1.5Mbit", 1.5e6),
        (" 10 mbit/s ", 10e6),
        ("10Mbit/s", 10e6),
        ("unlimited", 0.0),
        ("Unlimited", 0.0),
    ],
)
def test_rates(text, bits):
    assert parse_rate(text) == bits


@pytest.mark.parametrize(
    "text", ["", "10", "mbit", "-10mbit", "0mbit", "0", "10mbyte", "10tbit", "1e3bit", "nan", "1,5mbit"]
)
def test_what_is_no_rate(text):
    with pytest.raises(ConfigError, match="a rate is such as") as caught:
        parse_rate(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10ms", 0.01), ("1.5s", 1.5), ("500us", 0.0005), ("2m", 120.0), ("0ms", 0.0), (" 3 S ", 3.0)],
)
def test_delays(text, seconds):
    assert parse_delay(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "ms", "-1ms", "1h", "1,5s", "nan", "infs"])
def test_what_is_no_delay(text):
    with pytest.raises(ConfigError, match="a time is such as"):
        parse_delay(text)


def test_outages():
    assert parse_outage("5s+2s") == (5.0, 2.0)
    assert parse_outage("100ms + 1m") == (0.1, 60.0)


@pytest.mark.parametrize("text", ["", "5s", "5s+", "+2s", "5s-2s", "1s+2s+3s"])
def test_what_is_no_outage(text):
    with pytest.raises(ConfigError):
        parse_outage(text)


@pytest.mark.parametrize(
    "bad",
    [
        {"rate_bps": -1.0},
        {"rate_bps": math.nan},
        {"delay_s": -0.1},
        {"delay_s": math.nan},
        {"jitter_s": -0.1},
        {"delay_s": 0.01, "jitter_s": 0.02},
        {"outages": [(1.0, -1.0)]},
        {"outages": [(-1.0, 1.0)]},
    ],
)
def test_settings_that_cannot_be(bad):
    with pytest.raises(ConfigError):
        LinkSettings(**bad)


def test_up_again():
    settings = LinkSettings(outages=[(10.0, 1.0), (2.0, 3.0), (5.0, 2.0)])  # the last two touch
    for now, up in [
        (0, 0),
        (1.99, 1.99),
        (2, 7),
        (4, 7),
        (5, 7),
        (6.99, 7),
        (7, 7),
        (10.5, 11),
        (11, 11),
        (99, 99),
    ]:
        assert settings.up_again(now) == pytest.approx(up)
    assert LinkSettings().up_again(3.0) == 3.0


# --- a real link before a real server -------------------------------------------------------------------


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def closed(writer):
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def through(settings, talk, *, server=echo):
    """Runs `talk(reader, writer)` over a link to a server; gives its result and the seconds it took."""

    async def run():
        behind = await asyncio.start_server(server, "127.0.0.1", 0)
        began = time.monotonic()
        async with Link(settings, behind.sockets[0].getsockname()[:2]) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            try:
                result = await asyncio.wait_for(talk(reader, writer), 60)
                took = time.monotonic() - began
            finally:
                await closed(writer)
        behind.close()
        await asyncio.sleep(0.01)
        return result, took

    return asyncio.run(run())


def sends(data):
    async def talk(reader, writer):
        async def write():
            writer.write(data)
            await writer.drain()

        _, back = await asyncio.gather(write(), reader.readexactly(len(data)))
        return back

    return talk


@pytest.mark.parametrize(
    "settings",
    [LinkSettings(), LinkSettings(rate_bps=100e6, delay_s=0.01, jitter_s=0.01, seed=3)],
    ids=["bare", "rate, delay and jitter"],
)
def test_a_megabyte_each_way_arrives_as_it_was(settings):
    back, _ = through(settings, sends(DATA))
    assert back == DATA


def test_a_delay_is_paid_each_way():
    _, took = through(LinkSettings(delay_s=0.1), sends(b"ping"))
    assert took >= 0.19


def test_a_rate_is_kept():
    _, took = through(LinkSettings(rate_bps=4e6), sends(DATA[:100_000]))
    assert took >= 0.19  # 100 kB at 4 Mbit/s


def test_connections_share_the_rate():
    async def talk(reader, writer):
        port = writer.get_extra_info("peername")[1]
        others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        pairs = [(reader, writer), *others]
        backs = await asyncio.gather(*(sends(DATA[:40_000])(r, w) for r, w in pairs))
        for _, other in others:
            await closed(other)
        return backs

    backs, took = through(LinkSettings(rate_bps=4e6), talk)
    assert backs == [DATA[:40_000]] * 3
    assert took >= 0.23  # 120 kB at 4 Mbit/s


def test_an_outage_stalls_and_loses_nothing():
    back, took = through(LinkSettings(outages=[(0.0, 0.4)]), sends(DATA[:50_000]))
    assert back == DATA[:50_000]
    assert took >= 0.39


def test_what_was_sent_before_closing_arrives():
    received = bytearray()

    async def sink(reader, writer):
        while data := await reader.read(65536):
            received.extend(data)
        writer.close()

    async def talk(reader, writer):
        writer.write(DATA[:200_000])
        writer.close()
        for _ in range(500):
            if len(received) == 200_000:
                break
            await asyncio.sleep(0.01)

    through(LinkSettings(delay_s=0.02), talk, server=sink)
    assert bytes(received) == DATA[:200_000]


def test_the_servers_last_words_are_whole():
    async def burst(reader, writer):
        writer.write(DATA[:200_000])
        writer.close()

    async def talk(reader, writer):
        found = bytearray()
        while data := await reader.read(65536):
            found.extend(data)
        return bytes(found)

    back, _ = through(LinkSettings(delay_s=0.02), talk, server=burst)
    assert back == DATA[:200_000]


def test_one_side_may_finish_sending_and_still_be_answered():
    async def talk(reader, writer):
        writer.write(DATA[:100_000])
        writer.write_eof()
        return await reader.read(-1)

    back, _ = through(LinkSettings(delay_s=0.02), talk)
    assert back == DATA[:100_000]


def test_with_nobody_behind_the_near_end_closes():
    async def run():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            dead = probe.getsockname()
        async with Link(LinkSettings(), dead) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            found = await asyncio.wait_for(reader.read(), 30)
            await closed(writer)
        await asyncio.sleep(0.01)
        return found

    assert asyncio.run(run()) == b""


def test_a_server_that_goes_away_closes_the_near_end():
    async def leave(reader, writer):
        await reader.read(1)
        writer.close()

    async def talk(reader, writer):
        writer.write(b"x")
        return await reader.read()

    assert through(LinkSettings(), talk, server=leave)[0] == b""


def test_a_closed_link_closes_its_connections_and_leaves_no_task():
    async def run():
        behind = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with Link(LinkSettings(delay_s=0.01), behind.sockets[0].getsockname()[:2]) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            assert await sends(b"ping")(reader, writer) == b"ping"
            port = link.port
        assert await asyncio.wait_for(reader.read(), 30) == b""
        await closed(writer)
        with pytest.raises(OSError, match=str(port)):
            await asyncio.open_connection("127.0.0.1", port)
        behind.close()
        await asyncio.sleep(0.1)
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert asyncio.run(run()) == []


def test_a_link_closed_during_an_outage_leaves_no_task():
    async def run():
        behind = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with Link(LinkSettings(outages=[(0.0, 1000.0)]), behind.sockets[0].getsockname()[:2]) as link:
            _, writer = await asyncio.open_connection("127.0.0.1", link.port)
            writer.write(b"ping")
            await writer.drain()
            await asyncio.sleep(0.05)
        await closed(writer)
        behind.close()
        await asyncio.sleep(0.1)
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert asyncio.run(run()) == []


def test_a_port_in_use():
    async def run():
        async with Link(LinkSettings(), ("127.0.0.1", 9)) as link:
            with pytest.raises(PortError, match=str(link.port)):
                await Link(LinkSettings(), ("127.0.0.1", 9), port=link.port).__aenter__()

    asyncio.run(run())


@pytest.mark.parametrize("port", [70000, -1])
def test_a_number_that_is_no_port(port):
    async def run():
        async with Link(LinkSettings(), ("127.0.0.1", 9), port=port):
            pass

    with pytest.raises((PortError, ConfigError), match=str(port)):
        asyncio.run(run())


def test_the_clock_is_the_callers():
    now = [50.0]

    def clock():
        now[0] += 0.001
        return now[0]

    # The outage is over at once by this clock, which runs fast.
    async def run():
        behind = await asyncio.start_server(echo, "127.0.0.1", 0)
        settings = LinkSettings(outages=[(0.0, 0.01)])
        async with Link(settings, behind.sockets[0].getsockname()[:2], clock=clock) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            back = await asyncio.wait_for(sends(b"ping")(reader, writer), 30)
            await closed(writer)
        behind.close()
        await asyncio.sleep(0.01)
        return back

    assert asyncio.run(run()) == b"ping"
    assert now[0] > 50.002


def test_jitter_keeps_the_order_and_the_seed_decides():
    def arrivals(seed):
        settings = LinkSettings(delay_s=0.1, jitter_s=0.1, seed=seed)
        way = _Direction(settings, random.Random(seed))
        return [way.arrival(0.0, 1000) for _ in range(50)]

    assert arrivals(1) == arrivals(1) != arrivals(2)
    assert all(0.0 <= a <= 0.2 for a in arrivals(1))
    assert any(b < a for a, b in pairwise(arrivals(1)))  # the stream itself is put in order on delivery
