"""Inputs that come while a run goes on: paths from another program, frames from a camera."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bundle.manifest import Preprocessing
from offramp.datasets.images import fitted
from offramp.errors import ConfigError, DatasetError, MissingExtraError

__all__ = ["CAMERA", "Camera", "Listed"]

CAMERA = "camera:"
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Listed:
    """Paths that another program writes, one per line; blank lines do not count.

    Attributes:
        descriptor: The file descriptor to read them from; 0 is the standard input.
    """

    descriptor: int = 0

    def lines(self) -> Iterator[str]:
        """Each path as soon as its line is there."""
        # Not by `sys.stdin`: whoever waits in its lock when Python ends brings Python down.
        rest = b""
        while chunk := os.read(self.descriptor, _CHUNK):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (os.fsdecode(line.rstrip(b"\r")) for line in whole if line.strip())
        if rest.strip():
            yield os.fsdecode(rest)


@dataclass(frozen=True)
class Camera:
    """A camera, or what else OpenCV opens as one: a stream's address, a film.

    Attributes:
        which: The number of a camera, or a device, an address, or a file.
    """

    which: str

    def frames(self, images: Preprocessing | None) -> Iterator[NDArray[np.uint8]]:
        """Frames as `load_image` gives images, resized as the manifest says; none is read before it is wanted.

        Raises:
            MissingExtraError: OpenCV is not installed.
            ConfigError: There is no such camera, or the bundle takes no images.
            DatasetError: It gave no frame at all.
        """
        if images is None:
            raise ConfigError(f"{CAMERA}{self.which} gives images, but the bundle has no preprocessing")
        try:
            import cv2
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{CAMERA}{self.which} needs OpenCV, which is not installed: pip install 'offramp[camera]'"
            ) from error
        # A device's own number is an integer to OpenCV.
        opened: Any = cv2.VideoCapture(int(self.which) if self.which.isdecimal() else self.which)
        try:
            if not opened.isOpened():
                raise ConfigError(f"there is no camera {self.which}; a number such as {CAMERA}0 is expected")
            opened.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the latest frame, not the oldest
            size, count = (images.height, images.width), 0
            while True:
                there, frame = opened.read()
                if not there:
                    break
                count += 1
                shown = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                yield fitted(shown, size, color=images.color == "rgb")
            if count == 0:
                raise DatasetError(f"camera {self.which} gave no frame")
        finally:
            opened.release()
