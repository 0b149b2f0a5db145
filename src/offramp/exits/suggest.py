"""Where exits could stand: places that cut the network in two, evenly spaced in multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from offramp.errors import ConfigError
from offramp.evalmode import eval_mode
from offramp.exits.taps import feature_of, logits_of
from offramp.inputs import Inputs, batch_size, run, tensors
from offramp.tables import bytes_text, count_text, table_text

__all__ = ["Place", "Suggestion", "suggest_exits"]


@dataclass(frozen=True)
class Place:
    """A submodule behind which an exit can stand.

    Attributes:
        name: The submodule's name in the model.
        shape: Its feature's shape, without the batch.
        macs: Multiply-accumulates for one sample up to here.
        share: The same as a share of the whole network's.
        cut_bytes: What one sample's feature takes as it is, where it crosses to a server.
    """

    name: str
    shape: tuple[int, ...]
    macs: int
    share: float
    cut_bytes: int


@dataclass(frozen=True)
class Suggestion:
    """Places for exits in the order in which they run; prints as a table.

    Attributes:
        places: The places.
        macs: The whole network's multiply-accumulates for one sample.
        input_bytes: What one sample's input takes, to compare the cuts with.
    """

    places: tuple[Place, ...]
    macs: int
    input_bytes: int

    @property
    def names(self) -> list[str]:
        """The submodules, as `MultiExit(model, exits=suggestion.names)` takes them."""
        return [place.name for place in self.places]

    def __str__(self) -> str:
        rows = [
            [p.name, "×".join(map(str, p.shape)), count_text(p.macs), f"{p.share:.1%}", bytes_text(p.cut_bytes)]
            for p in self.places
        ]
        whole = f"whole network: {count_text(self.macs)} MACs; input: {bytes_text(self.input_bytes)}"
        return table_text(
            "Places for exits", ["submodule", "feature", "MACs", "share", "cut"], rows, caption=whole
        )


def suggest_exits(model: nn.Module, example_input: Inputs, n: int) -> Suggestion:
    """Proposes n places for exits, at about 1/(n+1), 2/(n+1), … of the network's multiply-accumulates.

    Only places are proposed whose feature is all that the rest of the network needs, so that the network can be
    cut there: not inside a residual or dense connection. This is read from the graph that one forward pass
    leaves for gradients; what carries none (masks, indices) is not seen. Of the places within a quarter of a
    step around a share the one with the smallest feature is taken, otherwise the nearest.

    Args:
        model: The network; it stays as it is.
        example_input: One batch: a tensor, a tuple of tensors, or a dict of tensors by argument name.
        n: How many.

    Raises:
        ConfigError: Fewer than one, more than the network has places, or a network without
            multiply-accumulates.
    """
    if n < 1:
        raise ConfigError(f"ask for at least 1 exit, not {n}")
    samples = batch_size(example_input)
    if samples == 0:
        raise ConfigError("example_input holds no sample; give at least one")
    seen, last, total = _watched(model, example_input)
    if total == 0:
        raise ConfigError("the network has no multiply-accumulates that could be shared out")
    candidates: dict[int, _Seen] = {}
    for one in _cuts(seen, last, samples):
        rival = candidates.get(one.macs)
        if 0 < one.macs < total and (rival is None or one.feature.numel() <= rival.feature.numel()):
            candidates[one.macs] = one
    places = [
        Place(
            one.name,
            tuple(one.feature.shape[1:]),
            one.macs // samples,
            one.macs / total,
            one.feature.nbytes // samples,
        )
        for _, one in sorted(candidates.items())
    ]
    if len(places) < n:
        known = ", ".join(p.name for p in places) or "none"
        raise ConfigError(
            f"{n} exits asked for, but this network can be cut in two at {len(places)} of its submodules: "
            f"{known}; ask for fewer, or give MultiExit names of your own"
        )
    input_bytes = sum(t.nbytes for t in tensors(example_input)) // samples
    return Suggestion(_even(places, n), total // samples, input_bytes)


@dataclass(eq=False)
class _Seen:
    """A submodule's output: its name, and the multiply-accumulates of the batch until then."""

    name: str
    feature: Tensor
    macs: int
    runs: int = field(default=1)


def _watched(model: nn.Module, example_input: Inputs) -> tuple[list[_Seen], Tensor, int]:
    """One forward pass: every submodule's output in order, the logits, and all multiply-accumulates."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _lstm_flops})
    seen: dict[nn.Module, _Seen] = {}

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        feature = feature_of(output)
        if module in seen:
            seen[module].runs += 1
        elif feature is not None and module is not model:
            seen[module] = _Seen(names[module], feature, counter.get_total_flops() // 2)

    names = {module: name for name, module in reversed(list(model.named_modules()))}
    hooks = [module.register_forward_hook(watch) for module in names]
    try:
        # Of attention's kernels only the plain one shows its products to the counter.
        with (
            eval_mode(model),
            _asking_for_gradients(model),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            counter,
        ):
            last = logits_of(run(model, _with_gradients(example_input)))
    finally:
        for hook in hooks:
            hook.remove()
    return [one for one in seen.values() if one.runs == 1], last, counter.get_total_flops() // 2


def _lstm_flops(x: Sequence[int], *weights: Any, out_shape: Any = None, **_: Any) -> int:
    """Of one layer in one direction, in the CPU's fused kernel, which torch's counter does not know."""
    samples_and_steps, flops = x[:2], 0
    for shape in weights[:2]:
        flops += 2 * math.prod(samples_and_steps) * math.prod(shape)
    return flops


@contextmanager
def _asking_for_gradients(model: nn.Module) -> Iterator[None]:
    """So that the graph is whole even where somebody froze parameters, or looks words up."""
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _with_gradients(inputs: Inputs) -> Inputs:
    def asking(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            # Not a leaf, so that it counts as something computed, unlike parameters.
            return value.detach().clone().requires_grad_(True) * 1
        return value

    if isinstance(inputs, Tensor):
        tensor: Tensor = asking(inputs)
        return tensor
    if isinstance(inputs, dict):
        return {name: asking(value) for name, value in inputs.items()}
    return tuple(asking(value) for value in inputs)


def _cuts(seen: Sequence[_Seen], last: Tensor, samples: int) -> Iterator[_Seen]:
    """The outputs through which everything goes that the logits depend on.

    Behind such an output the logits reach nothing computed before it, except through it: parameters may be
    shared, since they are no tensors that would have to cross.
    """
    found: dict[Any, _Seen] = {}
    for one in seen:
        node, shape = one.feature.grad_fn, one.feature.shape
        if node is None or node is last.grad_fn or not one.feature.is_floating_point():
            continue
        if one.feature.dim() not in (2, 3, 4) or shape[0] != samples:
            continue
        # A block and its last layer give the same tensor: the outer one's name is the shorter.
        if node not in found or one.name.count(".") < found[node].name.count("."):
            found[node] = one
    for node, one in found.items():
        behind = _reached([last.grad_fn], without=node)
        before = _reached([step for step, _ in node.next_functions])
        if node in behind and not (behind & before) - {node}:
            yield one


def _reached(starts: Sequence[Any], without: Any = None) -> set[Any]:
    """The computed steps that some depend on, themselves included; what `without` depends on is left out."""
    reached: set[Any] = set()
    left = [s for s in starts if s is not None]
    while left:
        step = left.pop()
        if step in reached or hasattr(step, "variable"):  # the latter is a parameter
            continue
        reached.add(step)
        if step is not without:
            left.extend(s for s, _ in step.next_functions if s is not None)
    return reached


def _even(places: Sequence[Place], n: int) -> tuple[Place, ...]:
    """n places in order, each near its share, that leave enough for those that follow."""
    chosen: list[Place] = []
    first = 0
    for k in range(1, n + 1):
        allowed = range(first, len(places) - (n - k))
        target = k / (n + 1)

        def rank(i: int, target: float = target) -> tuple[float, ...]:
            away = abs(places[i].share - target)
            near = away <= 0.25 / (n + 1)
            return (not near, places[i].cut_bytes if near else 0, away)

        best = min(allowed, key=rank)
        chosen.append(places[best])
        first = best + 1
    return tuple(chosen)
