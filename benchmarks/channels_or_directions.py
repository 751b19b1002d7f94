"""Channels or directions: what each is expected to lose at the same FLOPs, block by block, in a published network.

    python -m benchmarks.channels_or_directions --data_dir DATA/cifar_100 --weights WEIGHTS --depth 32    # a minute

A rate-distortion over both kinds of cut takes inner channels of a block only where they lose less than the forms that
fisher-tucker knows. Both losses are those of one quadratic model, in nats. Channels of the first convolution's output
go greedily, and the second one's other inputs make up for them as well as they can (`removal`).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from benchmarks.converged import MEAN, STD, Bench
from benchmarks.recipe import BenchImages
from hybridprune.api.first_look import Task, look
from hybridprune.api.prunable import PlainNetwork
from hybridprune.config import CurvatureOptions, CutOptions, DataOptions
from hybridprune.curvature import CROSS_ENTROPY
from hybridprune.engine.run_data import load_images
from hybridprune.models.factored import DENSE
from hybridprune.pruning.budget.space import Budget
from hybridprune.pruning.directions.inner_channels import removal
from hybridprune.pruning.directions.rate_distortion import pareto
from hybridprune.pruning.directions.space import DirectionCell
from hybridprune.pruning.make_plan import make_plan
from hybridprune.pruning.plan import DirectionPlan
from hybridprune.tables import Table

SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Of a block's FLOPs, which its inner channels keep if that is their share."""
BATCH = 128


def direction_loss(cells: Sequence[DirectionCell], macs: float) -> float:
    """The least expected rise of the loss (nats) of forms of these layers that cost at most ``macs`` together."""
    first, second = (each.at(pareto(each.macs, each.loss)) for each in (cell.choices() for cell in cells))
    total, loss = first.macs[:, None] + second.macs, first.loss[:, None] + second.loss
    return float(loss[total <= macs].min())


def ratios(plan: DirectionPlan, block: str) -> list[float]:
    """Loss of channels over that of directions, of the two convolutions of a block, at the shares of its FLOPs."""
    cells = {cell.name: cell for cell in plan.space.cells if isinstance(cell, DirectionCell)}
    pair = [cells[f"{block}.{name}"] for name in ("conv1", "conv2")]
    losses = removal(plan.decompositions[f"{block}.conv2"]).losses.tolist()
    dense = sum(cell.shape.macs(DENSE) for cell in pair)
    return [losses[round((1 - share) * len(losses))] / direction_loss(pair, share * dense) for share in SHARES]


def planned(description: str | None, cut: CutOptions, argv: Sequence[str] | None) -> tuple[BenchImages, DirectionPlan]:
    """The images, and the plan of the published network, that the flags of a benchmark of single blocks name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar_100", help="CIFAR-100 as an image tree")
    parser.add_argument("--weights", type=Path, default=Path("data/weights"), help="folder of the published networks")
    parser.add_argument("--depth", type=int, default=32)
    arguments = parser.parse_args(argv)
    images = BenchImages(load_images(DataOptions(data_dir=arguments.data_dir)), MEAN, STD)
    net = Bench(images, arguments.weights, Path()).dense(arguments.depth)
    batches, example = look(net, images.shuffled(0, BATCH), Task(CROSS_ENTROPY, None))
    network = PlainNetwork(net, batches, example, (), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that are left alone
        plan = make_plan(network, cut, CurvatureOptions(), budget=Budget(macs=network.cost.macs // 2))
    assert isinstance(plan, DirectionPlan)
    return images, plan


def blocks_of(plan: DirectionPlan) -> list[str]:
    """The names of the blocks of a ResNet, in order."""
    return [name.removesuffix(".conv2") for name in plan.decompositions if name.endswith(".conv2")]


def main(argv: Sequence[str] | None = None) -> None:
    _, plan = planned(__doc__, CutOptions(), argv)
    rows = [(block, *(f"{ratio:.1f}" for ratio in ratios(plan, block))) for block in blocks_of(plan)]
    head = ("Block", *(f"{100 * share:.4g} %" for share in SHARES))
    print(Table(head, "l" + "r" * len(SHARES), rows).markdown())


if __name__ == "__main__":
    main()
