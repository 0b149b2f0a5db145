"""Features of a frozen backbone, computed once: what its heads learn from in every epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from offramp.errors import ConfigError
from offramp.evalmode import eval_mode
from offramp.exits.heads import reduced, taken
from offramp.exits.network import MultiExit
from offramp.inputs import on_device, pair, run
from offramp.tables import bytes_text

__all__ = ["CachedFeatures", "FeatureCache", "Seen"]

Array = NDArray[Any]


@dataclass(frozen=True)
class FeatureCache:
    """How the features of a frozen backbone are kept.

    Attributes:
        memory_bytes: The most that one data set's features take in memory; what is larger goes to files.
        folder: Where those files lie while training runs; the system's folder for temporary files if left out.
        dtype: "float32" keeps features as they are; "float16" halves the room and rounds them to 11 bits.

    Raises:
        ConfigError: A negative limit, or another dtype.
    """

    memory_bytes: int = 1_000_000_000
    folder: str | Path | None = None
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.memory_bytes < 0:
            raise ConfigError(f"memory_bytes must be at least 0, not {self.memory_bytes}")
        if self.dtype not in ("float32", "float16"):
            raise ConfigError(f'features are kept as "float32" or "float16", not {self.dtype!r}')


class Seen(NamedTuple):
    """What a backbone gave for a batch: a feature per early exit, and the model's own logits."""

    features: tuple[Tensor, ...]
    last: Tensor


class CachedFeatures(Dataset[tuple[Seen, Tensor]]):
    """What a backbone gives for a whole data set, in memory or in files, which `close` removes.

    Features are kept as far as `reduced` takes them, so that a pooled head's are small.

    Args:
        net: The network, on the device that shall compute; it runs in evaluation mode.
        loader: Pairs of inputs and class indices; it is read once.
        cache: How features are kept.
        progress: What to call the work in the progress bar on stderr; no bar if left out.

    Raises:
        ConfigError: A loader without batches, features of several shapes, values beyond float16's range, or no
            room for the files.
    """

    def __init__(
        self, net: MultiExit, loader: Iterable[Any], cache: FeatureCache, progress: str | None = None
    ) -> None:
        self._store = _Store(cache)
        self._columns: list[Array] = []
        #: The size of the loader's first batch.
        self.batch = 0
        labels: list[Array] = []
        try:
            with eval_mode(net), torch.inference_mode():
                for features, last, y in _passes(net, loader, progress):
                    self._store.add([_kept(f, cache.dtype) for f in features] + [_kept(last, "float32")])
                    labels.append(y.cpu().numpy())
                    self.batch = self.batch or len(y)
            if not labels:
                raise ConfigError("the loader gives no batches")
            self._columns = self._store.finish()
        except BaseException:
            self.close()
            raise
        self._labels = np.concatenate(labels)

    @property
    def bytes(self) -> int:
        """What the features take."""
        return self._store.bytes

    @property
    def in_files(self) -> bool:
        """Whether they were too large for memory."""
        return self._store.folder is not None

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Seen, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Seen, Tensor]:
        """One batch."""
        *features, last = (torch.from_numpy(np.asarray(column[indices])).float() for column in self._columns)
        return Seen(tuple(features), last), torch.from_numpy(self._labels[indices])

    def batches(self, *, shuffled: bool, size: int | None = None) -> DataLoader[tuple[Seen, Tensor]]:
        """Batches of `size`, or as large as the loader's first one.

        Shuffled, epoch n has the same order in every training.
        """
        size = size or self.batch
        # One sample alone has no spread: batch normalisation in a head would refuse it.
        single = shuffled and len(self) > size > 1 and len(self) % size == 1
        return DataLoader(
            self,
            size,
            sampler=_ByEpoch(self) if shuffled else None,
            collate_fn=_as_it_is,
            drop_last=single,
        )

    def close(self) -> None:
        """Removes the files, if there are any."""
        self._columns.clear()
        self._store.close()


class _ByEpoch(RandomSampler):
    """An order for every epoch: the trainer says which one it is, after a resumption too."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(len(self), generator=torch.Generator().manual_seed(self.epoch)).tolist()


def _as_it_is(batch: Any) -> Any:
    return batch


def _passes(
    net: MultiExit, loader: Iterable[Any], progress: str | None
) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    total = len(loader) if isinstance(loader, Sized) else None
    shown = track(loader, progress or "", total, console=Console(stderr=True), disable=progress is None)
    for batch in shown:
        x, y = pair(batch)
        x = on_device(x, device)
        features, last = run(net.backbone, x)
        given = run(net.named, x)
        yield tuple(reduced(h, f, *taken(h, given)) for h, f in zip(net.heads, features, strict=True)), last, y


def _kept(tensor: Tensor, dtype: str) -> Array:
    array = tensor.float().cpu().numpy()
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if np.isinf(half).any() and np.isfinite(array).all():
            raise ConfigError(
                f"a feature reaches {np.abs(array).max():.3g}, beyond float16's 65504; keep features as float32"
            )
        return half
    return array


class _Store:
    """Columns of arrays that grow together, first in memory, beyond a limit in files."""

    def __init__(self, cache: FeatureCache) -> None:
        self.bytes = 0
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self._cache = cache
        self._pieces: list[list[Array]] = []
        self._shapes: list[tuple[int, ...]] = []
        self._samples = 0

    def add(self, arrays: Sequence[Array]) -> None:
        shapes = [array.shape[1:] for array in arrays]
        if not self._pieces:
            self._pieces, self._shapes = [[] for _ in arrays], shapes
        for i, (shape, first) in enumerate(zip(shapes, self._shapes, strict=True)):
            if shape != first:
                raise ConfigError(
                    f"exit {i} sees features {first} and later {shape}, which cannot be kept side by side; give "
                    "inputs of one size, or train with cache=False"
                )
        for pieces, array in zip(self._pieces, arrays, strict=True):
            pieces.append(np.array(array))
        self.bytes += sum(array.nbytes for array in arrays)
        self._samples += len(arrays[0])
        if self.bytes > self._cache.memory_bytes:
            self._spill()

    def finish(self) -> list[Array]:
        """One array per column."""
        if self.folder is None:
            columns: list[Array] = []
            while self._pieces:  # one after another, so that no more than one column is there twice
                columns.append(np.concatenate(self._pieces.pop(0)))
            return columns
        kinds = [self._cache.dtype] * (len(self._shapes) - 1) + ["float32"]
        return [
            np.memmap(self._file(i), kind, "r", shape=(self._samples, *shape))
            for i, (kind, shape) in enumerate(zip(kinds, self._shapes, strict=True))
        ]

    def close(self) -> None:
        self._pieces = []
        if self.folder is not None:
            self.folder.cleanup()

    def _file(self, column: int) -> Path:
        assert self.folder is not None
        return Path(self.folder.name) / f"column_{column}"

    def _spill(self) -> None:
        """Moves what is in memory to the ends of the files."""
        try:
            if self.folder is None:
                self.folder = tempfile.TemporaryDirectory(prefix="offramp-features-", dir=self._cache.folder)
            for i, pieces in enumerate(self._pieces):
                with self._file(i).open("ab") as file:
                    for piece in pieces:
                        piece.tofile(file)
                pieces.clear()
        except OSError as error:
            raise ConfigError(
                f"{bytes_text(self.bytes)} of features and more find no room in "
                f"{self._cache.folder or tempfile.gettempdir()}: {error.strerror or error}; name another folder "
                "by FeatureCache(folder=…), or train with cache=False"
            ) from error
