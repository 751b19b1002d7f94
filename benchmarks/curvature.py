"""Cost of the curvature passes, as a ratio to a plain forward + backward of the same batches.

    python -m benchmarks.curvature --width 16 64 --batch 128 32

All arms take turns within one run; figures are medians over the rounds, on the CPU, fp32, channels_last.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.curvature import collect_factors, collect_second_moments, eigenbasis


class Block(nn.Module):
    """A basic residual block with a 1x1 projection where the width changes."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        stride = 1 if c_in == c_out else 2
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.shortcut.extend([nn.Conv2d(c_in, c_out, 1, 2, bias=False), nn.BatchNorm2d(c_out)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu_(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu_(y)


def resnet32(width: int) -> nn.Sequential:
    """The CIFAR ResNet-32 (He et al. 2016) with ``width`` channels in the first stage, 100 classes."""
    widths = [width] * 6 + [2 * width] * 5 + [4 * width] * 5
    blocks = [Block(c_in, c_out) for c_in, c_out in pairwise(widths)]
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 100))


def measure(width: int, batch_size: int, rounds: int) -> dict[str, float]:
    """Return the median seconds per image of every arm."""
    torch.manual_seed(0)
    model = resnet32(width).to(memory_format=torch.channels_last).eval()
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    batches = [(images, torch.randint(100, (batch_size,)))]
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    generator = torch.Generator().manual_seed(0)

    def factors():
        return collect_factors(
            model, layers, batches, fisher_type="true", moving_average=0, generator=generator
        )

    bases = {}
    for name, layer in factors().items():
        basis = eigenbasis(layer.input_factor, layer.gradient_factor)
        bases[name] = basis.q_out, basis.q_in

    def training_pass() -> None:
        model.zero_grad()
        F.cross_entropy(model(images), batches[0][1]).backward()

    arms: dict[str, Callable[[], object]] = {
        "forward + backward": training_pass,
        "factors": factors,
        "second moments": lambda: collect_second_moments(
            model, layers, batches, bases=bases, fisher_type="true", generator=generator
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    # the first round warms up
    return {name: statistics.median(times[1:]) / batch_size for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[16, 64], help="channels of the first stage")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 32], help="batch size, one per width")
    parser.add_argument("--rounds", type=int, default=7, help="timed repeats of every arm")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if len(arguments.width) != len(arguments.batch):
        parser.error("--batch needs as many values as --width")
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, median of {arguments.rounds} rounds")
    print("| width | batch | pass | ms / image | ratio |\n|---|---|---|---|---|")
    for width, batch_size in zip(arguments.width, arguments.batch, strict=True):
        times = measure(width, batch_size, arguments.rounds)
        for name, seconds in times.items():
            ratio = seconds / times["forward + backward"]
            print(f"| {width} | {batch_size} | {name} | {1e3 * seconds:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
