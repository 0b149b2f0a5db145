"""What is said of a study, on outcomes made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from offramp.reproduce.verdicts import curve_of, regimes_table, sentences

Outcomes = list[dict[str, Any]]


def outcomes(
    kind: str, factor: int, *final: float, early: float = 50.0, variant: str = "", **other: Any
) -> Outcomes:
    """One per seed, with these accuracies in % at the last exit."""
    told = {"kind": kind, "factor": factor, "variant": variant, "lr": 0.008, "train_s": 10.0}
    counts = {"weights": 1000 // factor, "macs": 2_000_000 // factor}
    return [
        {**told, **counts, "seed": seed, "test": [early / 100, value / 100], **other}
        for seed, value in enumerate(final)
    ]


DENSE = outcomes("dense", 1, 95.0, 95.2, 94.8)


def at_the_end(found: Outcomes) -> list[str]:
    return [line.removeprefix("final exit: ") for line in sentences(found) if line.startswith("final exit: ")]


def sparse(*means: float) -> Outcomes:
    """Sparse networks at 2x, 4x, 8x, …, three seeds each."""
    return [o for i, m in enumerate(means) for o in outcomes("sparse", 2 ** (i + 1), m, m + 0.2, m - 0.2)]


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ((95.5, 94.9, 94.8, 92.0), "sparse stays within 0.3 points of dense up to 8x (-0.20 points)"),
        ((95.5, 95.4), "sparse stays within 0.3 points of dense up to 4x (+0.40 points)"),
        ((94.7,), "sparse stays within 0.3 points of dense up to 2x (-0.30 points)"),
        ((94.9, 94.5, 95.0), "sparse stays within 0.3 points of dense up to 2x (-0.10 points)"),  # no way back
        ((94.69, 95.0), "sparse is 0.31 points below dense at 2x already"),
    ],
)
def test_the_knee_is_where_the_accuracy_is_last_kept(means: tuple[float, ...], said: str) -> None:
    assert at_the_end([*DENSE, *sparse(*means)]) == [said]


def test_each_exit_is_judged_by_itself() -> None:
    found = [*DENSE, *outcomes("sparse", 2, 95.0, 95.0, 95.0, early=49.0)]
    said = sentences(found)
    assert said[0] == "early exit: sparse is 1.00 points below dense at 2x already"
    assert said[1].startswith("final exit: sparse stays within 0.3 points of dense up to 2x")


def test_narrow_is_compared_seed_by_seed() -> None:
    """2.0 ± 0.1 apart in every seed, though the seeds themselves are a point apart."""
    narrow = outcomes("narrow", 2, 92.0, 93.0, 94.0)
    found = [*DENSE, *outcomes("sparse", 2, 94.0, 95.1, 95.9), *reversed(narrow)]  # the order says nothing
    assert at_the_end(found)[1:] == ["sparse against narrow, seed by seed: 2x +2.00 ± 0.25"]


def test_narrow_is_as_good_where_the_interval_reaches_nothing() -> None:
    found = [*DENSE, *sparse(95.0, 94.0, 93.0)]
    found += outcomes("narrow", 2, 94.0, 94.2, 93.8)  # a point below, every time
    found += outcomes("narrow", 4, 93.9, 94.5, 93.4)  # now above, now below
    found += outcomes("narrow", 8, 93.5, 93.7, 93.3)  # above
    said = at_the_end(found)
    assert said[1].startswith("sparse against narrow, seed by seed: 2x +1.00 ± 0.00, 4x ")
    assert said[1].endswith("8x -0.50 ± 0.00")
    assert said[2] == "narrow is as good as sparse at 4x, 8x"


def test_nothing_is_as_good_where_sparse_always_wins() -> None:
    said = at_the_end([*DENSE, *sparse(95.0), *outcomes("narrow", 2, 94.0, 94.2, 93.8)])
    assert not [line for line in said if "as good" in line]


def test_both_narrow_rivals_are_told_apart() -> None:
    found = [*DENSE, *sparse(95.0)]
    found += outcomes("narrow", 2, 94.0, 94.2, 93.8) + outcomes("narrow-macs", 2, 96.0, 96.2, 95.8)
    assert at_the_end(found)[1:] == [
        "sparse against narrow, seed by seed: 2x +1.00 ± 0.00",
        "sparse against narrow-macs, seed by seed: 2x -1.00 ± 0.00",
        "narrow-macs is as good as sparse at 2x",
    ]


def test_one_seed_has_no_interval() -> None:
    found = [*outcomes("dense", 1, 95.0), *outcomes("sparse", 2, 94.0), *outcomes("narrow", 2, 93.0)]
    assert at_the_end(found) == [
        "sparse is 1.00 points below dense at 2x already",
        "sparse against narrow, seed by seed: 2x +1.00 ± 0.00",
    ]


def test_variants_are_compared_with_plain_sparse_and_with_the_rival_that_has_them_too() -> None:
    found = [*DENSE, *outcomes("sparse", 4, 90.0, 91.0, 92.0), *outcomes("narrow-macs", 4, 93.0, 93.0, 93.0)]
    found += outcomes("sparse", 4, 93.0, 94.0, 95.0, variant="longer")
    found += outcomes("narrow-macs", 4, 93.5, 94.5, 95.5, variant="longer")
    found += outcomes("sparse", 4, 91.0, 92.0, 93.0, variant="late")
    found += outcomes("narrow-macs", 4, 90.0, 91.0, 92.0, variant="late")
    said = at_the_end(found)
    assert said[-2:] == [
        "sparse, longer, at 4x: +3.00 ± 0.00 against plain sparse, -0.50 ± 0.00 against narrow-macs, longer",
        "sparse, late, at 4x: +1.00 ± 0.00 against plain sparse, +1.00 ± 0.00 against narrow-macs, late",
    ]
    assert said[0] == "sparse is 4.00 points below dense at 4x already"  # variants say nothing of the knee


def test_curves_are_means_by_factor_without_variants() -> None:
    found = [*DENSE, *outcomes("sparse", 8, 80.0, 82.0), *sparse(95.0)]
    found += outcomes("sparse", 2, 10.0, 10.0, variant="late")
    curve = curve_of("sparse", found, 1)
    assert (curve.name, curve.x) == ("sparse", [2, 8])
    assert curve.y == pytest.approx([95.0, 81.0])
    assert curve.spread == pytest.approx([4.303 * 0.2 / 3**0.5, 12.706])
    assert curve_of("sparse", found, 0).y == pytest.approx([50.0, 50.0])


def test_the_table_has_a_row_for_every_kind_factor_and_variant() -> None:
    found = [*outcomes("sparse", 4, 90.0, 92.0, train_s=2.5), *outcomes("dense", 1, 95.0, 95.0)]
    found += outcomes("narrow", 4, 91.0, 91.0, train_s=20.0, lr=0.016) + outcomes(
        "sparse", 4, 93.0, variant="late"
    )
    table = regimes_table("A title", found, "3 epochs, 2 seeds")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line[:1] == "│"]
    assert rows == [
        ["dense", "-", "1,000", "2.00M", "50.00 ± 0.00", "95.00 ± 0.00", "10", "1.0x", "0.008"],
        ["sparse", "4x", "250", "500,000", "50.00 ± 0.00", "91.00 ± 12.71", "2", "4.0x", "0.008"],
        ["narrow", "4x", "250", "500,000", "50.00 ± 0.00", "91.00 ± 0.00", "20", "0.5x", "0.016"],
        ["sparse, late", "4x", "250", "500,000", "50.00, one seed", "93.00, one seed", "10", "1.0x", "0.008"],
    ]
    assert table.startswith("A title")
    assert "3 epochs, 2 seeds: mean ± half of its 95 % interval" in table
