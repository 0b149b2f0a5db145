"""The paper's title as a table: what lies where, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from offramp.policy.energy import EnergyModel
from offramp.reproduce.capogrosso import name_of, titles
from offramp.reproduce.title import Placement, placements, title_table

ENERGY = EnergyModel()


def outcome(net: dict[str, Any], seed: int, share: float, accuracy: float) -> dict[str, Any]:
    """As `capogrosso.run` leaves it."""
    widths = net["widths"]
    degrees = net["d_out"] or widths[1:]
    return {
        "net": net,
        "seed": seed,
        "weights": [n * d for n, d in zip(widths[:-1], degrees, strict=True)],
        "test": [0.5 + 0.01 * seed, 0.6 + 0.01 * seed, accuracy],
        "gates": [
            {"share": share, "accuracy": accuracy - 0.01},
            {"share": share / 2, "accuracy": accuracy - 0.02},
        ],
    }


def of(net: dict[str, Any]) -> list[Placement]:
    return placements([outcome(net, 0, 0.2, 0.90), outcome(net, 1, 0.6, 0.94)], ENERGY)


def only(rows: list[Placement], cut: int, way: str) -> Placement:
    (found,) = [row for row in rows if (row.cut, row.way) == (cut, way)]
    return found


SPARSE = next(net for net in titles() if net["d_out"] == [2, 9, 10])


def test_the_papers_sparse_network_by_hand() -> None:
    """800-40-40-10 with 1600, 360 and 400 weights, and 40, 40 and 10 biases; an exit has 400 and 10."""
    rows = of(SPARSE)
    split = only(rows, 0, "split")
    assert (split.edge_weights, split.server_weights) == (1600, 760)
    assert (split.edge_bytes, split.server_bytes) == (4 * 1640, 4 * 810)
    assert (split.edge_macs, split.server_macs, split.sent_bytes, split.exits) == (1600, 760, 160, 0)
    early = only(rows, 1, "early exit")
    assert (early.edge_weights, early.server_weights) == (2360, 0)
    assert (early.edge_bytes, early.server_bytes) == (4 * 2450, 0)
    assert (early.edge_macs, early.server_macs, early.sent_bytes, early.exits) == (2360, 0, 0, 1)
    both = only(rows, 1, "both")
    assert (both.edge_weights, both.server_weights) == (2360, 400)
    assert (both.edge_bytes, both.server_bytes) == (4 * 2450, 4 * 410)
    assert both.exits == pytest.approx(0.2)  # the mean of 0.1 and 0.3
    assert both.sent_bytes == pytest.approx(0.8 * 160)
    assert both.server_macs == pytest.approx(0.8 * 400)


def test_accuracies_are_of_what_answers() -> None:
    rows = of(SPARSE)
    assert only(rows, 0, "split").accuracy == only(rows, 1, "split").accuracy == pytest.approx(0.92)
    assert only(rows, 0, "early exit").accuracy == pytest.approx(0.505)
    assert only(rows, 1, "early exit").accuracy == pytest.approx(0.605)
    assert only(rows, 0, "both").accuracy == pytest.approx(0.91)
    assert only(rows, 1, "both").accuracy == pytest.approx(0.90)
    assert only(rows, 0, "split").spread == pytest.approx(12.706 * 0.02)  # deviation 0.04/√2, over √2 seeds
    assert only(rows, 0, "early exit").spread == pytest.approx(12.706 * 0.005)


def test_energy_is_computing_and_sending() -> None:
    both = only(of(SPARSE), 0, "both")
    assert both.edge_weights == 2000
    assert both.computing_mj == pytest.approx(2000 * (4.6 + 640) * 1e-9)
    sending = (283.17 * 10 + 132.86) * 0.6 * 160 * 8 / 10e6  # milliwatts for 0.6 of 1,280 bits at 10 Mbit/s
    assert both.edge_mj == pytest.approx(both.computing_mj + sending)


@pytest.mark.parametrize("net", titles(), ids=lambda net: f"{net['widths']}-{net['d_out']}")
def test_edge_and_server_add_up_to_the_network_at_every_cut(net: dict[str, Any]) -> None:
    weights = sum(outcome(net, 0, 0, 0)["weights"])
    biases = sum(net["widths"][1:])
    rows = of(net)
    assert [(row.cut, row.way) for row in rows] == [
        (cut, way) for cut in (0, 1) for way in ("split", "early exit", "both")
    ]
    assert len({row.network for row in rows}) == 1
    for row in rows:
        width = net["widths"][row.cut + 1]
        own_exit = 0 if row.way == "split" else 10 * width
        assert 0 <= row.exits <= 1
        assert row.computing_mj <= row.edge_mj
        if row.way == "early exit":
            assert (row.server_weights, row.server_macs, row.server_bytes) == (0, 0, 0)
            assert (row.sent_bytes, row.exits) == (0, 1)
            assert row.edge_mj == row.computing_mj
            continue
        assert row.edge_weights + row.server_weights == weights + own_exit
        assert row.edge_bytes + row.server_bytes == 4 * (weights + biases + own_exit + (10 if own_exit else 0))
        full = row.server_macs / (1 - row.exits)  # of an input that is sent
        assert row.edge_macs + full == pytest.approx(weights + own_exit)
        assert row.sent_bytes == pytest.approx((1 - row.exits) * 4 * width)


def test_everything_or_nothing_may_leave_at_a_gate() -> None:
    none, every = (only(placements([outcome(SPARSE, 0, share, 0.9)], ENERGY), 0, "both") for share in (0.0, 1.0))
    split = only(of(SPARSE), 0, "split")
    assert (none.sent_bytes, none.server_macs) == (split.sent_bytes, split.server_macs)
    assert (every.sent_bytes, every.server_macs, every.edge_mj) == (0, 0, every.computing_mj)
    assert every.server_weights == 760  # it lies there all the same
    assert every.spread == 0  # one seed


def test_more_cuts_follow_from_more_layers() -> None:
    net = {"widths": [20, 8, 6, 4, 2], "d_out": None, "pattern": None, "exits": True}
    found = outcome(net, 0, 0.5, 0.9)
    found["test"] = [0.5, 0.6, 0.7, 0.9]
    found["gates"].append({"share": 0.5, "accuracy": 0.9})
    rows = placements([found], ENERGY)
    assert [row.edge_weights for row in rows if row.way == "split"] == [160, 208, 232]
    assert [row.server_weights for row in rows if row.way == "split"] == [80, 32, 8]


def table_rows(table: str) -> list[list[str]]:
    """The cells of every row; none is folded."""
    lines = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_the_table_shows_every_placement_and_where_its_constants_come_from() -> None:
    table = title_table([row for net in titles() for row in of(net)], ENERGY)
    found = table_rows(table)
    assert [row[1:3] for row in found] == len(titles()) * [
        [cut, way] for cut in ("0", "1") for way in ("split", "early exit", "both")
    ]
    named = {i: row[0] for i, row in enumerate(found) if row[0]}
    assert named == {6 * i: name_of(net) for i, net in enumerate(titles())}  # each once, at its first placement
    sparse = found[6:12]
    assert sparse[0][3:] == [
        *("1,600", "6560 B"),  # edge
        *("760", "3240 B", "760", "160 B"),  # server
        *("0.0 %", "92.00 ± 25.41"),
        *("380.5", "1.0"),  # 1,600 weights at 644.6 pJ, and 1,280 bits at 2,964.56 mW and 10 Mbit/s
    ]
    assert sparse[2][3:] == [
        *("2,000", "8200 B"),
        *("760", "3240 B", "456", "96 B"),
        *("40.0 %", "91.00 ± 25.41"),
        *("229.0", "1.3"),
    ]
    assert "4.6 pJ a MAC, 640 pJ a weight read" in table
    assert "10 Mbit/s" in table
