"""Training exits on a frozen backbone: features computed once, against the backbone in every epoch.

CIFAR-10's published ResNet-56 with six exits. One thread; processor seconds, so that what else runs counts less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import offramp as off
from benchmarks.timing import one_core, parser, write_json
from offramp.datasets import ImageData, cifar10
from offramp.errors import DatasetError
from offramp.exits.cache import CachedFeatures, FeatureCache
from offramp.reproduce.resnet import resnet56
from offramp.tables import bytes_text, table_text

EXITS = ("layer1.4", "layer1.8", "layer2.2", "layer2.6", "layer3.1", "layer3.4")
HEADS = {"conv": off.ConvHead, "deep": off.DeepHead}
BATCH = 100
#: The published weights' normalisation.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "exits-cached")
    made.add_argument("--images", type=int, default=5000, help="training images (default: %(default)s)")
    made.add_argument("--epochs", type=int, default=10, help="passes over them (default: %(default)s)")
    made.add_argument(
        "--uncached-epochs", type=int, default=1, help="of the slow way, from which the rest is reckoned"
    )
    made.add_argument("--head", choices=tuple(HEADS), default="conv", help="every exit's (default: %(default)s)")
    arguments = made.parse_args(argv)
    try:
        backbone = resnet56()
    except DatasetError as error:
        print(f"left out: {error}")
        return
    images, epochs, slow = arguments.images, arguments.epochs, arguments.uncached_epochs
    tested = 2000
    if arguments.quick:
        images, epochs, slow, tested = 200, 2, 1, 100
    one_core()
    train, test = cifar10()
    loader, held = _loader(train, images), _loader(test, tested)
    head = HEADS[arguments.head]
    net, other = _net(backbone, head), _net(backbone, head)
    _train(_net(backbone, head), list(loader)[:1], 1)  # what the first training of a process costs once

    features_s, kept = _timed(lambda: CachedFeatures(net, loader, FeatureCache()))
    heads_s, _ = _timed(lambda: _train(net, kept.batches(shuffled=True), epochs))
    uncached_s, _ = _timed(lambda: _train(other, loader, slow))
    every_s = uncached_s / slow * epochs
    accuracy = off.evaluate(net, held).accuracy
    whole = _whole_bytes(net) * images
    figures = {
        "head": arguments.head,
        "images": images,
        "epochs": epochs,
        "features_s": features_s,
        "heads_s": heads_s,
        "cached_s": features_s + heads_s,
        "uncached_epochs": slow,
        "uncached_epoch_s": uncached_s / slow,
        "uncached_s": every_s,
        "speedup": every_s / (features_s + heads_s),
        "cache_bytes": kept.bytes,
        "feature_bytes": whole,
        "accuracy": accuracy,
    }
    rows = [
        ["features once", f"{features_s:.1f}", f"{heads_s / epochs:.2f}", f"{features_s + heads_s:.1f}"],
        ["backbone in every epoch", "-", f"{uncached_s / slow:.1f}", f"{every_s:.1f}"],
    ]
    said = (
        f"{figures['speedup']:.1f}x; the second row's total is reckoned from {slow} of its epochs; kept: "
        f"{bytes_text(kept.bytes)}, without pooling first {bytes_text(whole)}; accuracy of the exits on {tested} "
        f"test images, %: {' '.join(f'{100 * a:.1f}' for a in accuracy)}"
    )
    what = f"Six {head.__name__}s on a frozen ResNet-56, {images} images, {epochs} epochs"
    title = f"{what}, one thread, processor seconds"
    print(table_text(title, ["training", "features s", "s per epoch", "total s"], rows, caption=said))
    print(f"written: {write_json(arguments, figures)}")


def _timed(work: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _train(net: off.MultiExit, loader: Any, epochs: int) -> None:
    off.fit(net, loader, epochs=epochs, lr=1e-2, frozen=True, cache=False, progress=False, accelerator="cpu")


def _net(backbone: torch.nn.Module, head: Callable[[int], torch.nn.Module]) -> off.MultiExit:
    torch.manual_seed(0)
    heads = {name: head(10) for name in EXITS}
    return off.MultiExit(backbone, heads, example_input=torch.zeros(1, 3, 32, 32))


def _loader(part: ImageData, count: int) -> DataLoader[tuple[Tensor, ...]]:
    pixels = torch.from_numpy(part.images[:count]).permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    data = TensorDataset((pixels - mean) / std, torch.from_numpy(part.labels[:count]))
    return DataLoader(data, BATCH)


def _whole_bytes(net: off.MultiExit) -> int:
    with torch.no_grad():
        features, _ = net.backbone(torch.zeros(1, 3, 32, 32))
    return sum(f.nbytes for f in features)


if __name__ == "__main__":
    main()
