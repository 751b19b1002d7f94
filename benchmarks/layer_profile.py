"""The time of an inference, by kind of layer: dense, pruned and deployed.

    python -m benchmarks.layer_profile RUN [--batches 1 32] [--threads N]

RUN is a finished run of stage 2. Of each network, with all blocks executed: the time of a whole call, and of that the
time in convolutions and linear layers, by size of the kernel, with the rate that they compute at; *elsewhere* is the
rest: activations, additions, the interpreter. A rate that falls from dense to pruned at the same batch size is time
that no count of FLOPs knows of: small operations take as long as it takes to start them. Medians of rounds, each call
timed layer by layer.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.deployment import deploy
from hybridprune.engine.device import device_of
from hybridprune.engine.modes import always_on
from hybridprune.errors import UserError, run_command
from hybridprune.measure.latency import Clock, device_clock
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.store.run_folder import RunFolder
from hybridprune.tables import markdown_head, markdown_row

WARM_UP, ROUNDS = 2, 15


@dataclass
class Layer:
    """A convolution or linear layer."""

    kind: str
    macs: int = 0
    """Of the whole batch."""
    seconds: list[float] = field(default_factory=list)
    """In each call of the network, which may call the layer several times: for pieces of the batch."""


@torch.inference_mode()
def profile(module: nn.Module, images: Tensor, clock: Clock) -> tuple[float, list[Layer]]:
    """Median seconds of a call on ``[B, 3, H, W]``, and the layers."""
    layers: dict[str, Layer] = {}
    started: dict[str, float] = {}
    whole: list[float] = []

    def before(name: str) -> Any:
        def hook(*_: Any) -> None:
            started[name] = clock()

        return hook

    def after(name: str) -> Any:
        def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
            layers[name].seconds[-1] += clock() - started[name]
            weight = layer.weight
            assert isinstance(weight, Tensor)
            layers[name].macs += output.numel() * weight[0].numel()

        return hook

    with ExitStack() as stack:
        for name, layer in module.named_modules():
            weight = getattr(layer, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim >= 2:
                layers[name] = Layer("x".join(map(str, weight.shape[2:] if weight.ndim == 4 else (1, 1))))
                stack.enter_context(layer.register_forward_pre_hook(before(name)))
                stack.enter_context(layer.register_forward_hook(after(name)))
        for _ in range(WARM_UP + ROUNDS):
            for layer in layers.values():
                layer.seconds.append(0.0)
                layer.macs = 0
            start = clock()
            module(images)
            whole.append(clock() - start)
    for layer in layers.values():
        del layer.seconds[:WARM_UP]
    return median(whole[WARM_UP:]), list(layers.values())


def show(name: str, batch: int, whole: float, layers: list[Layer]) -> None:
    """A row for each kind of layer, and one for the rest."""
    kinds: Mapping[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        kinds[layer.kind].append(layer)
    inside = 0.0
    for kind, each in sorted(kinds.items(), reverse=True):
        seconds = sum(median(layer.seconds) for layer in each)
        macs = sum(layer.macs for layer in each)
        inside += seconds
        speed = f"{macs / seconds / 1e9:.0f}"
        row = [str(batch), name, kind, str(len(each)), f"{macs / 1e9:.3f}", f"{1e3 * seconds:.2f}", speed]
        print(markdown_row(row))
    print(markdown_row([str(batch), name, "elsewhere", "", "", f"{1e3 * (whole - inside):.2f}", ""]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="finished run of stage 2")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = device_of(arguments.device)
    run = RunFolder.named(arguments.run)
    *_, eldest = run.lineage()
    if eldest is run:
        raise UserError(f"{run.path}: is not pruned; name a run of stage 2")
    nets: dict[str, GatedNetwork] = {"dense": eldest.load_gated()[0], "pruned": run.load_gated()[0]}
    networks: dict[str, nn.Module] = {}
    for name, net in nets.items():
        networks[name] = always_on(net.to(device).eval()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = run.read_spec().input_size
    print(*markdown_head(("Batch", "Network", "Kernel", "Layers", "GMACs", "ms", "GMAC/s"), "rllrrrr"), sep="\n")
    for batch in arguments.batches:
        images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
        networks["deployed"] = deploy(networks["pruned"], images, device).module
        for name, module in networks.items():
            show(name, batch, *profile(module, images, device_clock(device)))


if __name__ == "__main__":
    sys.exit(run_command(main))
