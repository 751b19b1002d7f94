"""Budgets of time on a machine: are they met, and how well are times predicted?

    python -m benchmarks.latency_budget --threads 2 --work results/latency

Networks have random weights, on which time does not depend: ResNets for CIFAR, or torchvision's classifiers at 224
pixels. *budgets*: a network is cut to shares of the dense one's time, deployed again, and timed anew beside it.
*predictions*: random plans, what the tables expect of each and what the clock says; beside them the FLOPs. One JSON
line an arm in WORK/latency_budget.jsonl, so that it is resumable; ``--table`` prints what is there.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import hybridprune
from benchmarks.results_log import Line, append_line, find_line, read_lines
from hybridprune.api.first_look import Task, look
from hybridprune.api.prunable import PlainNetwork
from hybridprune.config import CurvatureOptions, CutOptions, LatencyTarget
from hybridprune.config.networks import TORCHVISION
from hybridprune.curvature import likelihood_of
from hybridprune.errors import UserError
from hybridprune.latency.network_clock import DeployedClock
from hybridprune.models.spec import NetworkSpec
from hybridprune.models.torchvision_nets import build_torchvision
from hybridprune.pruning.budget.space import NS_PER_MS, Budget
from hybridprune.pruning.calibrate import random_cut
from hybridprune.pruning.make_plan import make_plan
from hybridprune.store.provenance import hardware
from hybridprune.tables import Table

CLASSES = 100
FEW = CurvatureOptions(curvature_images=64, moment_images=32)
CIFAR, IMAGENET = 32, 224
"""Sides of images."""


@dataclass(frozen=True)
class Network:
    """``resnet:DEPTH:WIDTH`` for CIFAR, or ``torchvision:NAME``."""

    name: str

    @property
    def size(self) -> int:
        """The side of its images."""
        return IMAGENET if self.name.startswith(TORCHVISION) else CIFAR

    def __str__(self) -> str:
        family, *rest = self.name.split(":")
        return rest[0] if family == TORCHVISION else f"ResNet-{rest[0]}, {rest[1]}"

    def build(self) -> nn.Module:
        """The network with random weights, whose BatchNorms have seen images."""
        torch.manual_seed(0)
        if self.name.startswith(TORCHVISION):
            net = build_torchvision(self.name.partition(":")[2], CLASSES)
        else:
            depth, width = map(int, self.name.split(":")[1:])
            net = NetworkSpec("resnet", depth, width, CLASSES).build().backbone
        net.train()
        with torch.no_grad():
            for images, _ in self.batches() * 5:
                net(images)
        return net.eval()

    def batches(self, number: int = 2, batch: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Random images and labels."""
        draw = torch.Generator().manual_seed(0)
        batch = batch or (32 if self.size == CIFAR else 8)
        return [
            (
                torch.randn(batch, 3, self.size, self.size, generator=draw),
                torch.randint(CLASSES, (batch,), generator=draw),
            )
            for _ in range(number)
        ]


def met(of: Network, target: float, how: LatencyTarget, method: str) -> Line:
    """One budget: what `prune` says of it, and the share that another run of the clock gives."""
    net, cut = of.build(), CutOptions(refit_images=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is missed is in the line
        start = time.perf_counter()
        try:
            pruned = hybridprune.prune(
                net, of.batches(), target_latency=target, latency=how, method=method, cut=cut, curvature=FEW
            )
        except UserError as error:
            return {"refused": str(error)}
    seconds = time.perf_counter() - start
    clock = _clock(net, of, how, method)
    again = clock.read(pruned.module)
    flops = pruned.spec.macs / pruned.spec.dense_macs
    return {**(pruned.spec.latency or {}), "again": again.share, "flops": flops, "seconds": seconds}


def predictions(of: Network, how: LatencyTarget, method: str, plans: int) -> Line:
    """Predicted and realised shares of random plans, and their shares of the FLOPs."""
    net = of.build()
    clock = _clock(net, of, how, method)
    found, example = look(net, of.batches(), Task(likelihood_of("cross_entropy"), None))
    plain = PlainNetwork(net, found, example, (), 0)
    plan = make_plan(plain, CutOptions(method=method), FEW, budget=Budget(ns=clock.dense_ns), clock=clock)
    draw = np.random.default_rng(0)
    predicted, realised, flops = [], [], []
    whole = plan.space.cost(plan.space.everything())
    for _ in range(plans):
        kept = random_cut(plan.space, draw.uniform(0.0, 1.0), draw)
        cost = plan.space.cost(kept)
        predicted.append(cost.ns / clock.dense_ns)
        realised.append(clock.read(plan.sketch(kept)).share)
        flops.append(cost.macs / whole.macs)
    return {"predicted": predicted, "realised": realised, "flops": flops, "dense_ms": clock.dense_ns / NS_PER_MS}


def _clock(net: nn.Module, of: Network, how: LatencyTarget, method: str) -> DeployedClock:
    return DeployedClock.of(net, lambda module: module, torch.zeros(1, 3, of.size, of.size), how, method)


def arms(arguments: argparse.Namespace) -> Iterator[Line]:
    """The keys of all lines, in their order."""
    for network, engine, batch in itertools.product(arguments.networks, arguments.engines, arguments.batches):
        common = {"network": network, "engine": engine, "batch": batch, "threads": arguments.threads}
        for method in arguments.methods:
            for target in arguments.targets:
                yield {"kind": "budget", **common, "method": method, "target_latency": target}
            if arguments.plans:
                yield {"kind": "predictions", **common, "method": method, "plans": arguments.plans}


def measured(key: Line, seconds: float) -> Line:
    """The line of a key."""
    how = LatencyTarget(batch=key["batch"], threads=key["threads"], engine=key["engine"], seconds=seconds)
    of = Network(key["network"])
    if key["kind"] == "budget":
        return {**key, **met(of, key["target_latency"], how, key["method"])}
    return {**key, **predictions(of, how, key["method"], key["plans"])}


def tables(lines: Sequence[Line]) -> Iterator[str]:
    """The tables of what was measured, in Markdown."""
    rows: list[list[str]] = []
    for line in lines:
        if line["kind"] == "budget":
            name = [str(Network(line["network"])), line["engine"], str(line["batch"]), line["method"]]
            if "refused" in line:
                rows.append([*name, f"{line['target_latency']:g}", *[""] * 4, "refused"])
                continue
            realised = line["realised_ms"] / line["dense_ms"]
            figures = [line["target_latency"], line["predicted_ms"] / line["dense_ms"], realised, line["again"]]
            rows.append([*name, *(f"{each:.3f}" for each in figures), f"{line['flops']:.3f}", _verdict(line)])
    head = ("Network", "Engine", "Batch", "Method", "Target", "Predicted", "Realised", "Again", "FLOPs", "Within 5 %")
    yield f"Shares of the dense network's time.\n\n{Table(head, 'llrlrrrrrl', rows).markdown()}"
    rows = [_predicted(line) for line in lines if line["kind"] == "predictions"]
    head = ("Network", "Engine", "Batch", "Method", "Plans", "Spearman", "Error %", "of FLOPs: Spearman", "Error %")
    yield f"Random plans: predicted and realised times.\n\n{Table(head, 'llrlrrrrr', rows).markdown()}"


def _verdict(line: Line) -> str:
    near = abs(line["again"] / line["target_latency"] - 1) <= 0.05
    return f"{'yes' if line['met'] else 'no'}, again {'yes' if near else 'no'}"


def _predicted(line: Line) -> list[str]:
    realised = np.array(line["realised"])
    figures: list[str] = []
    for name in ("predicted", "flops"):
        expected = np.array(line[name])
        rank: Any = spearmanr(expected, realised)
        figures += [f"{rank.statistic:.3f}", f"{100 * np.median(np.abs(expected / realised - 1)):.1f}"]
    name = [str(Network(line["network"])), line["engine"], str(line["batch"]), line["method"]]
    return [*name, str(line["plans"]), *figures]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("results/latency"), help="folder of latency_budget.jsonl")
    parser.add_argument(
        "--networks", nargs="+", default=["resnet:32:16", "resnet:32:64"], help="resnet:DEPTH:WIDTH or torchvision:NAME"
    )
    parser.add_argument("--engines", nargs="+", default=["eager", "onnxruntime"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--methods", nargs="+", default=["fisher-tucker"], help="methods by which networks are cut")
    parser.add_argument("--targets", type=float, nargs="*", default=[0.7], help="shares of the dense network's time")
    parser.add_argument("--plans", type=int, default=30, help="random plans of each arm; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="for the tables of one arm")
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    arguments = parser.parse_args(argv)
    file = arguments.work / "latency_budget.jsonl"
    for key in [] if arguments.table else arms(arguments):
        if find_line(read_lines(file), **key) is None:
            append_line(file, {**measured(key, arguments.seconds), "machine": hardware(torch.device("cpu"))["name"]})
    print("\n\n".join(tables(read_lines(file))))


if __name__ == "__main__":
    main()
