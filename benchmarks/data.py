"""Speed of the training batches: crop + flip + normalise from images in memory.

    python -m benchmarks.data --images 50000 --batch 128 256 --epochs 5 --threads 2

Random 32x32 images; each figure is the median over epochs, in images per second.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from hybridprune.data import LabelledImages, TrainBatches, crop_flip

_SIZE = 32
_PADDING = 4
_MEAN, _STD = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)


def _seconds(work: Iterable[object]) -> float:
    start = time.perf_counter()
    for _ in work:
        pass
    return time.perf_counter() - start


def _batches_rate(data: LabelledImages, batch_size: int, epochs: int, channels_last: bool) -> float:
    batches = TrainBatches(
        data,
        torch.arange(len(data)),
        batch_size=batch_size,
        mean=_MEAN,
        std=_STD,
        crop=True,
        flip=True,
        seed=0,
        device="cpu",
        channels_last=channels_last,
    )
    images = min(len(batches) * batch_size, len(data))
    _seconds(batches.epoch(0))  # warm-up
    return images / statistics.median(_seconds(batches.epoch(epoch)) for epoch in range(1, epochs + 1))


def _crop_rate(images: Tensor, batch_size: int, epochs: int) -> float:
    offsets = torch.randint(2 * _PADDING + 1, (len(images), 2))
    flips = torch.rand(len(images)) < 0.5
    parts = list(zip(images.split(batch_size), offsets.split(batch_size), flips.split(batch_size), strict=True))

    def epoch() -> float:
        return _seconds(crop_flip(*part, _PADDING) for part in parts)

    epoch()  # warm-up
    return len(images) / statistics.median(epoch() for _ in range(epochs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=50_000, help="images in memory")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 256], help="batch sizes")
    parser.add_argument("--epochs", type=int, default=5, help="timed epochs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    images = torch.randint(256, (arguments.images, 3, _SIZE, _SIZE), dtype=torch.uint8)
    data = LabelledImages(images, torch.zeros(arguments.images, dtype=torch.int64))
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads, "
        f"{arguments.images:,} images of {_SIZE}x{_SIZE}, median of {arguments.epochs} epochs"
    )
    print(f"{'batch':>6}  {'TrainBatches':>13}  {'channels_last':>13}  {'crop_flip':>13}   images/s")
    for batch_size in arguments.batch:
        rates = (
            _batches_rate(data, batch_size, arguments.epochs, channels_last=False),
            _batches_rate(data, batch_size, arguments.epochs, channels_last=True),
            _crop_rate(images, batch_size, arguments.epochs),
        )
        print(f"{batch_size:>6}  " + "  ".join(f"{rate:>13,.0f}" for rate in rates))


if __name__ == "__main__":
    main()
