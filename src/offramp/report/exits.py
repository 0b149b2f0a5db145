"""What exits and cuts are worth, as a picture: accuracy over work, bytes over place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import FuncFormatter

from offramp.report.pictures import panels, svg
from offramp.tables import bytes_text

__all__ = ["exits_picture"]

_WAYS = ("#31688e", "#d1495b", "#35b779")
_MODES = ("#440154", "#31688e", "#35b779", "#f08a24", "#d1495b", "#8d99ae")

Points = Sequence[tuple[float, float]]


def exits_picture(exits: Mapping[str, Points], cascades: Mapping[str, Points], sent: Mapping[str, Points]) -> str:
    """Two panels as SVG text.

    Args:
        exits: By way of training, per exit the cumulative multiply-accumulates in millions and the accuracy in %.
        cascades: By way of training, per cascade its mean multiply-accumulates and its accuracy.
        sent: By mode, per cut the share of the work before it in % and the bytes that cross.
    """
    figure, (left, right) = panels(10.4, 4.2, 2)
    for colour, (way, points) in zip(_WAYS, exits.items(), strict=False):
        left.plot(*zip(*points, strict=True), "o-", color=colour, ms=4, label=f"exits, {way}")
        left.plot(
            *zip(*cascades[way], strict=True), "*", color=colour, ms=12, mec="white", label=f"cascades, {way}"
        )
    left.set_xlabel("million multiply-accumulates per image, heads on the way included", fontsize=8)
    left.set_ylabel("test accuracy in %", fontsize=8)
    left.legend(frameon=False, fontsize=7, loc="lower right")
    for colour, (mode, points) in zip(_MODES, sent.items(), strict=False):
        right.plot(*zip(*points, strict=True), "o-", color=colour, ms=4, label=mode)
    right.set_yscale("log")
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    right.set_xlabel("share of the work before the cut, in %", fontsize=8)
    right.set_ylabel("what crosses for one image", fontsize=8)
    right.legend(frameon=False, fontsize=7)
    return svg(figure)
