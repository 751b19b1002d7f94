"""The most that a judge of difficulty could save: the rest of the last stage goes where the network is sure already.

    python -m benchmarks.exits --data_dir DATA/cifar_100 --work WORK    # validation split of CIFAR-100

A network cut to F1 (the first phase of `benchmarks.hybrid_arms`) is trained for one more epoch in which half of the
images leave at a random gate of the last stage: from there on, every block is skipped. What is left is what the
classifier says of that gate's features, so its highest probability is a judge that costs next to nothing (one
classifier a gate, counted). Two tables: all images leave at the same gate; each image leaves at the first gate of the
last stage where it is sure enough. Where the second is better at equal FLOPs, routing pays.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.hybrid_bench import SIZE, STATIC, Bench, Forced
from benchmarks.static_arms import DENSE
from benchmarks.static_arms import Bench as StaticBench
from hybridprune.engine.evaluate import evaluate
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.store.seeds import generator
from hybridprune.tables import markdown_head, markdown_row

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COLUMNS = ("FLOPs %", "Accuracy %", "Cross-entropy")


def routes_leaving_at(exits: Tensor, gates: int) -> Tensor:
    """Decisions ``[B, gates]``: all blocks before the exit of each image ``[B]`` are executed, none after it."""
    return (torch.arange(gates) < exits[:, None]).float()


def first_sure(confidence: Tensor, threshold: float) -> Tensor:
    """The first exit ``[M]`` whose confidence ``[exits, M]`` is above the threshold, the last one if none is."""
    sure = confidence > threshold
    sure[-1] = True
    return sure.int().argmax(0)


def train(bench: Bench, first_gate: int) -> GatedNetwork:
    """The network of the first phase after an epoch with random exits."""
    net = bench.first_phase(bench.f1)
    gates = net.num_gates
    draw = generator(bench.seed, "exits")

    def routes(batch: int) -> Tensor:
        exits = torch.randint(first_gate, gates, (batch,), generator=draw)
        stays = torch.rand(batch, generator=draw) < 0.5
        return routes_leaving_at(torch.where(stays, gates, exits), gates)

    run = bench.run_of("exits")
    bench.fit(run, net, Forced(routes), bench.epochs[1], STATIC, bench.always_on_score, nn.Module.train)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar_100", help="CIFAR-100 as an image tree")
    parser.add_argument("--work", type=Path, default=Path("hybrid_work"), help="folder of the trainings")
    parser.add_argument("--f1", type=float, default=0.25, help="static share of the dense FLOPs")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of the trainings")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    uncut = DENSE.build()
    dense = count(uncut, SIZE).backbone_macs
    static = StaticBench.of(arguments.data_dir, arguments.seed, arguments.precision)
    bench = Bench(static, arguments.work / "resnet32", arguments.f1, arguments.f1, (1, 1), dense)
    first_gate = uncut.num_blocks - uncut.num_blocks // 3  # the gate behind the first block of the last of three stages
    net = train(bench, first_gate)
    cost = count(net, SIZE)
    print("Avoidable share of the cut network, %:", " ".join(f"{100 * share:.1f}" for share in cost.block_shares), "\n")
    exits = range(first_gate, net.num_gates + 1)
    images = static.images.validation()
    routes = [routes_leaving_at(torch.full((images.num_images,), leave), net.num_gates) for leave in exits]
    found = [evaluate(net, images, "executed", each, keep_logits=True) for each in routes]
    logits, labels = torch.stack([each.logits for each in found]), found[0].labels
    spent = torch.tensor([float(cost.fixed_macs + sum(cost.block_macs[:leave])) for leave in exits])

    def row(name: str, chosen: Tensor, judge: float) -> None:
        """``chosen [M]``: which exit each image takes; ``judge`` MACs a gate that was asked."""
        seen = logits[chosen, torch.arange(len(labels))]
        asked = (chosen + 1).clamp(max=len(exits) - 1)
        macs = (spent[chosen] + judge * asked).mean()
        accuracy, loss = (seen.argmax(1) == labels).double().mean(), F.cross_entropy(seen, labels)
        print(markdown_row([name, f"{100 * macs / dense:.2f}", f"{100 * accuracy:.2f}", f"{loss:.4f}"]))

    print(*markdown_head(("Every image leaves at gate", *COLUMNS), "rrrr"), sep="\n")
    for position, leave in enumerate(exits):
        row("none" if leave == net.num_gates else str(leave), torch.full_like(labels, position), 0.0)
    print("", *markdown_head(("Leaves at a probability above", *COLUMNS), "rrrr"), sep="\n")
    confidence = logits.softmax(2).amax(2)
    for threshold in THRESHOLDS:
        row(f"{threshold}", first_sure(confidence, threshold), float(cost.head_macs))


if __name__ == "__main__":
    main()
