"""What a bundle takes here: milliseconds per stage, the link's round trip and rate, and every split's latency."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.bundle import Bundle
from offramp.bundle.feed import example
from offramp.runtime.stages import Stages
from offramp.runtime.tail import TailRequest, tail_name
from offramp.serving.channel import GrpcChannel
from offramp.tables import bytes_text, table_text

__all__ = ["measure", "profile_text"]

Tensors = list[NDArray[np.generic]]


def measure(stages: Stages, channel: GrpcChannel | None = None, *, runs: int = 50) -> dict[str, Any]:
    """Measures stages, and the way to the server if there is one; gives JSON values.

    A split's predicted latency is that of an input which no gate keeps on the edge: head, link, tail. The
    tail is what the server measured itself.

    Args:
        stages: The bundle's sessions.
        channel: The way to a server.
        runs: Runs per median.

    Raises:
        ServerError: The server cannot be measured.
    """
    bundle = stages.bundle
    at_cut: dict[int, Tensors] = {-1: example(bundle.manifest.inputs)}
    stage_ms, exit_ms = [], []
    for i in range(bundle.held):
        at_cut[i] = stages.stage(i, at_cut[i - 1])[0]
        stage_ms.append(float(np.median([stages.stage(i, at_cut[i - 1])[1] for _ in range(runs)])))
        found = bundle.manifest.exits[i]
        has_head = found is not None and found.graph is not None
        exit_ms.append(float(np.median([stages.exit(i, at_cut[i])[1] for _ in range(runs)])) if has_head else None)
    facts: dict[str, Any] = {"stage_ms": stage_ms, "exit_ms": exit_ms, "round_trip_ms": None, "rate_mbps": None}
    facts["splits"] = []
    if channel is not None:
        facts["round_trip_ms"] = float(np.median([channel.ping_ms() for _ in range(max(3, runs // 5))]))
        for k in range(-1, min(bundle.held, bundle.manifest.last)):
            facts["splits"].append(_split(stages, channel, k, at_cut[k], stage_ms, max(3, runs // 5)))
        facts["rate_mbps"] = _rate_mbps(facts["splits"], facts["round_trip_ms"])
    if bundle.held > bundle.manifest.last:
        whole = {"split": bundle.manifest.last, "mode": "-", "sent_bytes": 0, "edge_ms": sum(stage_ms)}
        facts["splits"].append({**whole, "link_ms": 0.0, "server_ms": 0.0, "latency_ms": sum(stage_ms)})
    return facts


def profile_text(bundle: Bundle, facts: dict[str, Any]) -> str:
    """The same as two tables in text."""
    rows = [
        [str(i), f"{ms:.3f}", "-" if facts["exit_ms"][i] is None else f"{facts['exit_ms'][i]:.3f}"]
        for i, ms in enumerate(facts["stage_ms"])
    ]
    text = table_text(f"{bundle.manifest.name}: one input on this machine", ["stage", "ms", "exit ms"], rows)
    heads = ["split", "mode", "sent", "edge ms", "link ms", "server ms", "latency ms"]
    split_rows = [
        [
            str(s["split"]),
            s["mode"],
            bytes_text(s["sent_bytes"]),
            *(f"{s[key]:.2f}" for key in ("edge_ms", "link_ms", "server_ms", "latency_ms")),
        ]
        for s in facts["splits"]
    ]
    caption = "no server given: only the whole network on the edge"
    if facts["round_trip_ms"] is not None:
        rate = facts["rate_mbps"]
        caption = f"round trip {facts['round_trip_ms']:.2f} ms, rate " + (
            "above what these payloads show" if rate is None else f"about {rate:.1f} Mbit/s"
        )
    title = "Predicted latency by split, of an input that no gate keeps on the edge"
    return f"{text}\n{table_text(title, heads, split_rows, caption=caption)}"


def _split(
    stages: Stages, channel: GrpcChannel, k: int, tensors: Tensors, stage_ms: list[float], runs: int
) -> dict[str, Any]:
    bundle = stages.bundle
    usual = bundle.tuning.mode
    mode = usual if usual in bundle.manifest.modes(k) else "float"
    packed, _ = stages.encode(k, mode, tensors)
    request = TailRequest(
        model=tail_name(bundle.manifest.name, k, mode),
        tensors={spec.name: t for spec, t in zip(stages.wire(k, mode), packed, strict=True)},
        digest=bundle.digest,
        final=True,
    )
    waits, server = [], []
    for _ in range(runs):
        start = time.perf_counter()
        reply = channel.infer(request, timeout_s=10.0)
        waits.append((time.perf_counter() - start) * 1e3)
        server.append(reply.server_ms or 0.0)
    edge_ms, server_ms = sum(stage_ms[: k + 1]), float(np.median(server))
    link_ms = max(0.0, float(np.median(waits)) - server_ms)
    return {
        "split": k,
        "mode": mode,
        "sent_bytes": sum(t.nbytes for t in packed),
        "edge_ms": edge_ms,
        "link_ms": link_ms,
        "server_ms": server_ms,
        "latency_ms": edge_ms + link_ms + server_ms,
    }


def _rate_mbps(splits: list[dict[str, Any]], round_trip_ms: float) -> float | None:
    """From what the largest payload took longer than the smallest; None if that is lost in the noise."""
    ordered = sorted(splits, key=lambda s: int(s["sent_bytes"]))
    bits = 8 * (ordered[-1]["sent_bytes"] - ordered[0]["sent_bytes"])
    longer_ms = ordered[-1]["link_ms"] - ordered[0]["link_ms"]
    if bits <= 0 or longer_ms < 0.05 * round_trip_ms:
        return None
    return float(bits / longer_ms / 1e3)
