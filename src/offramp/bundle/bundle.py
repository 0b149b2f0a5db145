"""Reading, verifying, writing and copying bundles. Needs neither torch nor onnx."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from offramp.bundle.feed import signature
from offramp.bundle.manifest import FORMAT, Exit, Graph, Held, Manifest, TensorSpec, Tuning
from offramp.bundle.onnxfile import external_data
from offramp.errors import (
    BundleAlteredError,
    BundleError,
    BundleFileError,
    BundleManifestError,
    BundlePathError,
    BundleShapeError,
    BundleVersionError,
    ConfigError,
    ExternalDataError,
)

__all__ = ["Bundle", "check_place", "write_bundle", "write_whole"]

MANIFEST, TUNING, HELD = "manifest.json", "tuning.json", "held.json"

_Model = TypeVar("_Model", bound=BaseModel)


class Bundle:
    """A verified bundle, or an edge copy of one. Make it with `Bundle.load`.

    Attributes:
        path: Its directory.
        manifest: What it describes, the same in every copy.
        tuning: Temperatures, thresholds, the usual mode.
        held: How many stages this copy holds, from stage 0.
        digest: What edge and server must agree on, the same in every copy.
    """

    def __init__(self, path: Path, manifest: Manifest, tuning: Tuning, held: int) -> None:
        self.path, self.manifest, self.tuning, self.held = path, manifest, tuning, held
        self.digest = manifest.digest

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Reads a bundle and verifies every file in it.

        Raises:
            BundleVersionError: A format that this offramp does not know.
            BundleManifestError: A manifest, tuning or held file that does not validate.
            BundleFileError: A missing file.
            BundleAlteredError: A file whose sha256 is not the manifest's.
            BundlePathError: A path that leaves the directory.
            ExternalDataError: An ONNX file that points outside itself.
            BundleShapeError: Tensors that do not chain.
        """
        root = Path(path)
        if not root.is_dir():
            raise BundleFileError(f"there is no bundle directory {root}")
        manifest = _read_json(root, MANIFEST, Manifest)
        _check_chain(manifest)
        tuning = _read_json(root, TUNING, Tuning)
        n = len(manifest.stages)
        _check_tuning(root, tuning, manifest)
        held = _read_json(root, HELD, Held).stages if (root / HELD).exists() else n
        if held > n:
            raise BundleManifestError(f"{root / HELD} says {held} stages, the manifest has {n}")
        bundle = cls(root, manifest, tuning, held)
        for graph in bundle.held_graphs():
            bundle.read(graph)
        return bundle

    def read(self, graph: Graph) -> bytes:
        """The bytes of one of the bundle's graphs, verified.

        Raises:
            BundleError: As `load` says.
        """
        relative = PurePosixPath(graph.file)
        if relative.is_absolute() or ".." in relative.parts or "\\" in graph.file:
            raise BundlePathError(f"{self.path}: the path {graph.file!r} leaves the bundle's directory")
        file = self.path / relative
        try:
            inside = file.resolve().is_relative_to(self.path.resolve())
            there = file.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # link loops, NUL, names that are too long
            raise BundlePathError(f"{self.path}: {graph.file!r} is no usable path: {error}") from error
        if not inside:
            raise BundlePathError(f"{self.path}: {graph.file!r} is a link that leaves the bundle's directory")
        if not there:
            raise BundleFileError(f"{self.path}: the file {graph.file!r} is missing; copy the whole bundle again")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise BundleFileError(f"{self.path}: {graph.file!r} cannot be read: {error}") from error
        if hashlib.sha256(content).hexdigest() != graph.sha256:
            raise BundleAlteredError(
                f"{self.path}: {graph.file!r} is not the file that the manifest names (another sha256); "
                "copy the whole bundle again"
            )
        try:
            outside = external_data(content)
        except ValueError as error:
            raise BundleAlteredError(f"{self.path}: {graph.file!r}: {error}") from error
        if outside:
            raise ExternalDataError(
                f"{self.path}: {graph.file!r} points to data outside itself; export it with its weights inside"
            )
        return content

    def held_graphs(self) -> tuple[Graph, ...]:
        """The graphs that this copy holds: its stages, their exits, and the codecs up to its last cut."""
        return _graphs_up_to(self.manifest, self.held)

    def stored_bytes(self, stages: int | None = None) -> int:
        """Bytes of the graphs of the first `stages` stages; of everything held if left out."""
        return sum(g.bytes for g in _graphs_up_to(self.manifest, self.held if stages is None else stages))

    def edge_copy(self, target: str | Path, stages: int) -> Bundle:
        """Writes a copy that holds only the first stages, with the same manifest and digest.

        Args:
            target: The copy's directory; another edge copy there is replaced.
            stages: How many stages, 1 to as many as are held.

        Raises:
            ConfigError: A number of stages that is not there.
            BundleError: The target is this bundle, a whole one, or none at all.
        """
        if not 1 <= stages <= self.held:
            raise ConfigError(f"stages must be 1 to {self.held}, not {stages}")
        root = check_place(target)
        if root == self.path.resolve() or (_is_bundle(root) and not (root / HELD).exists()):
            raise BundleError(f"{root} would lose the stages that the edge does not hold; choose another place")
        files = {g.file: self.read(g) for g in _graphs_up_to(self.manifest, stages)}
        write_bundle(target, self.manifest, self.tuning, files, held=Held(stages=stages))
        return Bundle.load(target)

    def retuned(self, tuning: Tuning) -> Bundle:
        """Replaces the tuning of this copy, and nothing else: graphs, manifest and digest stay.

        The file that was there is kept as `tuning.json.bak`, and at every moment one of the two is `tuning.json`.

        Raises:
            BundleManifestError: Not one temperature and threshold per exit, or a mode that no cut has.
            BundleError: The directory cannot be written; the old tuning stays.
        """
        _check_tuning(self.path, tuning, self.manifest)
        file = self.path / TUNING
        try:
            write_whole(self.path / f"{TUNING}.bak", file.read_bytes(), like=file)
            write_whole(file, (tuning.model_dump_json(indent=1) + "\n").encode(), like=file)
        except OSError as error:
            raise BundleError(f"cannot write {file}: {error}; the old tuning is still there") from error
        return Bundle(self.path, self.manifest, tuning, self.held)


def write_bundle(
    path: str | Path,
    manifest: Manifest,
    tuning: Tuning,
    files: Mapping[str, bytes],
    *,
    held: Held | None = None,
) -> None:
    """Writes a bundle whole or not at all; an older bundle in the same place is replaced.

    Raises:
        BundleError: Something other than a bundle is in the way, or the place cannot be written.
    """
    root = check_place(path)
    try:
        documents = {
            name: model.model_dump_json(indent=1) + "\n"
            for name, model in ((MANIFEST, manifest), (TUNING, tuning), (HELD, held))
            if model is not None
        }
    except ValueError as error:  # pydantic's serialisation error is one
        raise BundleError(f"the manifest cannot be written as JSON: {error}") from error
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as place:
            fresh, old = Path(place) / "fresh", Path(place) / "old"
            fresh.mkdir()
            for name, content in files.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                (fresh / name).write_bytes(content)
            for name, text in documents.items():
                (fresh / name).write_text(text, encoding="utf-8")
            Bundle.load(fresh)  # what cannot be loaded replaces nothing
            _swap(fresh, root, old)
    except OSError as error:
        raise BundleError(f"cannot write a bundle to {root}: {error}") from error


def check_place(path: str | Path) -> Path:
    """Where a bundle may be written: nothing, an empty directory or an older bundle is there; gives it in full.

    Raises:
        BundleError: Something else is in the way.
    """
    root = Path(path).resolve()
    if root.exists() and not _is_bundle(root) and (not root.is_dir() or any(root.iterdir())):
        raise BundleError(f"{root} exists and is no bundle; choose another place or remove it")
    return root


def write_whole(target: Path, content: bytes, *, like: Path | None = None) -> None:
    """Writes a file whole or not at all; a file there stays until the new one is complete, a link stays a link.

    Args:
        target: The file.
        content: What it shall hold.
        like: A file whose permissions it gets.

    Raises:
        OSError: It cannot be written.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_file():  # a device would be replaced by a file
        raise OSError(errno.EINVAL, "it is no file")
    fresh = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if like is not None:
            shutil.copymode(like, fresh)
        os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)


def _check_tuning(root: Path, tuning: Tuning, manifest: Manifest) -> None:
    n = len(manifest.stages)
    modes = dict.fromkeys(mode for cut in range(-1, n - 1) for mode in manifest.modes(cut))
    if tuning.mode not in modes:  # else every cut would travel as float, unheard
        raise BundleManifestError(
            f"{root / TUNING}: no cut has the mode {tuning.mode!r}; there is {', '.join(modes)}"
        )
    if len(tuning.temperatures) != n or len(tuning.thresholds) != n:
        raise BundleManifestError(f"{root / TUNING}: expected one temperature and threshold per exit, {n}")


def _swap(fresh: Path, root: Path, old: Path) -> None:
    if not root.exists():
        os.replace(fresh, root)
        return
    os.replace(root, old)
    try:
        os.replace(fresh, root)
    except BaseException:
        os.replace(old, root)
        raise


def _is_bundle(root: Path) -> bool:
    try:
        found = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"format", "stages"} <= set(found)


def _graphs_up_to(manifest: Manifest, stages: int) -> tuple[Graph, ...]:
    exits = [e.graph for e in manifest.exits[:stages] if e is not None and e.graph is not None]
    codecs = [g for c in manifest.codecs if c.cut < stages for g in (c.encoder, c.decoder)]
    return (*(s.graph for s in manifest.stages[:stages]), *exits, *codecs)


def _read_json(root: Path, name: str, model: type[_Model]) -> _Model:
    file = root / name
    if not file.is_file():
        raise BundleFileError(f"{root} has no {name}; is it a bundle?")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BundleManifestError(f"{file} is not JSON: {error}") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise BundleVersionError(
            f"{file} has format {version}; this offramp reads up to {FORMAT}. Upgrade it: pip install -U offramp"
        )
    try:
        return model.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise BundleManifestError(f"{file}: {where}: {first['msg']}") from error


def _check_chain(manifest: Manifest) -> None:
    def shapes(tensors: tuple[TensorSpec, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
        return [(t.name, t.dtype, t.shape) for t in tensors]

    def same(what: str, got: tuple[TensorSpec, ...], expected: tuple[TensorSpec, ...]) -> None:
        if shapes(got) != shapes(expected):
            raise BundleShapeError(f"{what} takes or gives {shapes(got)}, but {shapes(expected)} is there")

    n = len(manifest.stages)
    if len(manifest.exits) != n:
        raise BundleShapeError(f"{n} stages need {n} exits (null where a cut has none), not {len(manifest.exits)}")
    final = manifest.exits[-1]
    if final is None or final.graph is not None:
        raise BundleShapeError("the last exit must be the last stage's own output, without a graph")
    for i, stage in enumerate(manifest.stages):
        same(f"stage {i}", stage.graph.inputs, manifest.cut(i - 1))
        found: Exit | None = manifest.exits[i]
        if found is None or i == manifest.last:
            continue
        if found.graph is None:
            raise BundleShapeError(f"exit {i} has no graph; only the last exit is its stage's own output")
        same(f"exit {i}", found.graph.inputs, manifest.cut(i))
        same(f"exit {i}", found.graph.outputs, (found.logits,))
        if found.logits.shape != final.logits.shape:
            raise BundleShapeError(
                f"exit {i} gives logits of shape {found.logits.shape}, the last one {final.logits.shape}"
            )
    same("the last stage", manifest.stages[-1].graph.outputs, (final.logits,))
    for codec in manifest.codecs:
        if codec.cut >= n - 1:
            raise BundleShapeError(f"a codec names cut {codec.cut}; the last cut is {n - 2}")
        same(f"the {codec.mode} encoder of cut {codec.cut}", codec.encoder.inputs, manifest.cut(codec.cut))
        same(f"the {codec.mode} decoder of cut {codec.cut}", codec.decoder.outputs, manifest.cut(codec.cut))
        same(f"the {codec.mode} decoder of cut {codec.cut}", codec.decoder.inputs, codec.encoder.outputs)
    images = manifest.preprocessing
    if images is not None:
        if len(manifest.inputs) > 1:
            raise BundleShapeError(
                "the preprocessing makes one input of an image, but the network takes "
                f"{signature(manifest.inputs)}; leave it out, and give the edge arrays"
            )
        shape = (1 if images.color == "grey" else 3, images.height, images.width)
        if manifest.inputs[0].shape != shape:
            raise BundleShapeError(
                f"the preprocessing gives {shape}, the network takes {manifest.inputs[0].shape}"
            )
    if manifest.classes and final.logits.shape != (len(manifest.classes),):
        raise BundleShapeError(f"{len(manifest.classes)} class names for logits of shape {final.logits.shape}")
