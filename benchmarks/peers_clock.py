"""Cut networks by the clock: ours, our channel methods and torch-pruning's, deployed in each engine.

    python -m benchmarks.peers_clock --data_dir DATA/cifar_100 --weights WEIGHTS --work WORK --threads 2

*trained*: networks of ``benchmarks.converged`` with the accuracy that they reach there, and how many times as fast ours
are as torch-pruning's of the same accuracy. The cut ones are those of the folder WORK; one that is not there is cut
first. *wide*: a ResNet-32 of width 64 with random weights, cut to equal FLOPs; its accuracy is not claimed. Times are
medians of one interleaved run of the CPU a batch size.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import hybridprune
from benchmarks.converged import DENSE, MEAN, METHODS, OPTIONS, OURS, PEERS, RESULTS, STD, Bench, Cell
from benchmarks.latency_budget import FEW, Network
from benchmarks.peers import torch_pruned
from benchmarks.recipe import CPU, BenchImages
from benchmarks.results_log import Line, read_lines
from hybridprune.config import CutOptions, DataOptions
from hybridprune.engine.run_data import load_images
from hybridprune.latency.engines import EXPORTED, engine_of, threads_of
from hybridprune.latency.network_clock import stopwatches
from hybridprune.measure.cost import count_module
from hybridprune.measure.latency import stopwatch
from hybridprune.precision import full_precision
from hybridprune.tables import Table

ENGINES = ("eager", *EXPORTED)
PEER, TUCKER = "torch-pruning group-l2", "fisher-tucker, refit network"
SHOWN = (
    *(f"{depth}:1.0 {DENSE}" for depth in (56, 32, 20)),
    *(f"{cell} {OURS}" for cell in ("56:0.55", "56:0.32", "32:0.59", "32:0.3", "20:0.5")),
    *(f"{cell} {method}" for cell in ("56:0.32", "32:0.59", "32:0.3") for method in ("bn-scale", PEER)),
    f"20:0.5 {PEER}",
)
"""Cells and methods: those that are best after the fine-tuning, of ours, of our channel methods and of the peer's."""
WIDE = Network("resnet:32:64")
WIDE_METHODS = (OURS, TUCKER, "uniform", "torch-pruning group-l2", "torch-pruning taylor")
"""Those that need no scales of BatchNorm, which are all alike before a training."""
EPOCHS = 10
"""Of the fine-tuning after which networks are compared."""


@dataclass(frozen=True)
class Arm:
    """A network that is timed."""

    name: str
    net: nn.Module
    """In eval mode."""
    method: str = ""
    accuracies: tuple[float, ...] = ()
    """Of its seeds, as far as it was trained."""

    @property
    def accuracy(self) -> float:
        """The mean over the seeds."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def percent(self) -> str:
        """The accuracy in %, with the number of its seeds; empty if there are none."""
        return f"{100 * self.accuracy:.2f} ({len(self.accuracies)})" if self.accuracies else ""


def trained(bench: Bench, shown: Sequence[str], lines: Sequence[Line]) -> Iterator[Arm]:
    """Published networks and what they are cut to, each named ``CELL METHOD``."""
    for name in shown:
        cell, method = Cell.of(name.partition(" ")[0]), name.partition(" ")[2]
        net = bench.dense(cell.depth) if method == DENSE else bench.cut(cell, method, 0)
        yield Arm(
            f"ResNet-{cell.depth} to {cell.target:g}: {method}", net.eval(), method, accuracies(lines, cell, method)
        )


def accuracies(lines: Sequence[Line], cell: Cell, method: str) -> tuple[float, ...]:
    """The accuracies of the seeds that were run to the end."""
    key = {name: value for name, value in cell.key(method, 0).items() if name != "seed"}
    epochs = 0 if method == DENSE else EPOCHS
    return tuple(
        line["report"]
        for line in lines
        if line["epochs"] == epochs and all(line.get(name) == value for name, value in key.items())
    )


def wide(target: float) -> Iterator[Arm]:
    """A wide network with random weights, and what each method cuts it to at this share of its FLOPs."""
    yield Arm(f"{WIDE}", WIDE.build())
    for method in WIDE_METHODS:
        yield Arm(f"{WIDE} to {target:g}: {method}", wide_cut(method, target).eval())


def wide_cut(method: str, target: float) -> nn.Module:
    """The wide network, cut to at most this share of its FLOPs."""
    net, pairs = WIDE.build(), WIDE.batches()
    if method in PEERS:
        return torch_pruned(net, PEERS[method], target, pairs[0][0][:1], pairs)
    cut = CutOptions(**{**OPTIONS.get(method, {}), "refit_images": 0})
    name = method.partition(",")[0]
    return hybridprune.prune(net, pairs, method=name, target_flops=target, cut=cut, curvature=FEW).module


def milliseconds(
    nets: Mapping[str, nn.Module], images: Tensor, engines: Sequence[str], threads: int, rounds: int
) -> dict[str, float]:
    """The time of every network in every engine on ``images [B, 3, H, W]``, by ``ENGINE: NAME``."""
    layers, _ = stopwatches(CPU)
    with threads_of(threads), full_precision(), torch.no_grad():
        arms = {
            f"{engine}: {name}": engine_of(engine, CPU).running(net, images, layers).run
            for engine in engines
            for name, net in nets.items()
        }
        found = stopwatch(CPU, rounds)(arms)
    return {name: latency.median_ms for name, latency in found.items()}


def table(arms: Sequence[Arm], times: Mapping[int, Mapping[str, float]], engines: Sequence[str]) -> Table:
    """The arms' costs, accuracies, and milliseconds by engine and batch; ``times`` are of `milliseconds`, by batch."""
    example = torch.zeros(1, 3, WIDE.size, WIDE.size)
    columns = [(engine, batch) for engine in engines for batch in times]
    rows = [
        (
            arm.name,
            f"{count_module(arm.net, example)[0] / 1e6:.1f}",
            arm.percent,
            *(f"{times[batch][f'{engine}: {arm.name}']:.3g}" for engine, batch in columns),
        )
        for arm in arms
    ]
    head = ("Network", "MMACs", "Accuracy %", *(f"{engine}, batch {batch}" for engine, batch in columns))
    return Table(head, "lrr" + "r" * len(columns), rows)


def at_equal_accuracy(arms: Sequence[Arm], times: Mapping[int, Mapping[str, float]], engines: Sequence[str]) -> Table:
    """The speed of our networks over that of torch-pruning's, where both have the accuracy of ours.

    The time of a peer of that accuracy lies between those of the two nearest peers, among the ones that are faster
    than all that are more accurate. Ours that are more accurate than all peers, or less, have none.
    """
    peers = [arm for arm in arms if arm.method == PEER and arm.accuracies]
    least, most = min(x.accuracy for x in peers), max(x.accuracy for x in peers)
    columns = [(engine, batch) for engine in engines for batch in times]
    rows = []
    for arm in arms:
        if arm.method != OURS or not arm.accuracies or not least <= arm.accuracy <= most:
            continue
        ratios = []
        for engine, batch in columns:
            clock = times[batch]
            points = frontier([(peer.accuracy, clock[f"{engine}: {peer.name}"]) for peer in peers])
            theirs = np.interp(arm.accuracy, [reached for reached, _ in points], [time for _, time in points])
            ratios.append(theirs / clock[f"{engine}: {arm.name}"])
        rows.append((arm.name, arm.percent, *(f"{ratio:.2f}" for ratio in ratios)))
    head = ("Network", "Accuracy %", *(f"{engine}, batch {batch}" for engine, batch in columns))
    return Table(head, "lr" + "r" * len(columns), rows)


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The pairs of an accuracy and a time that are faster than every more accurate one, by ascending accuracy."""
    found: list[tuple[float, float]] = []
    for accuracy, time in sorted(points, key=lambda point: (-point[0], point[1])):
        if not found or time < found[-1][1]:
            found.append((accuracy, time))
    return found[::-1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/cifar_100", help="CIFAR-100 as an image tree")
    parser.add_argument("--weights", type=Path, default=Path("data/weights"), help="folder of the published networks")
    parser.add_argument("--work", type=Path, default=Path("results/converged"), help="folder of cut networks")
    parser.add_argument("--trained", nargs="*", default=list(SHOWN), metavar="'CELL METHOD'", help="trained networks")
    parser.add_argument("--wide", type=float, nargs="*", default=[0.25], help="shares of the wide network's FLOPs")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 128], help="images at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args(argv)
    for name in arguments.trained:
        if name.partition(" ")[2] not in (*METHODS, DENSE):
            parser.error(f"--trained {name}: its method is none of {', '.join(METHODS)}")
    groups = [list(wide(target)) for target in arguments.wide]
    if arguments.trained:
        data = BenchImages(load_images(DataOptions(data_dir=arguments.data_dir)), MEAN, STD)
        bench = Bench(data, arguments.weights, arguments.work)
        groups.insert(0, list(trained(bench, arguments.trained, read_lines(RESULTS))))
    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, 3, WIDE.size, WIDE.size, generator=source) for batch in arguments.batch]
    for arms in groups:
        nets = {arm.name: arm.net for arm in arms}
        times = {
            len(images): milliseconds(nets, images, arguments.engines, arguments.threads, arguments.rounds)
            for images in inputs
        }
        print(f"Milliseconds:\n\n{table(arms, times, arguments.engines).markdown()}\n", flush=True)
        if len([arm for arm in arms if arm.method == PEER and arm.accuracies]) > 1:
            faster = at_equal_accuracy(arms, times, arguments.engines)
            print(f"Times as fast as {PEER} at equal accuracy:\n\n{faster.markdown()}\n", flush=True)


if __name__ == "__main__":
    main()
