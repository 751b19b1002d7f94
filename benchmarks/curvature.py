"""Cost of the curvature passes over a plain forward + backward of the same batches, on ResNet-32.

    python -m benchmarks.curvature --width 16 64 --batch 128 32 --json curvature.json

All arms take turns within one run; times are medians over the rounds, on the CPU, fp32, channels_last. Memory is
the growth of a fresh process's resident size from before the pass to its peak (Linux).
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.clock import median_seconds
from benchmarks.memory import growth_bytes
from hybridprune.batch import Batch
from hybridprune.config import CurvatureOptions
from hybridprune.curvature import LayerFactors, collect_factors, collect_second_moments, eigenbasis
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.files import write_json
from hybridprune.store.provenance import hardware, versions
from hybridprune.tables import markdown_head, markdown_row

PLAIN = "forward + backward"
FACTORS, OFFSETS, TRACES = "A and G", "A, G and K", "A, G, K and traces"
MOMENTS = "second moments, entry by entry"


def arms_of(width: int, batch_size: int) -> dict[str, Callable[[], object]]:
    """Return what is measured, each a pass over the same batch."""
    torch.manual_seed(0)
    model = NetworkSpec("resnet", 32, width, 100).build().backbone.eval().to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(100, (batch_size,))
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    found: dict[str, LayerFactors] = {}

    def plain() -> None:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    def factors(sua: bool = False, **options: Any) -> None:
        found.update(
            collect_factors(
                model,
                layers,
                [Batch(images, labels)],
                fisher_type="true",
                moving_average=0,
                seed=0,
                sua=sua,
                **options,
            )
        )

    def moments() -> None:
        bases = {}
        for name, layer in found.items():
            basis = eigenbasis(layer.input_factor, layer.gradient_factor, layer.offset_factor)
            bases[name] = (basis.q_out, basis.q_in, basis.q_offset)
        collect_second_moments(model, layers, [Batch(images, labels)], bases=bases, fisher_type="true", seed=0)

    return {
        PLAIN: plain,
        FACTORS: partial(factors, sua=True),
        OFFSETS: factors,
        TRACES: partial(factors, traced_images=batch_size),
        MOMENTS: moments,
        "A and K from the full covariance, G": partial(factors, use_full_cov_a=True),
    }


def peak_bytes(width: int, batch_size: int, threads: int, arm: str) -> int:
    """Return by how much one pass raises this process's resident size at its peak; call it in a fresh process."""
    torch.set_num_threads(threads)
    for run in arms_of(width, 1).values():
        run()  # libraries and compiled kernels
    return growth_bytes(arms_of(width, batch_size)[arm])


def measure(width: int, batch_size: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Return a record per arm: milliseconds an image, and memory of the passes that need no other before them."""
    times = median_seconds(arms_of(width, batch_size), rounds)
    memory = {}
    for arm in times:
        if not arm.startswith(MOMENTS):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                memory[arm] = process.submit(peak_bytes, width, batch_size, threads, arm).result()
    return [
        {
            "width": width,
            "batch": batch_size,
            "pass": arm,
            "ms_per_image": 1e3 * each / batch_size,
            "time_ratio": each / times[PLAIN],
            "peak_bytes": memory.get(arm),
            "memory_ratio": memory[arm] / memory[PLAIN] if arm in memory else None,
        }
        for arm, each in times.items()
    ]


def default_cost(records: list[dict[str, Any]]) -> float:
    """Return the cost of a measuring over that of a plain pass of its images, with the default numbers of them."""
    options = CurvatureOptions()
    ratios = {record["pass"]: record["time_ratio"] for record in records}
    share = options.moment_images / options.curvature_images
    return share * ratios[TRACES] + (1 - share) * ratios[FACTORS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[16, 64], help="channels of the first stage")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 32], help="batch size, one per width")
    parser.add_argument("--rounds", type=int, default=7, help="timed repeats of every arm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    if len(arguments.width) != len(arguments.batch):
        parser.error("--batch needs as many values as --width")
    torch.set_num_threads(arguments.threads)
    options = CurvatureOptions()
    records, costs = [], {}
    print(f"torch {torch.__version__}, {arguments.threads} threads, median of {arguments.rounds} rounds")
    head = ("width", "batch", "pass", "ms / image", "time ratio", "peak MB", "memory ratio")
    print(*markdown_head(head, "rrlrrrr"), sep="\n")
    for width, batch_size in zip(arguments.width, arguments.batch, strict=True):
        found = measure(width, batch_size, arguments.rounds, arguments.threads)
        for record in found:
            memory = ("", "")
            if record["peak_bytes"] is not None:
                memory = (f"{record['peak_bytes'] / 1e6:.0f}", f"{record['memory_ratio']:.2f}")
            cells = (record["pass"], f"{record['ms_per_image']:.2f}", f"{record['time_ratio']:.2f}")
            print(markdown_row([str(width), str(batch_size), *cells, *memory]))
        records += found
        costs[width] = default_cost(found)
    images = f"{options.curvature_images} images, {options.moment_images} of them with K and traces"
    for width, cost in costs.items():
        print(f"width {width}: {images}: {cost:.2f} x {PLAIN}")
    if arguments.json:
        machine = {"hardware": hardware(torch.device("cpu")), "versions": versions(), "rounds": arguments.rounds}
        write_json(arguments.json, {**machine, "passes": records, "default_cost": costs})


if __name__ == "__main__":
    main()
