"""From a trained multi-exit network to a bundle: export one ONNX graph, cut it, write it."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from offramp.bundle.assembly import assemble, made_with
from offramp.bundle.bundle import Bundle
from offramp.bundle.codec import OPSET
from offramp.bundle.crossing import crossings
from offramp.bundle.dataflow import Dataflow
from offramp.bundle.fold import fold_gathers, fold_weights
from offramp.bundle.lower import lower_gathers
from offramp.bundle.manifest import CLOSED, Preprocessing, Tuning, cut_name, wire_name
from offramp.bundle.modes import check_samples
from offramp.bundle.partition import forget_origin, partition, tensor_spec
from offramp.errors import ConfigError, ExportError, InputError
from offramp.evalmode import eval_mode
from offramp.exits.network import MultiExit
from offramp.inputs import Inputs, run, tensors
from offramp.sparse.layers import SparseLayer

__all__ = ["export", "export_graph", "quiet_exporter"]


class _Named(nn.Module):
    """The network as one flat tuple: cut 0, exit 0, cut 1, exit 1, …, the last exit."""

    def __init__(self, net: MultiExit, names: Sequence[str] | None) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = inputs if self.names is None else dict(zip(self.names, inputs, strict=True))
        features, logits = run(self.net.forward_features, given)
        pairs = [t for pair in zip(features, logits[:-1], strict=True) for t in pair]
        return (*pairs, logits[-1])


def export_graph(net: MultiExit, example_input: Inputs) -> onnx.ModelProto:
    """The whole network as one ONNX graph of standard operators, with a dynamic batch.

    Its tensors are named `input`, `cut_0`, `exit_0`, `cut_1`, …; the last exit is the network's own output.
    Several inputs are named as the dict's keys, or as the arguments of the model's `forward`.

    Args:
        net: A network in the state in which it should run.
        example_input: One batch: a tensor, a tuple of tensors, or a dict of tensors by argument name; only its
            shapes and element types count.

    Raises:
        ExportError: The network cannot be exported; the message carries the exporter's own words.
        ConfigError: Inputs that are no tensors with samples first.
    """
    last = len(net.exit_names)
    names = [name for i in range(last) for name in (cut_name(i), f"exit_{i}")] + [f"exit_{last}"]
    inputs = _input_names(net, example_input)
    given = tensors(example_input)
    if (
        not given
        or len(given) != len(inputs)
        or any(t.dim() == 0 or len(t) != len(given[0]) or len(t) == 0 for t in given)
    ):
        came = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(inputs, given, strict=False))
        raise ConfigError(f"every input must be a tensor of the same number of samples, not {came or 'nothing'}")
    # Two samples, since a batch of one would be taken for a constant.
    examples = tuple(t.detach()[:1].repeat(2, *[1] * (t.dim() - 1)) for t in given)
    batch = torch.export.Dim("N", min=1)
    try:
        with eval_mode(net), quiet_exporter():
            program = torch.onnx.export(
                _Named(net, inputs if isinstance(example_input, Mapping) else None).eval(),
                examples,
                dynamo=True,
                dynamic_shapes={"inputs": tuple({0: batch} for _ in examples)},
                input_names=inputs,
                output_names=names,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the traced code does
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter's own words say only in which of its steps it failed
            cause = cause.__cause__
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ExportError(f"torch.onnx.export failed: {reason[0]}") from error
    assert program is not None  # dynamo=True always returns the program
    with quiet_exporter():
        fold_weights(program.model)
        fold_gathers(program.model)
        lower_gathers(program.model)
    model = program.model_proto
    forget_origin(model)
    return model


def _input_names(net: MultiExit, example_input: Any) -> list[str]:
    if isinstance(example_input, Tensor):
        return ["input"]
    if isinstance(example_input, Mapping):
        return list(example_input)
    arguments = inspect.signature(net.model.forward).parameters.values()
    named = [a.name for a in arguments if a.kind is not a.VAR_POSITIONAL]
    return [named[i] if i < len(named) else f"input_{i}" for i in range(len(example_input))]


def export(
    net: MultiExit,
    example_input: Inputs,
    path: str | Path,
    *,
    name: str | None = None,
    classes: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    seed: int | None = None,
    data: str = "",
    metrics: dict[str, Any] | None = None,
) -> Bundle:
    """Exports a network, cuts it at its exits, and writes a verified bundle.

    What crosses a cut is its exit's feature, and whatever else later stages need: inputs such as an attention
    mask, tensors that skip the cut. Temperatures, thresholds and the inputs to which the cuts' modes are fitted
    come from `calibrate`. Without it every threshold keeps everything from leaving early, and cuts travel as
    `float` only.

    Args:
        net: A trained network.
        example_input: One batch, as `export_graph` takes it.
        path: The bundle's directory; an older bundle there is replaced.
        name: The bundle's name on the wire; made from the directory's name if left out.
        classes: The classes' names.
        preprocessing: How an image becomes an input.
        seed: For the record.
        data: What the network was trained on, for the record.
        metrics: Anything JSON, for the record.

    Raises:
        ExportError: The network cannot be exported or cut.
        ConfigError: A name that cannot go on the wire.
        BundleError: The bundle cannot be written, or does not hold together.
    """
    name = wire_name(path, name)
    whole = export_graph(net, example_input)
    last = len(net.exit_names)
    final, answers = f"exit_{last}", [f"exit_{i}" for i in range(last)]
    cuts = crossings(Dataflow(whole), [cut_name(i) for i in range(last)], answers, final)
    pieces = partition(whole, cuts, answers, final=final, bundle_names=True)
    samples = _samples(net, pieces.stages)
    return assemble(
        path,
        pieces,
        name=name,
        classes=classes,
        preprocessing=preprocessing,
        densities=_stage_densities(net, example_input),
        samples=samples,
        tuning=_tuning(net),
        provenance=made_with(
            "torch",
            "onnx",
            "onnxscript",
            seed=seed,
            data=data,
            patterns={
                layer: {**m.pattern.recipe(), "digest": m.pattern.digest}
                for layer, m in net.named_modules()
                if isinstance(m, SparseLayer)
            },
            metrics=metrics or {},
        ),
    )


def _samples(net: MultiExit, stages: Sequence[onnx.ModelProto]) -> Any:
    """The inputs that calibration kept, if they are such as the bundle will take."""
    kept = None if net.calibration is None else net.calibration.inputs
    if not kept:
        return None
    if isinstance(kept, tuple):
        kept = dict(zip(_input_names(net, kept), kept, strict=True))
    try:
        check_samples(kept, [tensor_spec(value) for value in stages[0].graph.input])
    except InputError as error:
        warnings.warn(
            f"cuts will travel as float only, since calibration saw other inputs than the example: {error}",
            UserWarning,
            stacklevel=3,
        )
        return None
    return kept


def _tuning(net: MultiExit) -> Tuning:
    found = net.calibration
    n = len(net.exit_names) + 1
    if found is None:
        return Tuning(temperatures=(1.0,) * n, thresholds=(CLOSED,) * (n - 1) + (None,))
    return Tuning(
        temperatures=found.temperatures,
        thresholds=(*found.thresholds, None),
        confidence=found.confidence,
    )


def _stage_densities(net: MultiExit, example_input: Inputs) -> tuple[float, ...]:
    """Per stage Σ|W_i| / ΣN_{i-1}N_i over its convolution and linear layers, by the order in which they run."""
    order: list[nn.Module | int] = []
    hooks = []
    for module in (*net.model.modules(), *(() if net.classifier is None else net.classifier.modules())):
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, SparseLayer)):
            hooks.append(module.register_forward_hook(lambda m, *_: order.append(m)))
    for i, tap in enumerate(net.exit_names):
        hooks.append(net.model.get_submodule(tap).register_forward_hook(lambda *_, i=i: order.append(i)))
    try:
        net.materialise(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    kept, dense = [0], [0]
    for item in order:
        if isinstance(item, int):
            kept.append(0)
            dense.append(0)
            continue
        weight: Tensor = item.weight  # type: ignore[assignment]
        density = item.pattern.density if isinstance(item, SparseLayer) else 1
        kept[-1] += weight.numel()
        dense[-1] += round(weight.numel() / density)
    return tuple(k / d if d else 1.0 for k, d in zip(kept, dense, strict=True))


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's progress lines and its dependencies' deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
