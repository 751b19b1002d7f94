"""The seconds in which `hybridprune recommend` finds the best cascades among many networks, on one core.

    python -m benchmarks.recommend_time --networks 30 --images 5000

Logits are random, the better the dearer the network: time does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hybridprune.routing.choose_members import Networks, best_cascade, search

CLASSES = 100


def networks(number: int, images: int) -> Networks:
    """Networks that rise in cost and in accuracy."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (images,), generator=draw)
    skill = torch.linspace(1, 2, number).view(-1, 1, 1) * F.one_hot(labels, CLASSES)
    noise = torch.randn(number, images, CLASSES, generator=draw)
    return Networks(3 * (skill + noise), labels, [10**7 + 3 * 10**6 * k for k in range(number)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument("--images", type=int, default=5000)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = networks(arguments.networks, arguments.images)
    budget, started = 0.6 * found.macs[-1], time.perf_counter()
    scores = search(found, budget)
    searched = time.perf_counter()
    for size in (2, 3):
        best_cascade(found, scores, size, budget)
    fitted = time.perf_counter()
    print(
        f"{len(scores)} pairs and triples: searched in {searched - started:.1f} s, fitted in {fitted - searched:.1f} s"
    )


if __name__ == "__main__":
    main()
