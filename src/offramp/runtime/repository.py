"""What a server holds: several bundles, several versions of each, exchanged while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from offramp.bundle.bundle import MANIFEST, Bundle
from offramp.errors import ConfigError, DigestMismatchError, OfframpError, ServerRefusedError
from offramp.runtime.tail import Tail

__all__ = ["BundleFolders", "Repository", "bundle_folders"]


class Repository:
    """The tails of a server by model and digest. Safe to use from several threads.

    Whoever was given a tail may finish with it, whatever is served since.

    Args:
        tails: What is served, see `replace`.
    """

    def __init__(self, tails: Iterable[Tail] = ()) -> None:
        self.tails: tuple[Tail, ...] = ()
        self._by_model: Mapping[str, Mapping[str, Tail]] = {}
        self.replace(tails)

    @property
    def models(self) -> Mapping[str, Mapping[str, Tail]]:
        """By the wire's name: the tails that offer it by digest, the newest first."""
        return self._by_model

    def replace(self, tails: Iterable[Tail]) -> None:
        """Serves these from now on; of two versions of a bundle the later one is the newer.

        Raises:
            ConfigError: Two bundles of different names that offer a model of the same name.
        """
        by_model: dict[str, dict[str, Tail]] = {}
        held = tuple(tails)
        for tail in reversed(held):
            for name in tail.models:
                versions = by_model.setdefault(name, {})
                other = next(iter(versions.values()), tail).bundle.manifest.name
                if other != tail.bundle.manifest.name:
                    raise ConfigError(
                        f"the bundles {other!r} and {tail.bundle.manifest.name!r} both offer a model {name!r}; "
                        "export one of them under another name"
                    )
                versions.setdefault(tail.bundle.digest, tail)
        self.tails, self._by_model = held, by_model

    def find(self, model: str, digest: str | None = None) -> Tail:
        """The tail that offers a model: of this digest, or without one the newest.

        Raises:
            ServerRefusedError: Nothing here offers the model.
            DigestMismatchError: Other versions of the bundle do.
        """
        versions = self._by_model.get(model)
        if versions is None:
            raise ServerRefusedError(f"no model {model!r} here; there are {', '.join(self._by_model) or 'none'}")
        if digest is None:
            return next(iter(versions.values()))
        tail = versions.get(digest)
        if tail is None:
            held = ", ".join(f"{known[:12]}…" for known in versions)
            raise DigestMismatchError(
                f"the server holds digest {held}, the edge {digest[:12]}…; give both the same bundle"
            )
        return tail


def bundle_folders(path: Path) -> list[Path]:
    """The bundles in a folder; the path itself if it is one, or holds none."""
    inside = [file.parent for file in sorted(path.glob(f"[!.]*/{MANIFEST}"))]
    return inside if inside and not (path / MANIFEST).exists() else [path]


class BundleFolders:
    """Keeps a repository as the disk is, whenever `reread` is called.

    A bundle that changed on disk is served beside its previous version, so that edges which still hold that one
    go on being answered.

    Args:
        paths: Bundles, or folders of bundles.
        repository: What is kept.
        load: Makes a tail of a bundle, warm.
    """

    def __init__(self, paths: Sequence[Path], repository: Repository, load: Callable[[Bundle], Tail]) -> None:
        self._paths, self._repository, self._load = tuple(paths), repository, load
        #: By bundle folder: what is served of it, the newest last.
        self._held: dict[Path, list[Tail]] = {}

    def reread(self) -> tuple[list[str], list[OfframpError]]:
        """Loads what is new or changed, and lets go of what is gone; says what it did, and what could not be read.

        What cannot be read stays as it was. Nothing is exchanged before all of it is loaded.

        Raises:
            ConfigError: As `Repository.replace` says; everything stays as it was.
        """
        held: dict[Path, list[Tail]] = {}
        changes: list[str] = []
        errors: list[OfframpError] = []
        for folder in self._folders():
            held[folder] = before = self._held.get(folder, [])
            try:
                tail = self._fresh(Bundle.load(folder), before)
            except OfframpError as error:
                errors.append(error)
                continue
            if tail is not None:
                previous = [old for old in before if old.bundle.digest != tail.bundle.digest]
                held[folder] = [*previous[-1:], tail]
                changes.append(f"loaded {_title(tail)}")
        self._repository.replace(tail for tails in held.values() for tail in tails)
        gone = [tail for tails in self._held.values() for tail in tails if tail not in self._repository.tails]
        changes += [f"unloaded {_title(tail)}" for tail in gone]
        self._held = held
        return changes, errors

    def _folders(self) -> list[Path]:
        """The bundles' folders that are there, and those that never were, which is an error."""
        folders = [folder for path in self._paths for folder in bundle_folders(path)]
        return list(dict.fromkeys(folder for folder in folders if folder.is_dir() or folder not in self._held))

    def _fresh(self, bundle: Bundle, before: Sequence[Tail]) -> Tail | None:
        """The tail of a bundle that is not the one already served; a new tuning counts as a change."""
        if before and (before[-1].bundle.digest, before[-1].bundle.tuning) == (bundle.digest, bundle.tuning):
            return None
        return self._load(bundle)


def _title(tail: Tail) -> str:
    return f"{tail.bundle.manifest.name} {tail.bundle.digest[:12]}"
