"""The saving of skipped blocks in ONNX Runtime: time of one gated model over the number of blocks that are executed.

    python -m benchmarks.onnx_routing [--width 16] [--batches 1 32] [--threads N]

An untrained ResNet-32, deployed and exported with its decisions as an input: at one image a gated block is a branch,
otherwise the images that chose it are gathered. The arms take turns in one run; times are medians, shown as a share of
the time with all blocks executed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from hybridprune.deployment import deploy
from hybridprune.deployment.onnx import onnx_bytes, session
from hybridprune.measure.latency import stopwatch
from hybridprune.models.spec import NetworkSpec
from hybridprune.tables import markdown_head, markdown_row

SIZE = 32
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def measure(width: int, batch: int, threads: int) -> dict[str, float]:
    """Median milliseconds by the share of the gated blocks that every image executes."""
    net = NetworkSpec("resnet", 32, width, 100).build().eval()
    images = torch.randn(batch, 3, SIZE, SIZE)
    module = deploy(net, images).module
    runtime = session(onnx_bytes(module, images, single=batch == 1, forced=True), threads)

    def arm(share: float) -> Callable[[], object]:
        order = torch.rand(batch, net.num_gates, generator=torch.Generator().manual_seed(0)).argsort(1)
        decisions = (order < round(share * net.num_gates)).float()
        inputs = {"images": images.numpy(), "decisions": decisions.numpy()}
        return lambda: runtime.run(None, inputs)

    found = stopwatch(torch.device("cpu"))({f"{share:.2f}": arm(share) for share in SHARES})
    return {name: latency.median_ms for name, latency in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    head = ("batch", *(f"{share:.0%} executed" for share in SHARES), "all, ms")
    print(*markdown_head(head, "r" * len(head)), sep="\n")
    for batch in arguments.batches:
        found = measure(arguments.width, batch, arguments.threads)
        whole = found["1.00"]
        cells = [f"{milliseconds / whole:.2f}" for milliseconds in found.values()]
        print(markdown_row([str(batch), *cells, f"{whole:.2f}"]))


if __name__ == "__main__":
    main()
