"""Where published files come from: the folder that OFFRAMP_DATA names, the cache, or a download."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from offramp.errors import DatasetError, MissingExtraError

__all__ = ["download", "given_folder", "md5_sum"]


def given_folder(name: str) -> Path | None:
    """The data set's folder `$OFFRAMP_DATA/<name>`, if there is one."""
    parent = os.environ.get("OFFRAMP_DATA")
    folder = Path(parent) / name if parent else None
    return folder if folder is not None and folder.is_dir() else None


def md5_sum(content: bytes | memoryview) -> str:
    """The md5 sum in hexadecimal: it finds damage and mix-ups, and is what the data sets' authors publish."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(name: str, file: str, md5: str, url: str, cache: Path | None) -> Path:
    """A published file, from the cache if it is there unaltered.

    Args:
        name: The data set's name, and that of its folder in the cache: the sets' files are called alike.
        file: The file's name.
        md5: The file's published md5 sum.
        url: Where the file lies; ends in a slash.
        cache: The cache's folder; the user's cache folder if left out.

    Raises:
        DatasetError: The file cannot be downloaded, or is another.
        MissingExtraError: pooch is not installed.
    """
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError("downloads need pooch: pip install 'offramp[train]'") from error
    folder = (cache or pooch.os_cache("offramp")) / name
    try:
        return Path(pooch.retrieve(url + file, known_hash=f"md5:{md5}", fname=file, path=folder))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"cannot get {file} from {url}: {error}. Put it into a folder `{name}` and name the folder that "
            "this one lies in in OFFRAMP_DATA"
        ) from error
