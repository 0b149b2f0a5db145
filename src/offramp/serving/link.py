"""A link emulator: a TCP proxy with a rate, a delay, jitter, and outages."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offramp.errors import ConfigError, PortError
from offramp.serving.wire import MAX_PORT

__all__ = ["Link", "LinkSettings", "parse_delay", "parse_outage", "parse_rate", "pass_on"]

_RATES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
#: Bytes that travel as one; small enough that a rate is smooth, about ten Ethernet frames.
_CHUNK = 16 * 1024
#: Bytes that the link holds per direction before it lets the sender wait.
_BUFFER = 1024 * 1024


def parse_rate(text: str) -> float:
    """Bits per second from "10mbit", "500kbit", "1gbit", "8000bit"; 0 for "unlimited".

    Raises:
        ConfigError: Anything else.
    """
    if text.strip().lower() == "unlimited":
        return 0.0
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)bit(?:/s|ps)?\s*", text.lower())
    if not found or float(found[1]) == 0:
        raise ConfigError(f"a rate is such as 10mbit, 500kbit, 1gbit or unlimited, not {text!r}")
    return float(found[1]) * _RATES[found[2]]


def parse_delay(text: str) -> float:
    """Seconds from "10ms", "1.5s", "500us", "2m".

    Raises:
        ConfigError: Anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|m)\s*", text.lower())
    if not found:
        raise ConfigError(f"a time is such as 10ms, 500us, 1.5s or 2m, not {text!r}")
    return float(found[1]) * _TIMES[found[2]]


def parse_outage(text: str) -> tuple[float, float]:
    """Start and duration in seconds from "5s+2s": two seconds without a link, five after the start.

    Raises:
        ConfigError: Anything else.
    """
    start, plus, duration = text.partition("+")
    if not plus:
        raise ConfigError(f"an outage is START+DURATION such as 5s+2s, not {text!r}")
    return parse_delay(start), parse_delay(duration)


@dataclass(frozen=True)
class LinkSettings:
    """How a link behaves, the same in both directions.

    Attributes:
        rate_bps: Bits per second, shared by all connections of a direction; 0 is unlimited.
        delay_s: Seconds that everything takes besides, one way: half of what it adds to a round trip.
        jitter_s: The delay varies evenly by at most this, up or down; the order stays.
        outages: Pairs of start and duration in seconds since the start; nothing passes meanwhile.
        seed: The jitter's seed.

    Raises:
        ConfigError: Negative numbers, or more jitter than delay.
    """

    rate_bps: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    outages: Sequence[tuple[float, float]] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.rate_bps, self.delay_s, self.jitter_s, *(n for o in self.outages for n in o))
        if any(not n >= 0 for n in numbers):
            raise ConfigError(f"a link's rate and times must be at least 0, not {self}")
        if self.jitter_s > self.delay_s:
            raise ConfigError(f"jitter {self.jitter_s} s is more than the delay, {self.delay_s} s")

    @property
    def words(self) -> str:
        """Rate and round trip in words."""
        rate = f"{self.rate_bps / 1e6:g} Mbit/s" if self.rate_bps else "unlimited rate"
        jitter = f" ± {2e3 * self.jitter_s:g}" if self.jitter_s else ""
        return f"{rate}, {2e3 * self.delay_s:g}{jitter} ms round trip"

    def up_again(self, now: float) -> float:
        """The first moment from `now` on at which no outage is under way; seconds since the start."""
        for start, duration in sorted(self.outages):
            if start <= now < start + duration:
                now = start + duration
        return now


class _Direction:
    """One way of the link: when does a chunk that is ready now arrive?"""

    def __init__(self, settings: LinkSettings, rng: random.Random) -> None:
        self._settings, self._rng = settings, rng
        self._free_at = 0.0

    def arrival(self, now: float, size: int) -> float:
        s = self._settings
        begin = s.up_again(max(now, self._free_at))
        self._free_at = begin + (size * 8 / s.rate_bps if s.rate_bps else 0.0)
        return s.up_again(self._free_at) + s.delay_s + self._rng.uniform(-s.jitter_s, s.jitter_s)


class Link:
    """Listens on a port and passes everything on to another, as a link of these settings would.

    Use it within an asyncio loop: `async with Link(...) as link: ...`.

    Args:
        settings: How the link behaves.
        to: Host and port of the server.
        host: The address to listen on.
        port: The port; 0 takes a free one, see `port`.
        clock: Gives seconds; must not jump. The loop's own if left out.

    Raises:
        PortError: A port that cannot be.
    """

    def __init__(
        self,
        settings: LinkSettings,
        to: tuple[str, int],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not 0 <= port <= MAX_PORT:
            raise PortError(f"a port is 0 to {MAX_PORT}, not {port}")
        self.settings, self._to, self._host, self.port = settings, to, host, port
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Link:
        """Starts listening.

        Raises:
            PortError: The port cannot be listened on.
        """
        clock = self._clock or asyncio.get_running_loop().time
        started = clock()
        self._now: Callable[[], float] = lambda: clock() - started
        rng = random.Random(self.settings.seed)
        self._up, self._down = _Direction(self.settings, rng), _Direction(self.settings, rng)
        try:
            self._server = await asyncio.start_server(self._accept, self._host, self.port, limit=_CHUNK)
        except OSError as error:
            raise PortError(f"cannot listen on {self._host}:{self.port}: {error.strerror or error}") from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        far_out: asyncio.StreamWriter | None = None
        ways: list[asyncio.Task[None]] = []
        try:
            far_in, far_out = await asyncio.open_connection(*self._to, limit=_CHUNK)
            ways = [
                asyncio.create_task(self._pass_on(near_in, far_out, self._up)),
                asyncio.create_task(self._pass_on(far_in, near_out, self._down)),
            ]
            await asyncio.gather(*ways)  # either end may stop sending before the other does
        except (OSError, asyncio.CancelledError):
            pass  # nobody at the far end, or the link is closed: the near end sees its connection close
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (near_out, far_out):
                if end is not None:
                    end.close()

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, way: _Direction) -> None:
        """Reads from one end and delivers to the other, each chunk when it would have arrived."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=_BUFFER // _CHUNK)

        async def deliver() -> None:
            last = 0.0
            while True:
                arrival, chunk = await under_way.get()
                last = max(last, arrival)  # jitter does not reorder a stream
                await asyncio.sleep(max(0.0, last - self._now()))
                if not chunk:
                    target.write_eof()
                    return
                target.write(chunk)
                await target.drain()

        delivery = asyncio.ensure_future(deliver())
        try:
            while chunk := await source.read(_CHUNK):
                await under_way.put((way.arrival(self._now(), len(chunk)), chunk))
            await under_way.put((way.arrival(self._now(), 0), b""))
            await delivery
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)


async def pass_on(settings: LinkSettings, to: tuple[str, int], port: int, ready: Callable[[str], None]) -> None:
    """Emulates a link until cancelled.

    Args:
        settings: How the link behaves.
        to: Host and port of the server.
        port: The port to listen on; 0 takes a free one.
        ready: Told the address once it listens.
    """
    async with Link(settings, to, port=port) as link:
        ready(f"127.0.0.1:{link.port}")
        await asyncio.Event().wait()
