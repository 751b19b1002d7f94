"""Speed of the training batches: crop + flip + normalise from images in memory, and streamed from JPEG files.

    python -m benchmarks.data --images 50000 --batch 128 256 --epochs 5 --threads 2 --files 512 --workers 0 2

Random 32x32 images in memory; as files (`--dataset imagefolder`), smooth noise of about 500x400 pixels in a temporary
folder, from which random resized crops of 224x224 are taken. Each figure is the median over epochs, in images per
second. The first, untimed epoch starts the workers and brings the files into the operating system's cache.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hybridprune.data import ImageSet, LabelledImages, TrainBatches, crop_flip
from hybridprune.data.stream import ImageFiles

_SIZE = 32
_PADDING = 4
_FILE_WIDTH, _FILE_HEIGHT = 500, 400  # on average; ImageNet's files are about so large
_SPREAD = 100  # of either, from file to file
_CROP = 224
_MEAN, _STD = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)


def _seconds(work: Iterable[object]) -> float:
    start = time.perf_counter()
    for _ in work:
        pass
    return time.perf_counter() - start


def _batches_rate(data: ImageSet, batch_size: int, epochs: int, channels_last: bool) -> float:
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


def _write_files(folder: Path, files: int) -> list[str]:
    paths = [folder / f"{number:06}.jpg" for number in range(files)]
    for path in paths:
        wider, higher = torch.randint(-_SPREAD // 2, _SPREAD // 2 + 1, (2,)).tolist()
        # Enlarged, noise has about the detail of photographs; as it is, a decoder would take much longer for it.
        noise = Image.fromarray(torch.randint(256, (50, 60, 3), dtype=torch.uint8).numpy())
        noise.resize((_FILE_WIDTH + wider, _FILE_HEIGHT + higher), Image.Resampling.BICUBIC).save(path, quality=90)
    return list(map(str, paths))


def _print_streamed(files: int, worker_counts: Iterable[int], batch_size: int, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = _write_files(Path(folder), files)
        kilobytes = sum(Path(path).stat().st_size for path in paths) / files / 1000
        print(
            f"imagefolder: {files:,} JPEG files of about {_FILE_WIDTH}x{_FILE_HEIGHT} ({kilobytes:.0f} kB), crops of "
            f"{_CROP}x{_CROP}, batches of {batch_size}"
        )
        print(f"{'workers':>7}  {'TrainBatches':>13}   images/s")
        for workers in worker_counts:
            data = ImageFiles(paths, torch.zeros(files, dtype=torch.int64), size=_CROP, num_workers=workers)
            print(f"{workers:>7}  {_batches_rate(data, batch_size, epochs, channels_last=True):>13,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=50_000, help="images in memory")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 256], help="batch sizes")
    parser.add_argument("--epochs", type=int, default=5, help="timed epochs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--files", type=int, default=512, help="JPEG files that are streamed; 0: leave that out")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of processes that decode them")
    parser.add_argument("--file_batch", type=int, default=64, help="batch size of streamed images")
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
    if arguments.files:
        _print_streamed(arguments.files, arguments.workers, arguments.file_batch, arguments.epochs)


if __name__ == "__main__":
    main()
