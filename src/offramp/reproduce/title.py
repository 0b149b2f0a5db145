"""The paper's title as a table: {dense, sparse, narrow} × {split, early exit, both}, at every cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from offramp.interval import interval, mean
from offramp.policy.energy import EnergyModel
from offramp.reproduce.capogrosso import name_of
from offramp.reproduce.study import Outcome
from offramp.tables import bytes_text, count_text, table_text

__all__ = ["Placement", "placements", "title_table"]

Way = Literal["split", "early exit", "both"]


@dataclass(frozen=True)
class Placement:
    """One network at one cut, used in one way; means over seeds, per input.

    Attributes:
        network: Its name.
        cut: The cut; the edge holds the layers up to it.
        way: "split" sends every input's cut, "early exit" answers everything at the edge, "both" sends what
            the exit's gate does not let out.
        edge_weights: Weights on the edge, the exit's included where there is one.
        server_weights: Weights on the server.
        edge_macs: Multiply-accumulates on the edge.
        server_macs: Mean multiply-accumulates on the server.
        edge_bytes: Bytes of the edge's weights and biases, float32.
        server_bytes: The same on the server.
        sent_bytes: Mean bytes sent, float32.
        exits: Share of inputs answered at the edge.
        accuracy: On the test images.
        spread: Half of its 95 % interval.
        edge_mj: Modelled millijoules of the edge: computing, reading weights, sending.
        computing_mj: The part of it that is not sending.
    """

    network: str
    cut: int
    way: Way
    edge_weights: int
    server_weights: int
    edge_macs: int
    server_macs: float
    edge_bytes: int
    server_bytes: int
    sent_bytes: float
    exits: float
    accuracy: float
    spread: float
    edge_mj: float
    computing_mj: float


def placements(outcomes: Sequence[Outcome], energy: EnergyModel) -> list[Placement]:
    """Every way to use one network, from the outcomes of its seeds.

    Args:
        outcomes: Of `capogrosso.run` for one network with exits.
        energy: The constants of the model.
    """
    net = outcomes[0]["net"]
    widths, weights = net["widths"], outcomes[0]["weights"]
    found = []
    for cut in range(len(widths) - 2):
        biases = sum(widths[1 : cut + 2]), sum(widths[cut + 2 :])
        head, tail = sum(weights[: cut + 1]), sum(weights[cut + 1 :])
        exit_weights, exit_biases = widths[cut + 1] * widths[-1], widths[-1]
        ways: tuple[Way, ...] = ("split", "early exit", "both")
        for way in ways:
            if way == "split":
                accuracies, leaves = [o["test"][-1] for o in outcomes], 0.0
            elif way == "early exit":
                accuracies, leaves = [o["test"][cut] for o in outcomes], 1.0
            else:
                accuracies = [o["gates"][cut]["accuracy"] for o in outcomes]
                leaves = mean([o["gates"][cut]["share"] for o in outcomes])
            here = head + (0 if way == "split" else exit_weights)
            there = 0 if way == "early exit" else tail
            sent = (1 - leaves) * widths[cut + 1] * 4
            computing = energy.compute_mj(here, here)
            found.append(
                Placement(
                    network=name_of(net),
                    cut=cut,
                    way=way,
                    edge_weights=here,
                    server_weights=there,
                    edge_macs=here,  # a fully connected weight is used once per input
                    server_macs=(1 - leaves) * tail,
                    edge_bytes=4 * (here + biases[0] + (0 if way == "split" else exit_biases)),
                    server_bytes=4 * (there + biases[1]) if there else 0,
                    sent_bytes=sent,
                    exits=leaves,
                    accuracy=mean(accuracies),
                    spread=interval(accuracies),
                    edge_mj=computing + energy.upload_mj(sent),
                    computing_mj=computing,
                )
            )
    return found


def title_table(rows: Sequence[Placement], energy: EnergyModel) -> str:
    """The placements as a table."""
    heads = ["network", "cut", "way", "edge weights", "edge", "server weights", "server", "server MACs", "sent"]
    heads += ["exits", "accuracy %", "edge µJ", "computing"]
    named = [None, *(row.network for row in rows)]
    cells = [
        [
            "" if row.network == before else row.network,
            str(row.cut),
            row.way,
            count_text(row.edge_weights),
            bytes_text(row.edge_bytes),
            count_text(row.server_weights),
            bytes_text(row.server_bytes),
            count_text(row.server_macs),
            bytes_text(row.sent_bytes),
            f"{100 * row.exits:.1f} %",
            f"{100 * row.accuracy:.2f} ± {100 * row.spread:.2f}",
            f"{1e3 * row.edge_mj:,.1f}",
            f"{1e3 * row.computing_mj:,.1f}",
        ]
        for before, row in zip(named, rows, strict=False)
    ]
    caption = (
        "the edge's MACs are its weights, each used once; server MACs, sent and energy: means per input. Energy "
        "is modelled, of the edge alone: "
        f"{energy.mac_pj} pJ a MAC, {energy.weight_pj:g} pJ a weight read (Horowitz 2014), Wi-Fi at "
        f"{energy.rate_mbps:g} Mbit/s (Huang et al. 2012)"
    )
    return table_text("Split, early exit, and both", heads, cells, caption=caption, width=180)
