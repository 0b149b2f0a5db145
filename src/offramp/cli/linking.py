"""`offramp link`: the link between edge and server, emulated."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["link"]


def link(
    to: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server at the far end.")],
    listen: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 0,
    rate: Annotated[str, typer.Option(help="Such as 10mbit, 500kbit, or `unlimited`.")] = "unlimited",
    delay: Annotated[str, typer.Option(help="One way: half of what a round trip takes longer.")] = "0ms",
    jitter: Annotated[str, typer.Option(help="The delay varies by at most this.")] = "0ms",
    outage: Annotated[
        list[str] | None, typer.Option(help="START+DURATION such as 5s+2s; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The jitter's seed.")] = 0,
) -> None:
    """Emulates a link: passes TCP connections on with a rate, a delay, jitter and outages, until stopped."""
    import asyncio

    from offramp.serving.channel import parse_address
    from offramp.serving.link import LinkSettings, parse_delay, parse_outage, parse_rate, pass_on
    from offramp.serving.process import listening

    settings = LinkSettings(
        rate_bps=parse_rate(rate),
        delay_s=parse_delay(delay),
        jitter_s=parse_delay(jitter),
        outages=tuple(parse_outage(o) for o in outage or ()),
        seed=seed,
    )
    far_end = parse_address(to)

    asyncio.run(
        pass_on(
            settings, far_end, listen, lambda address: print(f"offramp link: {listening(address)}", flush=True)
        )
    )
