"""The memory that pruning takes, as the operating system sees it (Linux).

    python -m benchmarks.memory --network torchvision:resnet50 --size 224 --batch 32

runs `hybridprune.prune` (curvature, moments, cut, refit, recalibration) on random images in a process of its own and
prints the highest resident size of that process, libraries and weights included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import hybridprune
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.models.torchvision_nets import build_torchvision

CLASSES = 1000


def growth_bytes(run: Callable[[], object]) -> int:
    """The growth of this process's resident size in ``run``, at its peak.

    For a fresh process in which the libraries' code has been read: one that has run the same or a smaller case once.
    """
    # resets the peak (man 5 proc_pid_clear_refs); ru_maxrss would be that of the parent process
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_resident_bytes()
    run()
    return peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    """The highest resident size of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def pruning(network: str, size: int, batch: int, images: int, method: str, target_flops: float) -> tuple[int, float]:
    """Peak bytes and seconds of this process, which does nothing else, for pruning a network on random images."""
    started = time.perf_counter()
    torch.manual_seed(0)
    model = build_torchvision(network.removeprefix("torchvision:"), CLASSES).eval()
    loader = [(torch.randn(batch, 3, size, size), torch.randint(CLASSES, (batch,))) for _ in range(images // batch)]
    hybridprune.prune(
        model,
        loader,
        target_flops=target_flops,
        method=method,
        curvature=CurvatureOptions(curvature_images=images, moment_images=images),
        cut=CutOptions(refit_images=images),
    )
    return peak_resident_bytes(), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="torchvision:resnet50", help="of torchvision (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of an image's side (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=32, help="a multiple of --batch (default: %(default)s)")
    parser.add_argument("--method", default="fisher-tucker", help="default: %(default)s")
    parser.add_argument("--target_flops", type=float, default=0.7, help="share to keep (default: %(default)s)")
    given = parser.parse_args()
    if given.images < given.batch or given.images % given.batch:
        parser.error(f"--images {given.images}: give a multiple of --batch {given.batch}")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        peak, seconds = process.submit(pruning, **vars(given)).result()
    print(f"{given.network} at {given.size}, batch {given.batch}: peak {peak / 2**30:.2f} GiB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
