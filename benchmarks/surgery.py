"""Seconds that stage 2 spends without looking at images: decomposition, search of the cut, surgery.

    python -m benchmarks.surgery --width 64

Random Kronecker factors on a ResNet-32; the time does not depend on their values. (The least-squares refit runs the
network and is not part of it.)
"""

from __future__ import annotations

import argparse
import time

import torch

from hybridprune.curvature import LayerFactors, SecondMoments
from hybridprune.measure.cost import count
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.allocate import ALLOCATIONS, allocate
from hybridprune.pruning.budget.space import Budget, Cost, pick
from hybridprune.pruning.directions.layers import PrunableLayer, prunable_layers
from hybridprune.pruning.directions.space import DirectionCell, direction_space
from hybridprune.pruning.directions.surgery import apply_ranks
from hybridprune.pruning.methods.fisher_tucker import decompose
from hybridprune.tables import Table


def random_curvature(layer: PrunableLayer, draw: torch.Generator) -> tuple[LayerFactors, SecondMoments]:
    """Well-conditioned factors of a layer, K included."""
    c_out, c_in, height, width = layer.weight.shape

    def factor(size: int) -> torch.Tensor:
        root = torch.randn(size, size + 4, generator=draw)
        return root @ root.T / size

    offset = factor(height * width) if height * width > 1 else None
    factors = LayerFactors(factor(c_in), factor(c_out), layer.shape.out_positions, torch.zeros(c_in), offset)
    return factors, SecondMoments(1.0, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--budget", type=float, default=0.25, help="share of the dense FLOPs")
    arguments = parser.parse_args()
    net = NetworkSpec("resnet", 32, arguments.width, 100).build()
    draw = torch.Generator().manual_seed(0)
    layers = prunable_layers(net, lambda: net(torch.zeros(1, 3, 32, 32)))
    curvature = {layer.name: random_curvature(layer, draw) for layer in layers}
    cost = count(net, 32)
    started = time.perf_counter()
    decompositions = {x.name: decompose(x.weight, *curvature[x.name], 1e-6) for x in layers}
    seconds = {"decompose": time.perf_counter() - started}
    whole = Cost(cost.backbone_macs, cost.backbone_params)
    space = direction_space(layers, decompositions, whole, limit=0.9, normalize=False, allow_increase=False)
    kept: list[int] = []
    for allocation in ALLOCATIONS:
        started = time.perf_counter()
        kept = allocate(space, allocation, ratio=0.0, budget=Budget(macs=arguments.budget * cost.backbone_macs))
        seconds[allocation] = time.perf_counter() - started
    started = time.perf_counter()
    ranks = {cell.name: cell.ranks(pick(cell, kept)) for cell in space.cells if isinstance(cell, DirectionCell)}
    apply_ranks(net, layers, decompositions, ranks)
    seconds["surgery"] = time.perf_counter() - started
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, width {arguments.width}")
    print(Table(("part", "seconds"), "lr", [(part, f"{value:.2f}") for part, value in seconds.items()]).markdown())


if __name__ == "__main__":
    main()
