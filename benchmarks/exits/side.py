"""At which side ImageNet's MobileNetV2 sees CIFAR-10 best for its time: accuracy and milliseconds by side.

A linear classifier on the frozen network's pooled features, learnt from training images and measured on training
images held out. One thread; processor time, so that what else runs counts less.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.timing import one_core, parser, write_json
from offramp.errors import DatasetError
from offramp.recipes import Splits, load_splits
from offramp.reproduce.loop import Protocol, Samples, logits_of, train
from offramp.reproduce.mobilenet import FEATURES, mobilenetv2
from offramp.reproduce.subjects import mobilenetv2_subject
from offramp.reproduce.trainings import PASS
from offramp.tables import table_text

SIDES: tuple[int, ...] = (96, 128, 160)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "exits-side")
    made.add_argument("--images", type=int, default=4000, help="training images (default: %(default)s)")
    arguments = made.parse_args(argv)
    images, held_out, sides = arguments.images, 2000, SIDES
    if arguments.quick:
        images, held_out, sides = 100, 50, (32, 64)
    one_core()
    rows, figures = [], {}
    for side in sides:
        try:
            net = mobilenetv2(None, side=side)
            splits = load_splits("cifar10")
        except DatasetError as error:
            print(f"left out: {error}")
            return
        preprocessing = mobilenetv2_subject(32, side).preprocessing
        splits = Splits(splits.train, splits.held_out, splits.test, splits.name, splits.seed, preprocessing)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        start = time.process_time()
        seen = [_features(net, splits, part, n) for part, n in (("train", images), ("held_out", held_out))]
        ms = 1e3 * (time.process_time() - start) / (images + held_out)
        torch.manual_seed(0)
        classifier = nn.Linear(FEATURES, 10)
        train(classifier, seen[0], Protocol(epochs=30, lr=3e-3, batch=64, weight_decay=5e-4), seed=0)
        (logits,) = logits_of(classifier, seen[1].x)
        accuracy = float((logits.argmax(axis=1) == seen[1].y.numpy()).mean())
        figures[str(side)] = {"accuracy": accuracy, "ms": ms}
        rows.append([str(side), f"{100 * accuracy:.1f}", f"{ms:.1f}"])
    title = f"MobileNetV2 on CIFAR-10, {images} images, accuracy on {held_out} held out of training"
    print(table_text(title, ["side", "accuracy %", "ms per image"], rows, caption=f"torch, batches of {PASS}"))
    print(f"written: {write_json(arguments, {'sides': figures})}")


def _features(net: nn.Module, splits: Splits, part: str, n: int) -> Samples:
    data = getattr(splits, part).take(slice(n))
    columns: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for x, y in splits.batches(data, size=PASS):
            columns.append((net(x), y))
    return Samples(torch.cat([x for x, _ in columns]), torch.cat([y for _, y in columns]))


if __name__ == "__main__":
    main()
