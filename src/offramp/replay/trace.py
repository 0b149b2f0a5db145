"""Traces: what every exit of a network says about every sample of a data set, in one small file.

A trace file is a NumPy archive without pickles. Its arrays:

| name | dtype, shape | meaning |
|---|---|---|
| `format` | int64, () | 1 |
| `prediction` | uint16, (samples, exits) | the class that each exit names; the last exit's last |
| `confidence` | uint16, (samples, exits) | after temperature, times 65,535, in the tuning's measure; optional |
| `label` | int32, (samples,) | the true class, −1 where it is not known |
| `meta` | bytes as uint8, (n,) | the fields of `TraceMeta` as JSON |
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from offramp.bundle.bundle import write_whole
from offramp.config import Config
from offramp.datasets.arrays import read_arrays
from offramp.errors import TraceError
from offramp.exits.confidence import Confidence

__all__ = ["FORMAT", "Trace", "TraceMeta"]

FORMAT: Literal[1] = 1
#: Confidences are kept to 1/65,535: half the bytes of float32, whose last bits say nothing.
_STEPS = 65_535
_ARRAYS = ("format", "prediction", "label", "meta")

_Count = Annotated[int, Field(ge=0)]
_Ms = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TraceMeta(Config):
    """Where a trace comes from, and what each step cost.

    Attributes:
        bundle: The bundle's name.
        digest: The bundle's digest.
        data: Which data these are, in words.
        distortion: What was done to the images, as `Distortion` prints; empty for none.
        seed: The distortion's seed.
        confidence: The measure of confidence.
        exits: Per column of the trace, which exit it is; the last one is the network's own output.
        depths: Per stage ℓ, the layers on the path to its end.
        stage_ms: Per stage, the median milliseconds of one sample on the machine that traced; empty where nobody
            measured, as the five that follow.
        exit_ms: Per column, the head's milliseconds; 0 for the last.
        stage_macs: Per stage, multiply-accumulates of one sample.
        exit_macs: Per column, the head's.
        stage_weights: Per stage, the weights that it reads.
        exit_weights: Per column, the head's.
        cut_bytes: Per mode, the bytes of each cut, the input (cut −1) first; None where a cut lacks the mode.
    """

    bundle: str
    digest: str = ""
    data: str = ""
    distortion: str = ""
    seed: int = 0
    confidence: Confidence = "max_softmax"
    exits: tuple[_Count, ...]
    depths: tuple[_Count, ...]
    stage_ms: tuple[_Ms, ...] = ()
    exit_ms: tuple[_Ms, ...] = ()
    stage_macs: tuple[_Count, ...] = ()
    exit_macs: tuple[_Count, ...] = ()
    stage_weights: tuple[_Count, ...] = ()
    exit_weights: tuple[_Count, ...] = ()
    cut_bytes: dict[str, tuple[_Count | None, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agree(self) -> TraceMeta:
        stages, columns = len(self.depths), len(self.exits)
        if (
            not stages
            or not columns
            or list(self.exits) != sorted(set(self.exits))
            or self.exits[-1] != stages - 1
        ):
            raise ValueError(f"exits {self.exits} do not go with {stages} stages: they ascend to the last stage's")
        for name, wanted in (
            ("stage_ms", stages),
            ("exit_ms", columns),
            ("stage_macs", stages),
            ("exit_macs", columns),
            ("stage_weights", stages),
            ("exit_weights", columns),
        ):
            if len(getattr(self, name)) not in (0, wanted):
                raise ValueError(f"{name} holds {len(getattr(self, name))} values, not {wanted}")
        for mode, per_cut in self.cut_bytes.items():
            if len(per_cut) != stages:
                raise ValueError(f"cut_bytes of {mode!r} holds {len(per_cut)} values for {stages} cuts")
        return self


@dataclass(frozen=True, eq=False)
class Trace:
    """What every exit says about every sample.

    Attributes:
        prediction: (samples, exits) class indices, the last exit's last.
        confidence: (samples, exits), in [0, 1]; None where only predictions are known.
        label: (samples,) class indices, −1 where unknown.
        meta: Where it comes from, and what each step cost.

    Raises:
        TraceError: Arrays that do not agree, or hold what they cannot.
    """

    prediction: NDArray[np.int32]
    confidence: NDArray[np.float32] | None
    label: NDArray[np.int32]
    meta: TraceMeta

    def __post_init__(self) -> None:
        n, columns = np.size(self.label), len(self.meta.exits)
        wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
            "prediction": (np.int32, (n, columns)),
            "confidence": (np.float32, (n, columns)),
            "label": (np.int32, (n,)),
        }
        for name, (dtype, shape) in wanted.items():
            array = getattr(self, name)
            if array is None:
                continue
            if not isinstance(array, np.ndarray):
                raise TraceError(f"{name}: expected an array of {np.dtype(dtype)}, got {type(array).__name__}")
            if array.dtype != dtype or array.shape != shape:
                per = "" if name == "label" else f", a column for each of the exits {self.meta.exits}"
                raise TraceError(
                    f"{name}: expected {np.dtype(dtype)} of shape {shape}{per}, got {array.dtype} of {array.shape}"
                )
        if not n:
            raise TraceError("a trace needs at least one sample")
        if self.confidence is not None:
            wrong = np.argwhere(~((self.confidence >= 0) & (self.confidence <= 1)))
            if len(wrong):
                sample, column = wrong[0].tolist()
                raise TraceError(
                    f"confidence: {self.confidence[sample, column]} of exit {self.meta.exits[column]} on sample "
                    f"{sample} is outside [0, 1]"
                )
        if self.prediction.min() < 0 or self.label.min() < -1:
            raise TraceError("prediction or label: class indices below 0")

    def __len__(self) -> int:
        return len(self.label)

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Per exit, the share of right answers among the samples whose label is known; NaN if none is."""
        known = self.label >= 0
        if not known.any():
            return (float("nan"),) * self.prediction.shape[1]
        right = self.prediction[known] == self.label[known, None]
        return tuple(float(r) for r in right.mean(axis=0))

    def save(self, path: str | Path) -> None:
        """Writes the trace, confidences rounded to multiples of 1/65,535.

        The same trace gives the same bytes, and a file there is replaced whole.

        Raises:
            TraceError: A path that cannot be written, or more classes than 65,536.
        """
        path = Path(path)
        if self.prediction.max() > np.iinfo(np.uint16).max:
            raise TraceError(f"a trace file has room for classes up to 65535, not {self.prediction.max()}")
        arrays: dict[str, Any] = {
            "format": np.int64(FORMAT),
            "prediction": self.prediction.astype(np.uint16),
            "label": self.label,
            "meta": np.frombuffer(self.meta.model_dump_json().encode(), np.uint8),
        }
        if self.confidence is not None:
            arrays["confidence"] = np.round(self.confidence.astype(np.float64) * _STEPS).astype(np.uint16)
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        try:
            write_whole(path, packed.getvalue())
        except OSError as error:
            raise TraceError(f"cannot write to {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Reads a trace.

        Raises:
            TraceError: A file that is missing, no trace, of another format, or does not agree with itself.
        """
        try:
            arrays = read_arrays(path)
            if not isinstance(arrays, dict):
                raise ValueError("it is a single array")
            missing = [name for name in _ARRAYS if name not in arrays]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")
            version = int(arrays["format"])
        except OSError as error:
            raise TraceError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise TraceError(f"{path} is not a trace: {error}") from error
        if version != FORMAT:
            raise TraceError(f"{path} has trace format {version}; this offramp reads {FORMAT}")
        try:
            meta = TraceMeta.model_validate_json(arrays["meta"].tobytes())
            for name in ("prediction", "confidence"):
                if name in arrays and arrays[name].dtype != np.uint16:
                    raise TraceError(f"{name}: expected uint16, got {arrays[name].dtype}")
            steps = arrays.get("confidence")
            confidence = None if steps is None else (steps / _STEPS).astype(np.float32)
            return cls(arrays["prediction"].astype(np.int32), confidence, arrays["label"], meta)
        except (ValidationError, TraceError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise TraceError(f"{path}: {reason}") from error
