"""What has to cross a cut besides the tensor at which a network is tapped: masks, other inputs, skip connections.

What is made of the graph's inputs without a product or a table look-up, such as an attention mask made ready for
every layer, does not cross: its inputs do, and every stage that needs it makes it anew. It costs next to nothing,
is often larger than what it is made of, and may hold the infinities that no tensor on the wire may.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnx import NodeProto

from offramp.bundle.dataflow import Dataflow, needs
from offramp.bundle.shapes import multiplies

__all__ = ["ancestors", "crossings", "made_of_inputs"]


def crossings(flow: Dataflow, taps: Sequence[str], exits: Sequence[str], final: str) -> list[list[str]]:
    """Per cut the tensors that cross: the tap, then whatever else its exit or anything later needs.

    Args:
        flow: The whole graph.
        taps: Per cut the tensor that feeds its exit, from input to output.
        exits: Per cut its exit's logits.
        final: The network's own output.
    """
    sources = made_of_inputs(flow)
    heads: list[set[str]] = []
    for tap in taps:
        before = heads[-1] if heads else set()
        heads.append(before | ancestors(flow, [tap]) | {tap})
    order = {name: i for i, name in enumerate([*flow.inputs, *flow.makers])}
    cuts: list[list[str]] = []
    later = [final]
    for tap, answer, head in reversed(list(zip(taps, exits, heads, strict=True))):
        others = _needed_from(flow, [*later, answer], tap, head, sources)
        later = [tap, *sorted(others - {tap}, key=order.__getitem__)]
        cuts.insert(0, later)
    return cuts


def made_of_inputs(flow: Dataflow) -> dict[str, frozenset[str]]:
    """By tensor the inputs that it is made of, where that takes no products and no table look-ups."""
    sources = {name: frozenset([name]) for name in flow.inputs}
    for node in flow.model.graph.node:
        read = flow.live.intersection(needs(node))
        if not read or flow.only_batch(node) or multiplies(node) or _looks_up(node, flow):
            continue
        if all(name in sources for name in read):
            made = frozenset().union(*(sources[name] for name in read))
            sources.update((name, made) for name in node.output if name)
    return sources


def ancestors(flow: Dataflow, names: Sequence[str]) -> set[str]:
    """Everything that some tensors are computed from, sizes that only know the batch left out."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        maker = flow.makers.get(waiting.pop())
        if maker is None or flow.only_batch(maker):
            continue  # whose sizes are read may be computed anywhere
        fresh = [n for n in needs(maker) if n not in found]
        found.update(fresh)
        waiting += fresh
    return found


def _needed_from(
    flow: Dataflow, wanted: Sequence[str], tap: str, head: Collection[str], sources: dict[str, frozenset[str]]
) -> set[str]:
    """What of the head, and which inputs, some tensors are computed from."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in flow.live:
            continue
        seen.add(name)
        if name == tap or (name in head and name not in sources):
            found.add(name)
        elif name in sources:
            found.update(sources[name])
        else:
            waiting += needs(flow.makers[name])
    return found


def _looks_up(node: NodeProto, flow: Dataflow) -> bool:
    """Whether a node takes rows out of a table that belongs to the network, as an embedding does."""
    return node.op_type.startswith("Gather") and node.input[0] not in flow.live
