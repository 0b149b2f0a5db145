"""The demo's report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from offramp.report.pictures import accuracy_against_cost, choices_over_time, exit_shares, latency_parts
from offramp.report.rows import Row
from offramp.tables import bytes_text, count_text

__all__ = ["report_page"]


def report_page(
    rows: Sequence[Row],
    networks: Mapping[str, Mapping[str, Any]],
    choices: Sequence[int],
    settings: Mapping[str, Any],
) -> str:
    """The page as text.

    Args:
        rows: One per policy.
        networks: "dense", "narrow" and "sparse", each with the keys that `results.json` has.
        choices: The split that the learning policy chose, input by input.
        settings: What was run and how; see the template.
    """
    environment = Environment(
        loader=PackageLoader("offramp", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,  # a name that nobody gives would leave columns without heads
    )
    environment.filters["bytes"] = bytes_text
    environment.filters["count"] = count_text
    exits = 1 + max(e for row in rows for e in row.exit_share)
    pictures = {
        "accuracy": accuracy_against_cost(rows),
        "latency": latency_parts(rows),
        "exits": exit_shares(rows, exits),
        "choices": choices_over_time(choices),
    }
    return environment.get_template("report.html.j2").render(
        rows=rows,
        networks=networks,
        settings=settings,
        pictures={name: Markup(svg) for name, svg in pictures.items()},  # our own SVG
    )
