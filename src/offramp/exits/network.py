"""`MultiExit`: early exits on any network, without touching its code."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from offramp.errors import ConfigError, LayerNameError
from offramp.evalmode import eval_mode
from offramp.exits.heads import head_for, inputs_of, taken
from offramp.exits.taps import Tap, Taps, layouts_of, logits_of
from offramp.inputs import Inputs, run

if TYPE_CHECKING:
    from offramp.exits.calibration import Calibration

__all__ = ["MultiExit"]


class MultiExit(nn.Module):
    """A network with early exits: every exit is a head fed by the output of a named submodule.

    A submodule that gives a tuple, list or dict feeds its first item, which transformer blocks call the hidden
    states. The model's own output, the last exit, is a tensor of logits, or holds it under the key `logits`.

    A head sees its feature. One that needs an input of the network as well, such as an attention mask, names it in
    its attribute `takes`, a tuple of argument names; their values follow the feature when it is called.

    Args:
        model: Any network; its own output is the last exit.
        exits: Heads by submodule name, in the order in which the submodules run; None, or names without heads,
            for the head that `head_for` chooses, which needs `example_input`.
        classifier: Makes the last exit's logits of the model's own output, for a model that gives features. It
            learns wherever heads do: so a backbone is moved to new classes, frozen or not.
        example_input: One batch: a tensor, a tuple of tensors, or a dict of tensors by argument name. Given,
            heads find their sizes now and the order is checked now; otherwise at the first forward pass, which
            must come before an optimiser is made.

    Raises:
        LayerNameError: A name that is no submodule's; the message gives the nearest ones.
        ConfigError: No exits, one named twice, exits out of order, no example input where heads are to be
            chosen, or a submodule whose output is not one tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        exits: Mapping[str, nn.Module | None] | Sequence[str],
        *,
        classifier: nn.Module | None = None,
        example_input: Inputs | None = None,
    ) -> None:
        super().__init__()
        if isinstance(exits, str):
            raise ConfigError(f"exits are a dict of heads by name or a list of names; for one: exits=[{exits!r}]")
        if not exits:
            raise ConfigError('give at least one exit, as exits={"submodule name": head}')
        if len(set(exits)) < len(exits):
            raise ConfigError(f"each submodule feeds one exit; {', '.join(exits)} names one twice")
        names = [name for name, _ in model.named_modules() if name]
        for name in exits:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:5]
                raise LayerNameError(f"the model has no submodule {name!r}; did you mean {', '.join(near)}?")
        heads = dict(exits) if isinstance(exits, Mapping) else dict.fromkeys(exits)
        self.model, self.classifier = model, classifier
        self.exit_names = tuple(heads)
        #: Set by `calibrate`; `export` writes it into the bundle.
        self.calibration: Calibration | None = None
        self._taps = Taps()
        taps = [model.get_submodule(n).register_forward_hook(Tap(n, self._taps)) for n in heads]
        try:
            self.heads = nn.ModuleList(self._chosen(heads, example_input))
            if example_input is not None:
                self.materialise(example_input)
        except BaseException:
            for tap in taps:  # the model is the caller's: it keeps nothing of what failed
                tap.remove()
            raise

    def materialise(self, example_input: Inputs) -> None:
        """Runs one batch without learning from it, so that every head knows its sizes."""
        with eval_mode(self), torch.no_grad():
            run(self, example_input)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """The logits of every exit in order, the model's own last; each (N, classes)."""
        return self.forward_features(*args, **kwargs)[1]

    def forward_features(self, *args: Any, **kwargs: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The features that feed the early exits (the cuts), and the logits of every exit."""
        features, last = self.backbone(*args, **kwargs)
        return features, self.classify(features, last, self.named(*args, **kwargs))

    def backbone(self, *args: Any, **kwargs: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        """The features that feed the early exits and the model's own output; no head and no classifier runs."""
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
        return features, logits_of(last)

    def classify(
        self, features: Sequence[Tensor], last: Tensor, given: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, ...]:
        """The logits of every exit from what `backbone` gives.

        Args:
            features: Per early exit its feature; or what `reduced` has made of it.
            last: The model's own output.
            given: As `named` gives it; left out where features are reduced.
        """
        pairs = zip(self.heads, features, strict=True)
        early = [head(f, *(() if given is None else taken(head, given))) for head, f in pairs]
        return (*early, last if self.classifier is None else self.classifier(last))

    def named(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The model's inputs by argument name; nothing unless a head takes some of them."""
        if not any(inputs_of(head) for head in self.heads):
            return {}
        return {**inspect.signature(self.model.forward).bind(*args, **kwargs).arguments, **kwargs}

    def exit_parameters(self) -> Iterator[nn.Parameter]:
        """The heads' own parameters, and the classifier's."""
        yield from self.heads.parameters()
        if self.classifier is not None:
            yield from self.classifier.parameters()

    def _chosen(self, heads: Mapping[str, nn.Module | None], example_input: Inputs | None) -> list[nn.Module]:
        """The heads, with one of `head_for`'s wherever none was given."""
        given = [head for head in heads.values() if head is not None]
        if len(given) == len(heads):
            return given
        if example_input is None:
            without = next(name for name, head in heads.items() if head is None)
            raise ConfigError(f"to choose a head for {without!r}, its feature must be seen: give example_input")
        with eval_mode(self), torch.no_grad(), layouts_of(self.model, self._taps) as layouts:
            features, last = run(self.backbone, example_input)
            last = last if self.classifier is None else self.classifier(last)
        if last.dim() != 2:
            raise ConfigError(f"the model's output must be logits (N, classes), not {tuple(last.shape)}")
        classes = last.shape[1]
        return [
            head_for(feature, classes, layouts.get(name)) if head is None else head
            for (name, head), feature in zip(heads.items(), features, strict=True)
        ]
