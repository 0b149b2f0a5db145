"""The manifest and the tuning of a bundle, format 1, as pydantic models; their JSON Schema is published."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from offramp.config import Config
from offramp.errors import ConfigError
from offramp.exits.confidence import Confidence

__all__ = [
    "CLOSED",
    "FORMAT",
    "NAME_PATTERN",
    "Codec",
    "Exit",
    "Graph",
    "Held",
    "Manifest",
    "Preprocessing",
    "Provenance",
    "Stage",
    "TensorSpec",
    "Tuning",
    "cut_name",
    "travel_key",
    "wire_name",
]

FORMAT: Literal[1] = 1
#: A threshold that no confidence reaches.
CLOSED = 2.0
#: What a bundle may be called on the wire.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Part):
    """A tensor's name, element type, and shape for one sample (the batch axis comes before it)."""

    name: str = Field(min_length=1)
    dtype: Literal["float32", "uint8", "int64", "bool"]
    shape: tuple[Positive, ...]

    @property
    def bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Graph(_Part):
    """One ONNX file: what goes in, what comes out, what it costs for one sample."""

    file: str = Field(min_length=1)
    sha256: Sha256
    bytes: Count
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    parameters: Count
    macs: Count


class Stage(_Part):
    """The part of the network between two cuts.

    `density` is the kept fraction of its weights. `depth` is ℓ: convolution and linear layers on the longest
    path from the input to the cut behind it, heads of exits not counted.
    """

    graph: Graph
    depth: Count
    density: Annotated[float, Field(gt=0, le=1)]


class Exit(_Part):
    """A classifier fed by a cut; the last exit is the network's own output and has no graph."""

    logits: TensorSpec
    graph: Graph | None


class Codec(_Part):
    """How a cut travels in one mode: a graph that encodes and one that decodes. Cut −1 is the input."""

    cut: Annotated[int, Field(ge=-1)]
    mode: str = Field(pattern=r"^[a-z][a-z0-9]*$")
    encoder: Graph
    decoder: Graph


class Preprocessing(Config):
    """How an image becomes the network's input: resize, then (pixel·scale − mean) / std per channel."""

    color: Literal["grey", "rgb"]
    height: Positive
    width: Positive
    scale: Finite = 1 / 255
    mean: tuple[Finite, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (1.0,)

    @model_validator(mode="after")
    def _channels(self) -> Preprocessing:
        if {len(self.mean), len(self.std)} - {1, 1 if self.color == "grey" else 3}:
            raise ValueError(f"mean and std need 1 value, or one per channel of {self.color}")
        return self


class Provenance(_Part):
    """Where the network comes from: versions, seed, data, sparsity patterns by layer, metrics."""

    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    seed: int | None = None
    data: str = ""
    patterns: dict[str, dict[str, Any]] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)


class Manifest(_Part):
    """What a bundle holds. Stage i runs from cut i−1 to cut i; exit i is fed by cut i.

    One input is called "input"; several keep the names of the network's arguments.
    """

    format: Literal[1] = FORMAT
    name: str = Field(pattern=NAME_PATTERN)
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    stages: tuple[Stage, ...] = Field(min_length=1)
    exits: tuple[Exit | None, ...]
    codecs: tuple[Codec, ...] = ()
    provenance: Provenance = Provenance()

    @property
    def last(self) -> int:
        """The number of the last stage, split and exit."""
        return len(self.stages) - 1

    def cut(self, index: int) -> tuple[TensorSpec, ...]:
        """The tensors that cross at cut `index`; −1 are the inputs."""
        return self.inputs if index == -1 else self.stages[index].graph.outputs

    def final_exit(self) -> Exit:
        """The network's own output."""
        final = self.exits[self.last]
        assert final is not None  # validated on loading
        return final

    def codec(self, cut: int, mode: str) -> Codec | None:
        """The codec of a cut in a mode; None for "float" and for modes that the bundle does not hold."""
        return next((c for c in self.codecs if (c.cut, c.mode) == (cut, mode)), None)

    def modes(self, cut: int) -> tuple[str, ...]:
        """The modes in which a cut may travel; "float" always."""
        return ("float", *(c.mode for c in self.codecs if c.cut == cut))

    def sent_bytes(self, cut: int, mode: str) -> int:
        """Bytes of one sample at a cut in a mode; as floats if the cut does not have it."""
        codec = self.codec(cut, mode)
        return sum(spec.bytes for spec in (self.cut(cut) if codec is None else codec.encoder.outputs))

    def graphs(self) -> tuple[Graph, ...]:
        """Every file of the bundle: stages, exits, codecs."""
        stages = [stage.graph for stage in self.stages]
        exits = [e.graph for e in self.exits if e is not None and e.graph is not None]
        return (*stages, *exits, *(g for c in self.codecs for g in (c.encoder, c.decoder)))

    @property
    def digest(self) -> str:
        """sha256 over the sorted hashes of all graphs and the tensor names; edge and server must agree."""
        names = [t.name for g in self.graphs() for t in (*g.inputs, *g.outputs)]
        lines = [*sorted(g.sha256 for g in self.graphs()), *names]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Tuning(_Part):
    """What may change without a new model: temperatures and thresholds by exit, their measure, the usual mode.

    A threshold above 1 keeps everything from leaving there; the last exit has none. None stands where a cut
    has no exit. The confidence says what is compared with the thresholds. `gzip_below_mbps` says by cut and mode
    ("cut_0.uint4") below which rate of the link, in Mbit/s, compression gains more time than it takes.
    """

    format: Literal[1] = FORMAT
    temperatures: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, ...]
    thresholds: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, ...]
    mode: str = "float"
    confidence: Confidence = "max_softmax"
    gzip_below_mbps: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)


class Held(_Part):
    """Which stages an edge copy holds: 0 to stages−1."""

    format: Literal[1] = FORMAT
    stages: Positive


def cut_name(cut: int) -> str:
    """The tensor's name at a cut: "input", "cut_0", …."""
    return "input" if cut == -1 else f"cut_{cut}"


def travel_key(cut: int, mode: str) -> str:
    """What a cut in a mode is called where figures are kept of it: "cut_0.uint4"."""
    return f"{cut_name(cut)}.{mode}"


def wire_name(path: str | Path, name: str | None = None) -> str:
    """What a bundle is called on the wire: a name, or one made from the directory's.

    Raises:
        ConfigError: A name that cannot go on the wire.
    """
    if name is None:
        plain = Path(path).resolve().name.removesuffix(".bundle")
        return re.sub(r"[^A-Za-z0-9._-]", "-", plain).lstrip("._-")[:64] or "bundle"
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"a bundle's name is letters, digits, '.', '_' and '-', at most 64, not {name!r}")
    return name
