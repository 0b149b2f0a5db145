"""Real data: inside the package, in the folder that OFFRAMP_DATA names, in the cache, or downloaded.

The one sub-package with names of its own: callers ask for a data set and need not know its format's file.
"""

from offramp.datasets.cifar import cifar10
from offramp.datasets.idx import IDX_SETS, idx_set, mnist, mnist_subset
from offramp.datasets.images import IMAGE_SUFFIXES, ImageData, class_balanced, image_folder, load_image
from offramp.datasets.parts import DATASETS, Parts, folder_parts, named_parts

__all__ = [
    "DATASETS",
    "IDX_SETS",
    "IMAGE_SUFFIXES",
    "ImageData",
    "Parts",
    "cifar10",
    "class_balanced",
    "folder_parts",
    "idx_set",
    "image_folder",
    "load_image",
    "mnist",
    "mnist_subset",
    "named_parts",
]
