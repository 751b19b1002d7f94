"""The saving of skipped blocks by the clock: dense, masked and executed forward passes, interleaved in one run.

    python -m benchmarks.routing [--widths 16 64] [--batches 1 32 128] [--threads N]
    python -m benchmarks.routing --memory    # peak memory of the forms instead (Linux)

ResNet-32 before and after static pruning (random rotations at half the ranks), random decisions that execute a given
share of the gated blocks of every image. *dense* is the backbone alone. The predicted speed-up of executed over dense
is what decisions can change: all FLOPs of the backbone over those left when the avoidable ones are skipped. It knows
nothing of gates, gathering and scattering; *realised* is the measured speed-up over it, *as deployed* that of the
network that `hybridprune.deploy` makes for the batch size, over the same dense network. *masked* is executed time over
masked time: below 1, executing is the faster form.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.clock import median_seconds
from benchmarks.memory import growth_bytes
from hybridprune.deployment import DeployedNetwork, deploy
from hybridprune.measure.cost import count
from hybridprune.models.edits import FactorEdit, apply_edits
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.tables import markdown_head, markdown_row

SIZE = 32
WARM_UP = 2
FORMS = ("dense", "masked", "executed")
PRUNED = {False: "none", True: "half the ranks"}


def network(width: int, pruned: bool) -> GatedNetwork:
    """An untrained ResNet-32; ``pruned``: its 3x3 convolutions but the stem are factored at half the ranks."""
    net = NetworkSpec("resnet", 32, width, 100).build()
    if pruned:
        convolutions = {
            name: module
            for name, module in net.named_modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and name != "backbone.conv"
        }
        edits = [FactorEdit(name, m.in_channels // 2, m.out_channels // 2) for name, m in convolutions.items()]
        apply_edits(net, edits)
    return net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def decisions(batch: int, gates: int, active: float, seed: int) -> Tensor:
    """``[batch, gates]``: in each image, ``active`` of the blocks at random places."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, gates, generator=draw).argsort(1)
    return (order < round(active * gates)).float()


@torch.inference_mode()
def measure(net: GatedNetwork, batch: int, active: float, repeats: int) -> tuple[float, float, float, float]:
    """Realised speed-up over predicted, also as deployed, executed over masked time, and the predicted speed-up."""
    images = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    routes = [decisions(batch, net.num_gates, active, seed) for seed in range(WARM_UP + repeats)]
    turns = {mode: iter(routes) for mode in ("masked", "executed", "deployed")}
    deployed = deploy(net, images, rates=[active] * net.num_gates).module
    assert isinstance(deployed, DeployedNetwork)
    found = median_seconds(
        {
            "dense": lambda: net.backbone(images),
            "masked": lambda: net(images, next(turns["masked"]), "masked"),
            "executed": lambda: net(images, next(turns["executed"]), "executed"),
            "deployed": lambda: deployed.route(images, next(turns["deployed"])),
        },
        repeats,
        WARM_UP,
    )
    cost = count(net, SIZE)
    rate = round(active * net.num_gates) / net.num_gates
    predicted = cost.backbone_macs / (cost.fixed_macs + rate * sum(cost.block_macs))
    realised, shipped = (found["dense"] / found[form] / predicted for form in ("executed", "deployed"))
    return realised, shipped, found["executed"] / found["masked"], predicted


def peak_mebibytes(form: str, width: int, pruned: bool, batch: int, active: float) -> float:
    """The growth of the process in one forward pass, at most, over what it holds before; for a fresh process.

    The pass is the second one: the first also reads the libraries' code from disk.
    """
    torch.set_num_threads(1)
    net = network(width, pruned)
    images = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    routes = decisions(batch, net.num_gates, active, 0)
    run: Callable[[], object] = (lambda: net.backbone(images)) if form == "dense" else lambda: net(images, routes, form)
    with torch.inference_mode():
        run()
        return growth_bytes(run) / 2**20


def show_memory(widths: list[int], batches: list[int], active: list[float]) -> None:
    """A table of peak memory, each figure from a fresh process."""
    # glibc gives large tensors back to the system as soon as they die, and so does not count what lies fallow.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(64 * 1024)
    head = ("Width", "Static pruning", "Batch", "Active", "Dense MiB", "Masked MiB", "Executed MiB")
    print(*markdown_head(head, "rlrrrrr"), sep="\n")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        for width, pruned, batch, share in itertools.product(widths, (False, True), batches, active):
            peaks = [fresh.apply(peak_mebibytes, (form, width, pruned, batch, share)) for form in FORMS]
            shown = (f"{peak:.0f}" for peak in peaks)
            print(markdown_row([str(width), PRUNED[pruned], str(batch), f"{share:.0%}", *shown]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--active", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true", help="measure peak memory, not time (Linux)")
    arguments = parser.parse_args()
    if arguments.memory:
        show_memory(arguments.widths, arguments.batches, arguments.active)
        return
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    head = ("Width", "Static pruning", "Batch", "Active", "Predicted speed-up", "Realised / predicted", "As deployed")
    print(*markdown_head((*head, "Executed / masked"), "rlrrrrrr"), sep="\n")
    for width in arguments.widths:
        for pruned in (False, True):
            net = network(width, pruned)
            for batch in arguments.batches:
                repeats = (
                    max(arguments.repeats, 200 // batch) if width * batch < 4096 else max(5, arguments.repeats // 3)
                )
                for active in arguments.active:
                    realised, shipped, masked, predicted = measure(net, batch, active, repeats)
                    figures = (f"{figure:.2f}" for figure in (predicted, realised, shipped, masked))
                    row = [str(width), PRUNED[pruned], str(batch), f"{active:.0%}", *figures]
                    print(markdown_row(row), flush=True)


if __name__ == "__main__":
    main()
