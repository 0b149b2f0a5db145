"""A picture of sparsity patterns: which left neurons each right neuron joins, one panel per layer."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from offramp.bundle.manifest import Provenance
from offramp.errors import BundleManifestError, ConfigError
from offramp.report.pictures import svg
from offramp.sparse.block import BlockPattern
from offramp.sparse.clash_free import ClashFreePattern
from offramp.sparse.pattern import Pattern
from offramp.sparse.registry import pattern_from_recipe

__all__ = ["check_suffix", "joined_shares", "patterns_picture", "stored_patterns", "write_patterns"]

#: The pictures that can be written.
SUFFIXES = (".svg", ".png")
#: A side of more neurons than this is averaged down.
MOST_CELLS = 256
#: The neurons of either side that an inset shows one by one.
CORNER = 24
#: Recipes come from a file, so they are held to what can be drawn in seconds.
MOST_NEURONS, MOST_IN_BLOCKS, MOST_JOINS, MOST_LAYERS = 2**14, 2**17, 2**24, 256
_GREY = "#5f6b76"
_INK = LinearSegmentedColormap.from_list("ink", ["#f4f6f8", "#31688e", "#14213d"])


def patterns_picture(patterns: Mapping[str, Pattern]) -> str:
    """Any patterns as a grid of panels, in SVG; the same patterns give the same text.

    Left neurons run to the right, right neurons downwards, and joined pairs are dark. A side of more than 256
    neurons is averaged down to cells; a cell is the darker, the more of its pairs are joined (by the square
    root, so that low densities stay visible). Where every cell holds a join, an inset shows the first neurons of
    either side one by one.

    Args:
        patterns: By layer name; at most 256.

    Raises:
        ConfigError: No patterns, or too many.
    """
    return svg(_figure(patterns))


def write_patterns(patterns: Mapping[str, Pattern], path: str | Path) -> None:
    """Writes `patterns_picture` to a file, as SVG or PNG by its suffix.

    Raises:
        ConfigError: Another suffix, a path that cannot be written, or what `patterns_picture` refuses.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix.lower() == ".svg":
        content = patterns_picture(patterns).encode()
    else:
        out = io.BytesIO()
        FigureCanvasAgg(_figure(patterns, dpi=200)).print_png(out)  # type: ignore[no-untyped-call]
        content = out.getvalue()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {error.strerror}") from error


def check_suffix(path: Path) -> None:
    """Refuses a picture's path whose suffix is not among `SUFFIXES`.

    Raises:
        ConfigError: Another suffix, or none.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"a picture's name ends in {' or '.join(SUFFIXES)}, unlike {path}")


def stored_patterns(provenance: Provenance) -> dict[str, Pattern]:
    """A bundle's patterns by layer, rebuilt from their recipes and compared with their digests.

    Raises:
        BundleManifestError: A recipe that makes no pattern, or not the one with the recipe's digest.
        ConfigError: No sparse layers, or patterns too large to draw.
    """
    recipes = provenance.patterns
    if not recipes:
        raise ConfigError("the bundle has no sparse layers, so there are no patterns to draw")
    _check_count(recipes)
    return {name: _rebuilt(_shown(name, 60), recipe) for name, recipe in recipes.items()}


def _rebuilt(layer: str, recipe: dict[str, Any]) -> Pattern:
    try:
        pattern = pattern_from_recipe({entry: value for entry, value in recipe.items() if entry != "digest"})
    except ConfigError as error:
        raise BundleManifestError(f"layer {layer}: {error}") from error
    # Nothing has been drawn yet, so that a few numbers in a file cannot ask for all memory or time.
    most, joins = MOST_NEURONS, pattern.weights
    if isinstance(pattern, BlockPattern):  # drawn from its blocks, where these are fewer
        most, joins = MOST_IN_BLOCKS, min(pattern.blocks**2, pattern.weights)
    if max(pattern.n_left, pattern.n_right) > most or joins > MOST_JOINS:
        raise ConfigError(
            f"layer {layer} is too large to draw: {pattern.n_left:,}→{pattern.n_right:,} neurons and {joins:,} "
            f"joins to place; at most {most:,} neurons a side and {MOST_JOINS:,} joins"
        )
    try:
        digest = pattern.digest
    except ConfigError as error:  # degrees for which no draw ends well
        raise BundleManifestError(f"layer {layer}: {error}") from error
    if digest != recipe.get("digest"):
        raise BundleManifestError(
            f"layer {layer}: its recipe makes a pattern with another digest than the stored one; the manifest was "
            "altered, or this offramp draws otherwise"
        )
    return pattern


def _check_count(patterns: Mapping[str, Any]) -> None:
    if not 0 < len(patterns) <= MOST_LAYERS:
        raise ConfigError(f"a picture shows 1 to {MOST_LAYERS} patterns, not {len(patterns):,}")


def _figure(patterns: Mapping[str, Pattern], *, dpi: int = 100) -> Figure:
    _check_count(patterns)
    columns = _columns(len(patterns))
    rows = math.ceil(len(patterns) / columns)
    side = 3.4 if columns == 1 else 2.5 if columns == 2 else 1.95  # inches
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, wspace=0.03, hspace=0.03)
    figure = Figure(dpi=dpi, layout=layout)
    caption = ["left neurons →, right neurons ↓, joined pairs dark"]
    for i, (name, pattern) in enumerate(patterns.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        _title(axes, _shown(name, int(11 * side)), pattern)
        caption += _panel(axes, pattern)
    caption = list(dict.fromkeys(caption))  # each part once, in the order in which they came up
    lines = caption if columns < 4 else ["; ".join(caption)]
    figure.supxlabel("\n".join(lines), fontsize=6.5, color=_GREY)
    figure.set_size_inches(columns * side + 0.1, rows * (side + 0.42) + 0.12 * len(lines) + 0.1)
    return figure


def _columns(panels: int) -> int:
    """The columns of a grid about as wide as high, or wider, with the fewest empty places."""
    widths = range(math.isqrt(panels), math.ceil(math.sqrt(2 * panels)) + 1)
    return min(widths, key=lambda columns: (-panels % columns, -columns))


def _title(axes: Axes, name: str, pattern: Pattern) -> None:
    # A name is no formula: without parse_math a pair of $ would be read as one.
    axes.set_title(name, loc="left", fontsize=8, fontweight="bold", pad=20).set_parse_math(False)
    axes.annotate(
        f"{pattern.n_left:,}→{pattern.n_right:,}, density {float(pattern.density):.4g}\n{_kind(pattern)}",
        (0, 1),
        (0, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=6.5,
        color=_GREY,
    ).set_parse_math(False)


def _panel(axes: Axes, pattern: Pattern) -> list[str]:
    """Draws one pattern; gives what the caption should say about it."""
    n_left, n_right = pattern.n_left, pattern.n_right
    across, down = math.ceil(n_left / MOST_CELLS), math.ceil(n_right / MOST_CELLS)  # neurons per cell
    cells = joined_shares(pattern, np.arange(n_right) // down, np.arange(n_left) // across)
    _image(axes, cells, (cells.shape[0] * down, cells.shape[1] * across))
    axes.set_xlim(0, n_left)  # the last cell may hold fewer neurons
    axes.set_ylim(n_right, 0)
    axes.set_box_aspect(1)
    axes.set_yticks([n_right], [f"{n_right:,}"])
    axes.get_yticklabels()[0].set(rotation=90, va="bottom")
    note = f"cells {across}×{down}" if max(across, down) > 1 else ""
    axes.set_xticks([0, n_left / 2, n_left], ["0", note, f"{n_left:,}"])
    first, _, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")  # within the panel, clear of the neighbour's
    last.set_horizontalalignment("right")
    axes.tick_params(length=0, pad=2, labelsize=6, colors=_GREY)
    axes.spines[:].set(color="#c9cdd2", linewidth=0.6)
    if not note:
        return []
    if cells.min() == 0 or pattern.density == 1:
        return ["cells show the share that is joined"]
    # Every cell holds a join, so that averaging hides how they lie: strided blocks turn into one grey.
    ends = (np.minimum(np.arange(n), CORNER) for n in (n_right, n_left))
    corner = joined_shares(pattern, *ends)[:CORNER, :CORNER]
    inset = axes.inset_axes((0.53, 0.04, 0.43, 0.43))
    _image(inset, corner, corner.shape)
    inset.set_xticks([])
    inset.set_yticks([])
    inset.spines[:].set(color="white", linewidth=2)
    return ["cells show the share that is joined", f"insets: the first {CORNER} neurons of either side"]


def _image(axes: Axes, shares: NDArray[np.float64], size: tuple[int, ...]) -> None:
    axes.imshow(
        shares,
        cmap=_INK,
        norm=PowerNorm(0.5, vmin=0, vmax=1),
        # "none" leaves the cells to the viewer as they are; anything else would resample them at the page's dpi.
        interpolation="none",
        aspect="auto",
        extent=(0, size[1], size[0], 0),
    )


def _kind(pattern: Pattern) -> str:
    if isinstance(pattern, BlockPattern):
        blocks = f"{pattern.joined} of {pattern.blocks}" if pattern.joined > 1 else f"{pattern.blocks}"
        return f"{blocks} blocks, {pattern.layout}"
    if isinstance(pattern, ClashFreePattern):
        return f"clash-free {pattern.kind}, z = {pattern.z}"
    return f"{pattern.name}, d_out {pattern.d_out}"


def _shown(name: str, most: int) -> str:
    """A name in letters that every font has; of a long one the end, which tells layers apart."""
    plain = ascii(name)[1:-1]
    return plain if len(plain) <= most else f"…{plain[-most + 1 :]}"


def joined_shares(
    pattern: Pattern, right_cell: NDArray[np.int64], left_cell: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The share of joined pairs in every cell, (cells downwards, cells to the right).

    Args:
        pattern: Any pattern.
        right_cell: The cell of each right neuron, (n_right,); no cell from 0 to the last is without a neuron.
        left_cell: The same for left neurons, (n_left,).
    """
    rows, columns = int(right_cell.max()) + 1, int(left_cell.max()) + 1
    if isinstance(pattern, BlockPattern) and pattern.blocks**2 < pattern.weights:
        # From block to block: the largest layers never need their joins neuron by neuron.
        joined = np.zeros((pattern.blocks, pattern.blocks))
        joined[np.arange(pattern.blocks)[:, None], pattern.left_blocks] = 1
        right = np.stack([np.bincount(right_cell[b], minlength=rows) for b in pattern.neurons("right")])
        left = np.stack([np.bincount(left_cell[b], minlength=columns) for b in pattern.neurons("left")])
        counts = right.T @ joined @ left
    else:
        flat = right_cell[pattern.right_order][:, None] * columns + left_cell[pattern.left_of]
        counts = np.bincount(flat.ravel(), minlength=rows * columns).reshape(rows, columns).astype(np.float64)
    return np.asarray(counts / np.outer(np.bincount(right_cell), np.bincount(left_cell)))
