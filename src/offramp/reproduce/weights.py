"""Published weights: looked for by file name in `$OFFRAMP_DATA/weights`, and taken only if unaltered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from offramp.datasets.source import given_folder
from offramp.errors import DatasetError

__all__ = ["MOBILENETV2", "RESNET56", "PublishedWeights"]


@dataclass(frozen=True)
class PublishedWeights:
    """One published file of weights.

    Attributes:
        file: Its name.
        sha256: Its sum, in hexadecimal.
        source: Where it comes from, in words.
    """

    file: str
    sha256: str
    source: str

    def find(self) -> Path:
        """The file, if it is there and unaltered.

        Raises:
            DatasetError: It is missing, cannot be read, or has another sum.
        """
        folder = given_folder("weights")
        path = None if folder is None else folder / self.file
        if path is None or not path.is_file():
            raise DatasetError(
                f"the weights {self.file} are not at hand. They come from {self.source}; put the file into a "
                "folder `weights` and name the folder that this one lies in in OFFRAMP_DATA"
            )
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
        if found != self.sha256:
            raise DatasetError(
                f"{path} is not the published file: its sha256 is {found}, not {self.sha256}; take it anew from "
                f"{self.source}"
            )
        return path


RESNET56 = PublishedWeights(
    "resnet56-4bfd9763.th",
    "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
    "github.com/akamaster/pytorch_resnet_cifar10, folder pretrained_models",
)
MOBILENETV2 = PublishedWeights(
    "mobilenetv2_1.0_224_imagenet_int8.npz",
    "7619162465008495ad168749f88c20cc214d82dbd74c4699014f2e3cfaf6870e",
    "github.com/google-coral/test_data, tf2_mobilenet_v2_1.0_224_ptq.tflite, its arrays as an .npz file: for the "
    "layers in order `00.q` (int8), `00.s` (a scale per output) and `00.b` (bias), `01.q`, …",
)
