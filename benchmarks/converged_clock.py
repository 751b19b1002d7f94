"""Speeds of the networks of ``benchmarks.converged`` by the clock, deployed in PyTorch and in ONNX Runtime.

    python -m benchmarks.converged_clock --data_dir DATA/cifar_100 --weights WEIGHTS --work WORK --cells 32:0.5

The cut networks are those of the folder WORK; one that is not there is cut first. Times are medians of one interleaved
run, of the CPU alone: speeds are over the uncut network in the same engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import hybridprune
from benchmarks.converged import DENSE, MEAN, METHODS, STD, Bench, Cell
from benchmarks.recipe import CPU, BenchImages
from hybridprune.config import DataOptions
from hybridprune.deployment.onnx import onnx_bytes, session
from hybridprune.engine.run_data import load_images
from hybridprune.measure.latency import Arms, stopwatch
from hybridprune.tables import Table

ENGINES = ("PyTorch, deployed", "ONNX Runtime")
SHOWN = ("fisher-tucker, separable", "fisher-tucker, refit network", "taylor", "torch-pruning group-l2")


def arms(nets: Mapping[str, nn.Module], images: Tensor, threads: int) -> Arms:
    """A call of every network in every engine on ``images [B, 3, H, W]``."""
    found = {}
    for name, net in nets.items():
        deployed = hybridprune.deploy(net, images, progress=False).module
        found[f"{ENGINES[0]}: {name}"] = partial(deployed, images)
        runtime = session(onnx_bytes(net, images), threads)
        found[f"{ENGINES[1]}: {name}"] = partial(runtime.run, None, {"images": images.numpy()})
    return found


def speeds(nets: Mapping[str, nn.Module], images: Tensor, threads: int, rounds: int) -> dict[str, float]:
    """The speed of every arm over the uncut network in its engine."""
    found = stopwatch(CPU, rounds)(arms(nets, images, threads))
    medians = {name: latency.median_ms for name, latency in found.items()}
    return {name: medians[f"{name.split(':')[0]}: {DENSE}"] / median for name, median in medians.items()}


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar_100", help="CIFAR-100 as an image tree")
    parser.add_argument("--weights", type=Path, default=Path("data/weights"), help="folder of the published networks")
    parser.add_argument("--work", type=Path, default=Path("results/converged"), help="folder of cut networks")
    parser.add_argument("--cells", type=Cell.of, nargs="+", default=[Cell.of("32:0.5")], help="DEPTH:TARGET[:params]")
    parser.add_argument("--methods", nargs="+", default=list(SHOWN), choices=METHODS, metavar="METHOD")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="images at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    images = BenchImages(load_images(DataOptions(data_dir=arguments.data_dir)), MEAN, STD)
    bench = Bench(images, arguments.weights, arguments.work)
    for cell in arguments.cells:
        with torch.inference_mode(False):
            nets = {method: bench.cut(cell, method, 0).eval() for method in arguments.methods}
        nets = {DENSE: bench.dense(cell.depth), **nets}
        columns = {}
        for batch in arguments.batch:
            some = next(iter(images.shuffled(0, batch)))[0]
            found = speeds(
                nets, some.contiguous(memory_format=torch.channels_last), arguments.threads, arguments.rounds
            )
            for engine in ENGINES:
                columns[f"{engine}, batch {batch}"] = [f"{found[f'{engine}: {name}']:.2f}" for name in nets]
        rows = zip(nets, *columns.values(), strict=True)
        print(f"{cell}\n")
        print(Table(("Network", *columns), "l" + "r" * len(columns), list(rows)).markdown())


if __name__ == "__main__":
    main()
