"""Cascades by the clock: what the saved FLOPs are in time, eager and as deployed, all in turns in one run.

    python -m benchmarks.cascade_clock --threads 2                 # about five minutes
    python -m benchmarks.cascade_clock --tables                    # of what was measured before

Members are untrained ResNets, for time does not depend on weights. ``20,32`` is a cascade of a ResNet-20 and a
ResNet-32, ``20:0.6,32`` the same whose small member has rotations at 0.6 of the ranks. Thresholds are such that each
gate sends on the given share of the images that come as far. A pass goes through a stream of images: many single ones,
or two batches. *Predicted* is the FLOPs of the last member over those of the cascade, gates counted. *Realised* is the
time of the last member, eager and alone, over that of the cascade; *deployed* is the same of what `hybridprune.deploy`
makes of the cascade for the batch size, *both deployed* also of the last member. *Without gates* is the time of the
last member, eager, over that of all members, each on the images that come as far, known and gathered beforehand: what
plain PyTorch leaves for a cascade.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clock import median_seconds
from benchmarks.results_log import append_line, read_lines
from hybridprune.deployment import DeployedCascade, deploy
from hybridprune.engine.batchnorm import recalibrate_by
from hybridprune.measure.cost import count
from hybridprune.measure.latency import stopwatch
from hybridprune.models.cascade import Cascade
from hybridprune.models.edits import FactorEdit, apply_edits
from hybridprune.models.routed import images_at
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.provenance import hardware, versions
from hybridprune.tables import Table

RESULTS = Path(__file__).parent / "results" / "cascade_clock.jsonl"
SIZE, CLASSES = 32, 100
STREAM = {1: 40}
"""How many images a pass goes through, by the batch size; of others two batches, up to `MOST` images."""
MOST = 128
CPU = torch.device("cpu")
LARGE, EAGER, UNGATED, DEPLOYED, BOTH = "large", "eager", "without gates", "deployed", "large, deployed"
"""Arms of a cascade."""
KEY = ("cascade", "width", "batch", "threads")


def member(text: str, width: int) -> nn.Module:
    """A ResNet named ``DEPTH`` or ``DEPTH:RANKS``, the latter with rotated 3x3 convolutions, the stem left out."""
    depth, _, ranks = text.partition(":")
    net = NetworkSpec("resnet", int(depth), width, CLASSES).build()
    if ranks:
        convolutions = {
            name: module
            for name, module in net.named_modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and name != "backbone.conv"
        }
        share = float(ranks)
        edits = [
            FactorEdit(name, round(share * m.in_channels), round(share * m.out_channels))
            for name, m in convolutions.items()
        ]
        apply_edits(net, edits)
    return net.backbone.to(memory_format=torch.channels_last)


@torch.no_grad()
def cascade(members: str, width: int, images: Tensor, share: float) -> Cascade:
    """The cascade, whose gates each send on ``share`` of those of ``images [M, 3, H, W]`` that come as far."""
    torch.manual_seed(0)
    nets = [member(each, width) for each in members.split(",")]
    for net in nets:
        recalibrate_by(net, [images], net)  # else the answers of an untrained network are all certain
    joined = Cascade(nets, CLASSES).eval()
    scores = joined(images, torch.ones(len(images), joined.num_gates), "masked").gate_logits
    going = torch.ones(len(images), dtype=torch.bool)
    for k, layer in enumerate(joined.gate.scores()):
        ranked = scores[going, k].sort(descending=True).values
        last = round(share * len(ranked))
        threshold = ranked[last - 1 : last + 1].mean()  # between two images, so that rounding changes no decision
        layer.bias -= threshold
        going &= scores[:, k] > threshold
    return joined


@torch.inference_mode()
def measure(members: str, width: int, batch: int, share: float, rounds: int) -> dict[str, Any]:
    """Milliseconds an image of all arms, the rates, and the predicted speed-up."""
    generator = torch.Generator().manual_seed(0)
    number = STREAM.get(batch, max(batch, min(2 * batch, MOST)))
    images = torch.randn(number, 3, SIZE, SIZE, generator=generator).to(memory_format=torch.channels_last)
    with torch.inference_mode(False):
        net = cascade(members, width, images, share)
    batches = images.split(batch)
    routed = [net(each, mode="executed") for each in batches]
    rates = torch.cat([each.decisions for each in routed]).mean(0).tolist()
    shortly = stopwatch(CPU, rounds=3, warm_up=1)
    shipped = deploy(net, batches[0], rates=rates, time=shortly, progress=False).module
    alone = deploy(net.members[-1], batches[0], time=shortly, progress=False).module
    assert isinstance(shipped, DeployedCascade)
    for each, expected in zip(batches, routed, strict=True):
        assert torch.equal(shipped.route(each).decisions, expected.decisions), "deploying changed a decision"
    nets: dict[str, Callable[[Tensor], object]] = {
        LARGE: net.members[-1],
        EAGER: partial(net, mode="executed"),
        DEPLOYED: shipped,
        BOTH: alone,
    }

    def passing(call: Callable[[Tensor], object]) -> Callable[[], object]:
        return lambda: [call(each) for each in batches]

    parts = [part for each, found in zip(batches, routed, strict=True) for part in runs(each, found.decisions)]
    arms = {name: passing(call) for name, call in nets.items()}
    arms[UNGATED] = lambda: [net.members[k](inputs) for k, inputs in parts]
    seconds = median_seconds(arms, rounds)
    cost = count(net, SIZE)
    large = cost.block_macs[-1]
    return {
        "ms": {name: 1e3 * each / number for name, each in seconds.items()},
        "rates": rates,
        "predicted": large / cost.expected_macs(rates),
    }


def runs(images: Tensor, decisions: Tensor) -> list[tuple[int, Tensor]]:
    """The members that run, by number, and their images, from ``images [B, 3, H, W]`` and ``decisions [B, N]``."""
    found = [(0, images)]
    for k in range(decisions.shape[1]):
        chosen = decisions[:, : k + 1].prod(1).nonzero().squeeze(1)
        if len(chosen) > 0:
            found.append((k + 1, images_at(images, chosen)))
    return found


def row(line: dict[str, Any]) -> tuple[str, ...]:
    """A line of the log in the table."""
    ms, predicted = line["ms"], line["predicted"]
    ratios = [ms[LARGE] / ms[EAGER], ms[LARGE] / ms[UNGATED], ms[LARGE] / ms[DEPLOYED], ms[BOTH] / ms[DEPLOYED]]
    shown = [text for ratio in ratios for text in (f"{ratio:.2f}", f"{ratio / predicted:.2f}")]
    return (
        line["cascade"],
        str(line["width"]),
        str(line["batch"]),
        f"{predicted:.2f}",
        *shown,
    )


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The newest line of each cascade, width, batch size and number of threads."""
    newest = {tuple(line[name] for name in KEY): line for line in lines}
    ratio = "/ predicted"
    arms = ("Realised", "Without gates", "Deployed", "Both deployed")
    head = ("Members", "Width", "Batch", "Predicted", *(text for arm in arms for text in (arm, ratio)))
    return Table(head, "l" + "r" * (len(head) - 1), [row(line) for line in newest.values()]).markdown()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cascades", nargs="+", default=["20,32"], metavar="MEMBERS", help="default: 20,32")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--share", type=float, default=0.3, help="of the images that each gate sends on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--file", type=Path, default=RESULTS, help="the log of JSON lines (default: %(default)s)")
    parser.add_argument("--tables", action="store_true", help="measure nothing, print the log as a table")
    arguments = parser.parse_args(argv)
    if not arguments.tables:
        torch.set_num_threads(arguments.threads)
        place = {"hardware": hardware(CPU), "versions": versions()}
        for members, width, batch in itertools.product(arguments.cascades, arguments.widths, arguments.batches):
            start = time.perf_counter()
            found = measure(members, width, batch, arguments.share, arguments.rounds)
            key = {"cascade": members, "width": width, "batch": batch, "threads": arguments.threads}
            append_line(arguments.file, {**key, "rounds": arguments.rounds, **found, **place})
            print(f"{members} at width {width}, batch {batch}: {time.perf_counter() - start:.0f} s", flush=True)
    print(table(read_lines(arguments.file)))


if __name__ == "__main__":
    main()
