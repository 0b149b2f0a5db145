"""Real data: inside the package, in the folder that OFFRAMP_DATA names, in the cache, or downloaded.

The one sub-package with names of its own: callers ask for a data set and need not know its format's file.
"""

from offramp.datasets.cifar import cifar10
from offramp.datasets.idx import IDX_SETS, idx_set, mnist, mnist_subset
from offramp.datasets.images import IMAGE_SUFFIXES, ImageData, class_balanced, image_folder, load_image

__all__ = [
    "IDX_SETS",
    "IMAGE_SUFFIXES",
    "ImageData",
    "cifar10",
    "class_balanced",
    "idx_set",
    "image_folder",
    "load_image",
    "mnist",
    "mnist_subset",
]
