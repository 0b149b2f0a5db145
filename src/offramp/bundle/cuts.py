"""Where a graph can be cut: places found, places named, and the places that send least within limits.

A place is a set of operations that needs nothing from the rest, the head; what crosses is what the rest reads of
it. Neighbouring places that differ by operations without multiply-accumulates (a Relu, a Reshape, a pooling)
are one as far as work goes. Of those the one that sends least is listed, of equals the last: values after a Relu
compress best. Any other may be named. Of the many places inside parallel branches those are listed that follow
the file's order; `best_cuts` looks at all.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from offramp.bundle.dataflow import Dataflow, needs
from offramp.bundle.manifest import TensorSpec
from offramp.bundle.mincut import Operations, smallest_cut
from offramp.bundle.onnxload import load_onnx, prepared
from offramp.bundle.partition import depths, tensor_spec
from offramp.bundle.shapes import node_macs
from offramp.errors import ConfigError, ExportError

__all__ = ["Cut", "CutGraph", "best_cuts", "cuts_at", "find_cuts"]


@dataclass(frozen=True)
class Cut:
    """A place to cut at.

    Attributes:
        name: The tensors that cross, joined by "+".
        tensors: The same, with dtype and shape of one sample, in the order in which they are computed.
        compression: c, its bytes over those of the input (arXiv 2205.11269).
        macs_before: Multiply-accumulates of the head for one sample.
        macs_after: Those of the tail.
        depth: ℓ, convolution and linear layers on the longest path to it.
        bottleneck: A natural bottleneck: c < 1, and below that of every place with a smaller head (ibid.).
        proven: Whether no place within the limits sends less, if it was chosen for that.
    """

    name: str
    tensors: tuple[TensorSpec, ...]
    compression: float
    macs_before: int
    macs_after: int
    depth: int
    bottleneck: bool
    proven: bool = True

    @property
    def bytes(self) -> int:
        """What crosses for one sample, as it is computed."""
        return sum(t.bytes for t in self.tensors)


def find_cuts(model: str | Path | ModelProto, *, output: str | None = None) -> tuple[Cut, ...]:
    """Every useful place, from input to output.

    Places are left out that save the server nothing (no multiply-accumulates in the head, and no fewer bytes
    than the input) or leave it nothing to multiply.

    Args:
        model: An ONNX file, or what was read from one; its batch must be dynamic, and nothing else.
        output: The name of the network's own output; the graph's last one if left out. What only other outputs
            need does not count.

    Raises:
        ConfigError: An output that the graph does not have.
        ExportError: A file that cannot be read or run, or a graph whose shapes keep it from being cut.
        ExternalDataError: Weights outside the model's folder.
    """
    return _graph(model, output).places


def cuts_at(model: str | Path | ModelProto, names: Sequence[str], *, output: str | None = None) -> tuple[Cut, ...]:
    """Cuts at tensors of your choice.

    Args:
        model: As in `find_cuts`.
        names: Per cut the tensors that cross, joined by "+".
        output: As in `find_cuts`.

    Returns:
        The cuts from input to output, whatever the order of the names.

    Raises:
        ConfigError: A name that the graph does not have, or cuts side by side.
        ExportError: A cut that does not separate the graph, or a tensor that cannot travel.
    """
    return _graph(model, output).at(names)


def best_cuts(
    model: str | Path | ModelProto, head_macs: Sequence[float], *, output: str | None = None
) -> tuple[Cut, ...]:
    """The cuts that send the fewest bytes, each within a limit on its head's work.

    One cut after another: each is the best of all places within its limit whose head holds the earlier head
    and multiplies more; of several that send as little, the one with the least work. This is proven unless the
    search is cut short (`Cut.proven`), which takes hundreds of long branches side by side. All cuts together
    need not be the best choice: an earlier one may stand in the way of a later one.

    Args:
        model: As in `find_cuts`.
        head_macs: Per cut, rising: the most multiply-accumulates of its head, as a share of all.
        output: As in `find_cuts`.

    Raises:
        ConfigError: Limits that do not rise between 0 and 1.
        ExportError: No place within a limit; or as in `find_cuts`.
    """
    return _graph(model, output).best(head_macs)


def _graph(model: str | Path | ModelProto, output: str | None) -> CutGraph:
    return CutGraph(prepared(model if isinstance(model, ModelProto) else load_onnx(model)), output)


class CutGraph:
    """What of a graph leads from its inputs to one output, and where it can be cut.

    Args:
        model: A graph that `prepared` has made ready.
        output: As in `find_cuts`.
    """

    def __init__(self, model: ModelProto, output: str | None = None) -> None:
        self.model = model
        self.output = model.graph.output[-1].name if output is None else output
        self._flow = Dataflow(model)
        self._check(self.output)
        self.final = self._spec(self.output)
        self.input_bytes = sum(self._spec(name).bytes for name in self._flow.inputs)
        macs = node_macs(model)
        wanted, chosen = {self.output}, []
        for i, node in reversed(list(enumerate(model.graph.node))):
            if wanted.intersection(node.output) and self._flow.live.intersection(node.output):
                chosen.append(i)
                wanted.update(n for n in needs(node) if n in self._flow.live)
        if not chosen:
            raise ExportError(f"the output {self.output!r} is an input; there is nothing to cut")
        nodes = [model.graph.node[i] for i in sorted(chosen)]
        self._names = [n for n in self._flow.inputs if n in wanted]
        makers: list[int | None] = [None] * len(self._names)
        for op, node in enumerate(nodes):
            made = [n for n in node.output if n in wanted]
            self._names += made
            makers += [op] * len(made)
        self._number = {name: t for t, name in enumerate(self._names)}
        self._ops = Operations(
            macs=tuple(macs[i] for i in sorted(chosen)),
            reads=tuple(
                tuple(sorted({self._number[n] for n in needs(node) if n in self._number})) for node in nodes
            ),
            makers=tuple(makers),
            bytes=tuple(self._bytes(name) for name in self._names),
        )

    @property
    def macs(self) -> int:
        """The multiply-accumulates from input to output for one sample."""
        return sum(self._ops.macs)

    @functools.cached_property
    def places(self) -> tuple[Cut, ...]:
        """As `find_cuts` says."""
        best: dict[int, tuple[tuple[int, int], int]] = {}
        last_reader = {t: op for op, reads in enumerate(self._ops.reads) for t in reads}
        crossing = {t for t, maker in enumerate(self._ops.makers) if maker is None}
        made: list[set[int]] = [set() for _ in self._ops.macs]
        for t, maker in enumerate(self._ops.makers):
            if maker is not None:
                made[maker].add(t)
        work = 0
        for op, macs in enumerate(self._ops.macs[:-1]):
            crossing = {t for t in crossing | made[op] if last_reader[t] > op}
            work += macs
            sizes = [self._ops.bytes[t] for t in crossing]
            sent = sum(size or 0 for size in sizes)
            useful = work < self.macs and (work > 0 or sent < self.input_bytes)
            if useful and None not in sizes and (work not in best or (sent, len(sizes)) <= best[work][0]):
                best[work] = (sent, len(sizes)), (2 << op) - 1
        found, least = [], self.input_bytes
        for (sent, _), head in best.values():
            found.append(self._cut(head, bottleneck=sent < least))
            least = min(least, sent)
        return tuple(found)

    def at(self, names: Sequence[str]) -> tuple[Cut, ...]:
        """As `cuts_at` says."""
        heads = sorted((self._head(name) for name in names), key=int.bit_count)
        cuts = [self._cut(head) for head in heads]
        for one, two, first, second in zip(heads, heads[1:], cuts, cuts[1:], strict=False):
            if one == two:
                raise ConfigError(f"the cut {first.name!r} is named twice")
            if one & ~two:
                raise ConfigError(
                    f"the cuts {first.name!r} and {second.name!r} lie side by side; each cut has to come after "
                    "the one before it"
                )
        return tuple(cuts)

    def best(self, head_macs: Sequence[float]) -> tuple[Cut, ...]:
        """As `best_cuts` says."""
        limits = list(head_macs)
        if not limits or limits != sorted(set(limits)) or not all(0 < limit < 1 for limit in limits):
            raise ConfigError(f"limits on the head's work rise between 0 and 1, such as 0.2,0.5; not {limits}")
        if not self.macs:
            raise ExportError(
                "the graph multiplies nothing, so no share of its work can be a limit; name the cuts"
            )
        cuts: list[Cut] = []
        head = 0
        for limit in limits:
            more_than = cuts[-1].macs_before if cuts else 0
            found = smallest_cut(self._ops, inside=head, more_than=more_than, at_most=int(limit * self.macs))
            if found is None:
                raise ExportError(
                    f"no place has a head of more than {more_than / self.macs:.2%} and at most {limit:.2%} of the "
                    "work; raise the limit, or ask for fewer cuts"
                )
            head = found.head
            cuts.append(self._cut(head, proven=found.proven))
        return tuple(cuts)

    def _head(self, cut: str) -> int:
        """The operations before the tensors that a cut names, as bits."""
        names = [cut] if cut in self._number else cut.split("+")
        for name in names:
            self._check(name)
            if name == self.output:
                raise ExportError(f"{name!r} is the network's own output; after it there is nothing to cut")
            if name not in self._number:
                raise ExportError(
                    f"the tensor {name!r} does not lead to the output {self.output!r}; cut elsewhere"
                )
            self._spec(name)
        head = 0
        waiting = [self._ops.makers[self._number[name]] for name in names]
        while waiting:
            op = waiting.pop()
            if op is not None and not head >> op & 1:
                head |= 1 << op
                waiting += [self._ops.makers[t] for t in self._ops.reads[op]]
        if not head:
            raise ConfigError(f"{cut!r} is the input itself; to send that needs no cut (split −1 does)")
        crossing = [self._names[t] for t in self._ops.crossing(head)]
        others = [name for name in crossing if name not in names]
        if others:
            raise ExportError(
                f"the cut at {cut!r} does not separate the graph: what follows also needs {', '.join(others)}; "
                f"cut at {'+'.join(crossing)}, or elsewhere"
            )
        idle = [name for name in names if name not in crossing]
        if idle:
            raise ConfigError(
                f"nothing after the cut at {cut!r} needs {', '.join(idle)}; cut at {'+'.join(crossing)}"
            )
        return head

    def _cut(self, head: int, *, bottleneck: bool | None = None, proven: bool = True) -> Cut:
        tensors = tuple(self._spec(self._names[t]) for t in self._ops.crossing(head))
        sent, work = sum(t.bytes for t in tensors), self._ops.work(head)
        if bottleneck is None:
            earlier = [place.bytes for place in self.places if place.macs_before < work]
            bottleneck = sent < min([self.input_bytes, *earlier])
        return Cut(
            name="+".join(t.name for t in tensors),
            tensors=tensors,
            compression=sent / self.input_bytes,
            macs_before=work,
            macs_after=self.macs - work,
            depth=max(self._depths.get(t.name, 0) for t in tensors),
            bottleneck=bottleneck,
            proven=proven,
        )

    @functools.cached_property
    def _depths(self) -> dict[str, int]:
        return depths(self._flow)

    def _check(self, name: str) -> None:
        """That a tensor is there, and depends on the input."""
        if name in self._flow.live:
            return
        if name in self._flow.makers or name in self._flow.weights:
            raise ExportError(f"the tensor {name!r} does not depend on the input; it never needs to travel")
        near = difflib.get_close_matches(name, self._flow.live, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "`offramp cuts MODEL.onnx --all` lists places"
        raise ConfigError(f"the graph has no tensor {name!r}; {hint}")

    def _spec(self, name: str) -> TensorSpec:
        value = self._flow.values.get(name)
        if value is None or not value.type.tensor_type.shape.dim:
            raise ExportError(
                f"the tensor {name!r} cannot travel: it has not the batch first, or its other sizes change with "
                "the batch or the values; cut elsewhere"
            )
        return tensor_spec(value)

    def _bytes(self, name: str) -> int | None:
        try:
            return self._spec(name).bytes
        except ExportError:
            return None
