"""`SparsityReport`: what `sparsify_` did, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from offramp.tables import count_text, table_text

__all__ = ["LayerReport", "SparsityReport"]


@dataclass(frozen=True)
class LayerReport:
    """One layer of a `SparsityReport`.

    Attributes:
        name: The layer's name in the model.
        kind: Its class now.
        shape: Left and right neurons, and the kernel.
        asked: The density asked for; None where none was.
        given: The density that it has.
        blocks: Its pattern's blocks, 1 for a dense layer; None for a pattern without blocks.
        layout: Its pattern's layout, or the pattern's name if it has none.
        weights_dense: Weights before, bias not counted.
        weights: Weights now.
        macs_dense: Multiply-accumulates before; None without an example input.
        macs: Multiply-accumulates now.
        note: Why it stayed dense, what was rounded, what is slow.
    """

    name: str
    kind: str
    shape: str
    asked: float | None
    given: float
    blocks: int | None
    layout: str
    weights_dense: int
    weights: int
    macs_dense: int | None
    macs: int | None
    note: str


@dataclass(frozen=True)
class SparsityReport:
    """What `sparsify_` did, layer by layer; prints as a table."""

    layers: tuple[LayerReport, ...]

    @property
    def weights_dense(self) -> int:
        """Weights of these layers before, biases not counted."""
        return sum(layer.weights_dense for layer in self.layers)

    @property
    def weights(self) -> int:
        """Weights of these layers now, biases not counted."""
        return sum(layer.weights for layer in self.layers)

    @property
    def density(self) -> float:
        """The network's density, Σ|W_i| / ΣN_{i-1}N_i."""
        return self.weights / self.weights_dense

    @property
    def macs_dense(self) -> int | None:
        """Multiply-accumulates of these layers before, for one sample; None without an example input."""
        return _sum([layer.macs_dense for layer in self.layers])

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of these layers now, for one sample; None without an example input."""
        return _sum([layer.macs for layer in self.layers])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every change from what was asked for, and every slow choice."""
        return tuple(f"{layer.name}: {layer.note}" for layer in self.layers if layer.note)

    @property
    def advice(self) -> tuple[str, ...]:
        """What the studies found better than what was done here (docs/sparsity.md)."""
        convolutions = [layer for layer in self.layers if layer.kind.startswith("SparseConv")]
        alone = [layer for layer in convolutions if layer.blocks is not None and layer.given * layer.blocks < 1.5]
        if not alone:
            return ()
        return (
            f"{len(alone)} of {len(convolutions)} sparse convolutions join each block to one alone; joined to two "
            f"(such as blocks={2 * (alone[0].blocks or 1)}) they were more accurate on CIFAR-10, for a tenth more "
            "time: docs/sparsity.md",
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "weights_dense": self.weights_dense,
            "weights": self.weights,
            "density": self.density,
            "macs_dense": self.macs_dense,
            "macs": self.macs,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        def count(value: int | None) -> str:
            return "-" if value is None else count_text(value)

        rows = [
            [
                layer.name,
                layer.kind,
                layer.shape,
                "-" if layer.asked is None else f"{layer.asked:.4g}",
                f"{layer.given:.4g}",
                "-" if layer.blocks is None else str(layer.blocks),
                layer.layout,
                count(layer.weights_dense),
                count(layer.weights),
                count(layer.macs_dense),
                count(layer.macs),
                layer.note,
            ]
            for layer in self.layers
        ]
        heads = ["layer", "kind", "shape", "asked", "given", "blocks", "layout"]
        heads += ["dense weights", "weights", "dense MACs", "MACs", "note"]
        total = f"{count_text(self.weights)} of {count_text(self.weights_dense)} weights: {self.density:.3f}"
        if self.macs is not None and self.macs_dense is not None:
            total += f"; {count_text(self.macs)} of {count_text(self.macs_dense)} MACs"
        caption = "; ".join([f"network density: {total}", *self.advice])
        return table_text("Predefined sparsity", heads, rows, caption=caption)


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
