"""True losses of cuts of one block, beside the expected ones: inner channels, and directions of both convolutions.

    python -m benchmarks.true_losses --data_dir DATA/cifar_100 --weights WEIGHTS --depth 32    # five minutes

Each block of a published network is cut alone, so that about the same loss is expected of both kinds of cut. Nothing
is trained or refitted but BatchNorm's statistics. The quadratic model takes channels for cheaper than they are: a plan
that compares both kinds raises their losses by what the last line says (`pruning.plan_inner_channels.UNDERSTATED`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import islice
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.channels_or_directions import blocks_of, planned
from hybridprune.config import CutOptions
from hybridprune.engine.batchnorm import recalibrate_by
from hybridprune.pruning.directions.inner_channels import removal, without_inputs
from hybridprune.pruning.directions.rate_distortion import pareto
from hybridprune.pruning.directions.space import DirectionCell
from hybridprune.pruning.directions.surgery import apply_ranks
from hybridprune.pruning.plan import DirectionPlan
from hybridprune.tables import Table

WANTED = 0.06
"""Nats that a cut of one block is expected to lose, about."""
BATCH, MEASURED, SETTLING = 250, 16, 8
"""Images at a time, and batches for the loss and for BatchNorm's statistics."""
Pairs = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def without_channels(plan: DirectionPlan, block: str, wanted: float) -> tuple[nn.Module, float]:
    """The network without so many inner channels of a block that at most ``wanted`` nats are lost, and how many are."""
    name = f"{block}.conv2"
    found = removal(plan.decompositions[name])
    number = int((found.losses <= wanted).sum()) - 1
    net = copy.deepcopy(plan.network.model)
    weight = net.get_submodule(name).get_parameter("weight")
    weight.copy_(without_inputs(plan.decompositions[name], found.order[:number]).view_as(weight))
    return net, float(found.losses[number])


def without_directions(plan: DirectionPlan, block: str, wanted: float) -> tuple[nn.Module, float]:
    """The network whose two convolutions of a block are in forms that lose about half of ``wanted`` nats each."""
    cells = {cell.name: cell for cell in plan.space.cells if isinstance(cell, DirectionCell)}
    ranks, expected = {layer.name: layer.form for layer in plan.layers}, 0.0
    for cell in (cells[f"{block}.conv1"], cells[f"{block}.conv2"]):
        choices = cell.choices()
        worth = choices.at(pareto(choices.macs, choices.loss))
        kept = worth.kept(int((worth.loss - wanted / 2).abs().argmin()))[: len(cell.sets)]
        ranks[cell.name] = cell.ranks(kept)
        expected += cell.loss(kept)
    net = copy.deepcopy(plan.network.model)
    apply_ranks(net, plan.layers, plan.decompositions, ranks)
    return net, expected


@torch.no_grad()
def settled_loss(net: nn.Module, settling: Pairs, measured: Pairs) -> float:
    """The mean cross-entropy (nats) of a network whose BatchNorms know its images."""
    recalibrate_by(net, settling, lambda pair: net(pair[0]))
    net.eval()
    return float(torch.stack([F.cross_entropy(net(x), y) for x, y in measured]).mean())


def main(argv: Sequence[str] | None = None) -> None:
    images, plan = planned(__doc__, CutOptions(separable="none"), argv)
    measured = list(islice(images.shuffled(5, BATCH), MEASURED))
    settling = list(islice(images.shuffled(6, BATCH), SETTLING))
    whole = settled_loss(copy.deepcopy(plan.network.model), settling, measured)
    rows: list[tuple[str, ...]] = []
    over: list[tuple[float, float]] = []
    for block in blocks_of(plan):
        found = [kind(plan, block, WANTED) for kind in (without_channels, without_directions)]
        losses = [(expected, settled_loss(cut, settling, measured) - whole) for cut, expected in found]
        rows.append((block, *(f"{loss:.3f}" for pair in losses for loss in pair)))
        over.append((losses[0][1] / losses[0][0], losses[1][1] / losses[1][0]))
    channels, directions = (median(each) for each in zip(*over, strict=True))
    rows.append(("median of true / expected", "", f"{channels:.2f}", "", f"{directions:.2f}"))
    print(Table(("Block", "channels, expected", "true", "directions, expected", "true"), "lrrrr", rows).markdown())
    print(f"\n{channels / directions:.2f} times as much as directions of the same expected loss")


if __name__ == "__main__":
    main()
