"""Rows as a table in text, drawn by rich."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

__all__ = ["bytes_text", "count_text", "table_text"]


def table_text(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", width: int = 160
) -> str:
    """A table as plain text; columns whose cells all look like numbers are set flush right, but for the first.

    Args:
        title: Above the table.
        columns: The heads.
        rows: Cells as text, one sequence per row.
        caption: Below the table.
        width: The most characters in a line.
    """
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for i, head in enumerate(columns):
        cells = [row[i] for row in rows if row[i] not in ("", "-")]
        numeric = i > 0 and bool(cells) and all(cell[:1] in "0123456789.+-" for cell in cells)
        # What a row is called stays whole, so that it can be copied; other cells are folded first.
        table.add_column(head, justify="right" if numeric else "left", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def count_text(value: float) -> str:
    """A count with its thousands set apart, or in millions: 12,345 · 18.7M."""
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value:,.0f}"


def bytes_text(value: float) -> str:
    """Bytes with a unit: 784 B · 12.3 KB · 1.46 MB (powers of ten)."""
    if value < 1e4:
        return f"{value:.0f} B"
    return f"{value / 1e3:.1f} KB" if value < 1e6 else f"{value / 1e6:.2f} MB"
