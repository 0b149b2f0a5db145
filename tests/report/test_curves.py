"""Pictures of studies: what they show, and that the same figures give the same picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from xml.sax.saxutils import unescape

import pytest

from offramp.report.curves import Curve, Panel, curves, placements_picture

SVG = "{http://www.w3.org/2000/svg}"
SPARSE = Curve("sparse", [2, 4, 8], [95.0, 94.0, 90.0], [0.1, 0.2, 3.0])
NARROW = Curve("narrow", [2, 8], [94.5, 91.0], [0.1, 0.4])
PANEL = Panel("early exit", [SPARSE, NARROW], (95.2, "dense"), (94.9, "0.3 points below"))


def texts(picture: str) -> list[str]:
    """What is written: letters are drawn as paths, each text behind a comment that says it."""
    ET.fromstring(picture)
    return [unescape(text) for text in re.findall(r"<!-- (.*?) -->", picture)]


def marks(picture: str, colour: str) -> int:
    """Marks that are drawn in a colour, those of the legend among them."""
    uses = ET.fromstring(picture).iter(f"{SVG}use")
    return sum(f"fill: {colour}" in use.get("style", "") for use in uses)


def width(picture: str) -> float:
    return float(ET.fromstring(picture).get("width", "").removesuffix("pt"))


def test_a_picture_is_svg_that_names_what_it_shows():
    picture = curves([PANEL], "fewer weights")
    assert ET.fromstring(picture).tag == f"{SVG}svg"
    said = texts(picture)
    for text in (
        "early exit",
        "fewer weights",
        "test accuracy in %",
        "sparse",
        "narrow",
        "dense",
        "0.3 points below",
    ):
        assert said.count(text) == 1, text


def test_factors_are_ticks():
    assert [text for text in texts(curves([PANEL], "x")) if re.fullmatch(r"[\d.]+x", text)] == ["2x", "4x", "8x"]
    halves = Panel("", [Curve("a", [1.5, 32], [1, 2], [0, 0])], (1, "dense"))
    assert {"1.5x", "32x"} <= set(texts(curves([halves], "x")))


def test_every_point_is_drawn_in_its_kinds_colour():
    """With the two ends of its interval; one more of each stands in the legend."""
    picture = curves([PANEL], "x")
    assert marks(picture, "#d1495b") == 3 * (3 + 1)
    assert marks(picture, "#31688e") == 3 * (2 + 1)


def test_levels_stand_where_they_are():
    """At the height of the points that reach them."""
    panel = Panel("", [Curve("sparse", [2, 4], [95.0, 94.0], [0.0, 0.0])], (95.0, "dense"), (94.0, "below"))
    drawn = ET.fromstring(curves([panel], "x"))
    across = [  # the legend's lines are not clipped
        path.get("d", "")
        for path in drawn.iter(f"{SVG}path")
        if path.get("clip-path") and "stroke: #440154" in path.get("style", "")
    ]
    heights = [{float(y) for y in re.findall(r"[ML] \S+ (\S+)", line)} for line in across]
    points = {float(use.get("y", "")) for use in drawn.iter(f"{SVG}use") if "#d1495b" in use.get("style", "")}
    assert [len(height) for height in heights] == [1, 1]
    assert heights[0] != heights[1]
    assert heights[0] | heights[1] <= points


def test_panels_stand_side_by_side_and_share_what_is_written_at_the_left():
    one, two = curves([PANEL], "x"), curves([PANEL, Panel("final exit", [NARROW], (95.0, "dense"))], "x")
    assert width(two) == pytest.approx(2 * width(one), rel=0.05)
    said = texts(two)
    assert said.count("test accuracy in %") == 1
    assert [said.count(text) for text in ("early exit", "final exit", "x")] == [1, 1, 2]
    assert [said.count(text) for text in ("sparse", "narrow", "dense", "0.3 points below")] == [1, 2, 2, 1]


@pytest.mark.parametrize("name", ["sparse, late", "0.3 α ± β", "a < b & c"])
def test_any_name_can_be_in_the_legend(name):
    picture = curves([Panel(name, [Curve(name, [2], [1.0], [0.0])], (1.0, "dense"))], "x")
    assert texts(picture).count(name) == 2  # and above


def test_the_same_curves_give_the_same_picture():
    assert curves([PANEL], "x") == curves([PANEL], "x")
    assert curves([PANEL], "x") != curves([Panel("early exit", [SPARSE], (95.2, "dense"))], "x")


# --- Placements ------------------------------------------------------------------------------------------

ROWS = [
    (network, way, cut, 10.0 ** (cut + i), 90.0 + cut + i, 1000)
    for i, network in enumerate(("800-40-40-10 dense", "800-40-40-10 (2, 9, 10) block"))
    for way in ("split", "early exit", "both")
    for cut in (0, 1)
]


def test_placements_name_networks_ways_and_cuts():
    said = texts(placements_picture(ROWS))
    for text in ("800-40-40-10 dense", "800-40-40-10 (2, 9, 10) block", "split", "early exit", "both"):
        assert said.count(text) == 1, text
    assert said.count("0") == said.count("1") == 6
    assert "test error in %" in said
    assert any("modelled energy of the edge per input in µJ" in text for text in said)


def test_every_placement_is_a_point_in_its_networks_colour():
    picture = placements_picture(ROWS)
    assert marks(picture, "#31688e") == 6 + 1
    assert marks(picture, "#d1495b") == 6 + 1
    assert marks(placements_picture(ROWS[:-1]), "#d1495b") == 5 + 1


def test_more_energy_is_to_the_right_and_fewer_errors_are_lower():
    rows = [("a", "split", 0, 1.0, 90.0, 10), ("b", "split", 0, 100.0, 99.0, 10)]
    uses = ET.fromstring(placements_picture(rows)).iter(f"{SVG}use")
    first, second = (  # the legend's follow
        next(use for use in uses if f"fill: {colour}" in use.get("style", "")) for colour in ("#31688e", "#d1495b")
    )
    assert float(first.get("x", "")) < float(second.get("x", ""))
    assert float(first.get("y", "")) < float(second.get("y", ""))  # SVG counts downwards


def test_a_network_may_lack_a_way():
    said = texts(placements_picture([row for row in ROWS if row[1] == "split"]))
    assert {"split", "early exit", "both"} <= set(said)


def test_the_same_placements_give_the_same_picture():
    assert placements_picture(ROWS) == placements_picture(ROWS)
