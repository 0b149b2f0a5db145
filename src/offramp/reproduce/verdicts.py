"""What a study of regimes found, as a table and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from offramp.interval import interval, mean
from offramp.report.curves import Curve
from offramp.reproduce.study import Outcome
from offramp.tables import count_text, table_text

__all__ = ["curve_of", "regimes_table", "sentences"]

#: Points below the dense network that count as keeping its accuracy.
KEPT = 0.3


def curve_of(kind: str, outcomes: Sequence[Outcome], exit_index: int) -> Curve:
    """The accuracy of one kind against the factor, means over seeds, variants left out."""
    factors = sorted({o["factor"] for o in outcomes if o["kind"] == kind})
    found = [_accuracies(outcomes, kind, factor, exit_index) for factor in factors]
    return Curve(kind, factors, [mean(a) for a in found], [interval(a) for a in found])


def regimes_table(title: str, outcomes: Sequence[Outcome], what: str) -> str:
    """One row per kind and factor."""
    groups: dict[tuple[int, str, str], list[Outcome]] = {}
    for o in outcomes:
        groups.setdefault((o["factor"], o["variant"], o["kind"]), []).append(o)
    dense_s = _median([o["train_s"] for o in outcomes if o["kind"] == "dense"])
    rows = []
    for (factor, variant, kind), found in sorted(groups.items(), key=lambda group: group[0][:2]):
        first = found[0]
        spent = _median([o["train_s"] for o in found])
        cells = [_span([100 * o["test"][e] for o in found]) for e in range(len(first["test"]))]
        rows.append(
            [
                f"{kind}, {variant}" if variant else kind,
                "-" if kind == "dense" else f"{factor}x",
                count_text(first["weights"]),
                count_text(first["macs"]),
                *cells,
                f"{spent:.0f}",
                f"{dense_s / spent:.1f}x",
                f"{first['lr']:g}",
            ]
        )
    heads = ["network", "asked", "weights", "MACs", "early exit %", "final exit %", "training s", "faster", "lr"]
    caption = (
        f"{what}: mean ± half of its 95 % interval; weights and MACs with the exit; training in seconds of one "
        "core; narrow has the sparse one's weights, narrow-macs its MACs"
    )
    return table_text(title, heads, rows, caption=caption)


def sentences(outcomes: Sequence[Outcome]) -> list[str]:
    """The knee, where narrow is as good, and what each variant changes, for every exit."""
    said: list[str] = []
    variants = list(dict.fromkeys(o["variant"] for o in outcomes if o["variant"]))
    kinds = [kind for kind in ("narrow", "narrow-macs") if any(o["kind"] == kind for o in outcomes)]
    factors = sorted({o["factor"] for o in outcomes if o["kind"] == "sparse"})
    for e, what in enumerate(("early exit", "final exit")):
        dense = mean(_accuracies(outcomes, "dense", 1, e))
        drops = {factor: dense - mean(_accuracies(outcomes, "sparse", factor, e)) for factor in factors}
        kept = [factor for factor in factors if all(drops[f] <= KEPT + 1e-9 for f in factors if f <= factor)]
        if kept:
            knee = max(kept)
            change = f"{0.0 - drops[knee]:+.2f} points"
            said.append(f"{what}: sparse stays within {KEPT} points of dense up to {knee}x ({change})")
        else:
            first = factors[0]
            said.append(f"{what}: sparse is {drops[first]:.2f} points below dense at {first}x already")
        for kind in kinds:
            ahead = {
                f: _ahead(_by_seed(outcomes, "sparse", f, e), _by_seed(outcomes, kind, f, e)) for f in factors
            }
            told = ", ".join(f"{f}x {mean(a):+.2f} ± {interval(a):.2f}" for f, a in ahead.items())
            said.append(f"{what}: sparse against {kind}, seed by seed: {told}")
            level = [f"{f}x" for f, a in ahead.items() if mean(a) - interval(a) <= 0]
            if level:
                said.append(f"{what}: {kind} is as good as sparse at {', '.join(level)}")
        said += [_changed(outcomes, variant, e, what) for variant in variants]
    return said


def _changed(outcomes: Sequence[Outcome], variant: str, exit_index: int, what: str) -> str:
    """What a variant does to sparse, and whether it then beats the narrow network of as many MACs."""
    (factor,) = {o["factor"] for o in outcomes if o["variant"] == variant}

    def against(kind: str, other: str) -> str:
        ours = _by_seed(outcomes, "sparse", factor, exit_index, variant)
        return _span(_ahead(ours, _by_seed(outcomes, kind, factor, exit_index, other)), "+")

    return (
        f"{what}: sparse, {variant}, at {factor}x: {against('sparse', '')} against plain sparse, "
        f"{against('narrow-macs', variant)} against narrow-macs, {variant}"
    )


def _by_seed(
    outcomes: Sequence[Outcome], kind: str, factor: int, exit_index: int, variant: str = ""
) -> dict[int, float]:
    """Accuracies in %."""
    wanted = (kind, factor, variant)
    found = [o for o in outcomes if (o["kind"], o["factor"], o["variant"]) == wanted]
    return {o["seed"]: 100 * o["test"][exit_index] for o in sorted(found, key=lambda o: o["seed"])}


def _accuracies(outcomes: Sequence[Outcome], kind: str, factor: int, exit_index: int) -> list[float]:
    return list(_by_seed(outcomes, kind, factor, exit_index).values())


def _ahead(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """By how much, seed by seed."""
    return [accuracy - theirs[seed] for seed, accuracy in ours.items()]


def _span(values: Sequence[float], sign: str = "") -> str:
    """Mean and interval; of one value there is none."""
    spread = f" ± {interval(values):.2f}" if len(values) > 1 else ", one seed"
    return f"{mean(values):{sign}.2f}{spread}"


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
