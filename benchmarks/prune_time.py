"""The seconds that `hybridprune.prune` takes to measure, cut and refit a network, with its defaults.

    python -m benchmarks.prune_time --data_dir DATA/cifar_100 --weights WEIGHTS --threads 2
    python -m benchmarks.prune_time --cells --classifiers resnet50 --threads 2

*cells*: published ResNets. The images are CIFAR-100's, in memory before the clock starts. Accuracy is that of
``benchmarks.converged``: of the reported test images, right after the cut. *classifiers*: torchvision's, with random
weights, cut to half of their FLOPs by 512 random images of 224 pixels; their accuracy means nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import hybridprune
from benchmarks.converged import MEAN, OURS, STD, Bench, Cell
from benchmarks.latency_budget import Network
from benchmarks.recipe import BenchImages
from hybridprune.config import DataOptions
from hybridprune.engine.run_data import load_images
from hybridprune.tables import Table

CLASSIFIER_IMAGES, CLASSIFIER_BATCH, CLASSIFIER_TARGET = 512, 32, 0.5


def classifier_row(name: str) -> tuple[str, ...]:
    """A torchvision classifier's row: cells as in `row`, without an accuracy."""
    network = Network(f"torchvision:{name}")
    net, pairs = network.build(), network.batches(CLASSIFIER_IMAGES // CLASSIFIER_BATCH, CLASSIFIER_BATCH)
    wall, cores = time.perf_counter(), time.process_time()
    pruned = hybridprune.prune(net, pairs, target_flops=CLASSIFIER_TARGET)
    wall, cores = time.perf_counter() - wall, time.process_time() - cores
    share = pruned.spec.macs / pruned.spec.dense_macs
    return f"{name} to {CLASSIFIER_TARGET:g}", f"{wall:.0f}", f"{cores:.0f}", f"{share:.3f}", ""


def row(bench: Bench, cell: Cell, seed: int) -> tuple[str, ...]:
    """One network's cells: seconds by the clock and of all cores together, and what it is afterwards."""
    wall, cores = time.perf_counter(), time.process_time()
    net = bench.cut(cell, OURS, seed)
    wall, cores = time.perf_counter() - wall, time.process_time() - cores
    found = bench.outcome(net, cell.depth)
    shown = f"{wall:.0f}", f"{cores:.0f}", f"{found['share']:.3f}", f"{100 * found['report']:.2f}"
    return (f"ResNet-{cell.depth} to {cell.target:g}", *shown)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar_100", help="CIFAR-100 as an image tree")
    parser.add_argument("--weights", type=Path, default=Path("data/weights"), help="folder of the published networks")
    parser.add_argument("--cells", type=Cell.of, nargs="*", default=[Cell.of("32:0.5"), Cell.of("56:0.32")])
    parser.add_argument("--classifiers", nargs="*", default=[], metavar="NAME", help="of torchvision")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    rows = [classifier_row(name) for name in arguments.classifiers]
    if arguments.cells:
        images = BenchImages(load_images(DataOptions(data_dir=arguments.data_dir)), MEAN, STD)
        with tempfile.TemporaryDirectory() as work:  # nothing that was cut earlier is found in it
            bench = Bench(images, arguments.weights, Path(work))
            rows += [row(bench, cell, arguments.seed) for cell in arguments.cells]
    print(Table(("Network", "Seconds", "CPU seconds", "FLOPs", "Right after the cut %"), "lrrrr", rows).markdown())


if __name__ == "__main__":
    main()
