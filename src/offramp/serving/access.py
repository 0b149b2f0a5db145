"""Who may ask, and how often: bearer tokens, and a rate per client."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from offramp.errors import AccessError, ConfigError, ServerBusyError

__all__ = ["TOKEN_VARIABLE", "Access", "read_tokens"]

TOKEN_VARIABLE = "OFFRAMP_TOKEN"
#: Shorter ones can be guessed. What may stand in a header without quoting: RFC 6750 §2.1.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,4096}")
#: Clients whose rate is remembered; whoever comes back after so many others starts afresh.
_REMEMBERED = 10_000


def read_tokens(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The tokens of a file, one per line, or without one that of the environment's OFFRAMP_TOKEN; none if neither.

    Raises:
        ConfigError: The file cannot be read or holds none, or something that is no token.
    """
    if file is None:
        given = environment.get(TOKEN_VARIABLE)
        source, lines = TOKEN_VARIABLE, [] if given is None else [given.strip()]
        if given is None:
            return ()
    else:
        source = str(file)
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise ConfigError(f"cannot read the tokens in {file}: {reason}") from error
    if not lines or not all(_TOKEN.fullmatch(line) for line in lines):
        # The message names no token: it may end up in a log.
        raise ConfigError(
            f"{source} holds one token per line, each of 16 characters or more (letters, digits, -._~+/=); "
            "make one with `openssl rand -hex 32`"
        )
    return tuple(lines)


class Access:
    """Lets requests in, or says why not. Safe to use from several threads; transports share one.

    Pickled for another process it holds the tokens' hashes, never the tokens, and has forgotten whom it saw.

    Args:
        tokens: Any of them will do, so that one can replace another step by step; without any, everybody may ask.
        rate: Requests per second and client address, after a burst of as many; None is as many as they like.
        clock: Gives seconds.

    Raises:
        ConfigError: A rate that is not above 0.
    """

    def __init__(
        self,
        tokens: Iterable[str] = (),
        *,
        rate: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            raise ConfigError(f"a rate is a number of requests per second above 0, not {rate}")
        self._hashes = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._rate, self._clock = rate, clock
        self._lock = threading.Lock()
        #: By client: requests left, and when that was; least recently seen first.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {"_hashes": self._hashes, "_rate": self._rate, "_clock": self._clock}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock, self._left = threading.Lock(), OrderedDict()

    def check(self, client: str, authorization: str | None) -> None:
        """Lets a request in.

        Args:
            client: The address that it comes from, without its port.
            authorization: The header of that name.

        Raises:
            AccessError: There is no valid token.
            ServerBusyError: The client asks too often.
        """
        if self._hashes and not self._valid(authorization or ""):
            raise AccessError(
                "this server wants a valid token: `authorization: Bearer TOKEN`, or offramp run --token-file"
            )
        if self._rate is not None and not self._allowed(_group(client), self._rate):
            raise ServerBusyError(f"too many requests from this client; at most {self._rate:g} a second")

    def _valid(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "replace")).digest()
        # Hashes are of one length, and every one is looked at: the time tells neither length nor which one.
        same = [hmac.compare_digest(given, known) for known in self._hashes]
        return scheme.lower() == "bearer" and any(same)

    def _allowed(self, client: str, rate: float) -> bool:
        most = max(1.0, rate)
        with self._lock:
            now = self._clock()
            left, since = self._left.pop(client, (most, now))
            left = min(most, left + (now - since) * rate)
            self._left[client] = (left - 1 if left >= 1 else left, now)
            if len(self._left) > _REMEMBERED:
                self._left.popitem(last=False)
            return left >= 1


def _group(client: str) -> str:
    """Whose rate counts: the address, of IPv6 the network of 64 bits, which a single host may have for itself."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or int(address) >> 64)
