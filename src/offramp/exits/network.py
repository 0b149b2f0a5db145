"""`MultiExit`: early exits on any network, without touching its code."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from offramp.errors import ConfigError, LayerNameError
from offramp.evalmode import eval_mode

if TYPE_CHECKING:
    from offramp.exits.calibration import Calibration

__all__ = ["MultiExit"]


class _Taps:
    """The features of one forward pass, by submodule name, in the order in which they came."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}
        #: Only while the network that owns the taps runs: the model may also be used alone, or by another one.
        self.recording = False


class _Tap:
    """A forward hook that keeps a submodule's output.

    A class, not a closure, and one shared `_Taps`: so `deepcopy` and `pickle` carry it over whole.
    """

    def __init__(self, name: str, taps: _Taps) -> None:
        self.name, self.taps = name, taps

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.taps.recording:
            return
        if not isinstance(output, Tensor):
            raise ConfigError(f"submodule {self.name!r} gives a {type(output).__name__}; an exit needs one tensor")
        if self.name in self.taps.features:
            raise ConfigError(f"submodule {self.name!r} runs more than once in a forward pass")
        self.taps.features[self.name] = output


class MultiExit(nn.Module):
    """A network with early exits: every exit is a head fed by the output of a named submodule.

    Args:
        model: Any network; its own output is the last exit.
        exits: Heads by submodule name, in the order in which the submodules run.
        example_input: One batch. Given, heads find their sizes now and the order is checked now; otherwise
            at the first forward pass, which must come before an optimiser is made.

    Raises:
        LayerNameError: A name that is no submodule's; the message gives the nearest ones.
        ConfigError: No exits, exits out of order, or a submodule whose output is not one tensor.
    """

    def __init__(
        self, model: nn.Module, exits: Mapping[str, nn.Module], *, example_input: Tensor | None = None
    ) -> None:
        super().__init__()
        if not exits:
            raise ConfigError('give at least one exit, as exits={"submodule name": head}')
        names = [name for name, _ in model.named_modules() if name]
        for name in exits:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:5]
                raise LayerNameError(f"the model has no submodule {name!r}; did you mean {', '.join(near)}?")
        self.model = model
        self.heads = nn.ModuleList(exits.values())
        self.exit_names = tuple(exits)
        #: Set by `calibrate`; `export` writes it into the bundle.
        self.calibration: Calibration | None = None
        self._taps = _Taps()
        for name in exits:
            model.get_submodule(name).register_forward_hook(_Tap(name, self._taps))
        if example_input is not None:
            self.materialise(example_input)

    def materialise(self, example_input: Tensor) -> None:
        """Runs one batch without learning from it, so that every head knows its sizes."""
        with eval_mode(self), torch.no_grad():
            self(example_input)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """The logits of every exit in order, the model's own last; each (N, classes)."""
        return self.forward_features(*args, **kwargs)[1]

    def forward_features(self, *args: Any, **kwargs: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The features that feed the early exits (the cuts), and the logits of every exit."""
        self._taps.recording = True
        try:
            last = self.model(*args, **kwargs)
            seen = tuple(self._taps.features)
            if seen != self.exit_names:
                missing = [name for name in self.exit_names if name not in seen]
                raise ConfigError(
                    f"submodule {missing[0]!r} did not run in the forward pass, so it can feed no exit"
                    if missing
                    else f"exits must stand in the order in which they run: {', '.join(seen)}"
                )
            features = tuple(self._taps.features.values())
        finally:
            self._taps.recording = False
            self._taps.features.clear()
        logits = (*(head(f) for head, f in zip(self.heads, features, strict=True)), last)
        return features, logits

    def exit_parameters(self) -> Iterator[nn.Parameter]:
        """The heads' own parameters."""
        return self.heads.parameters()
