"""After how many steps of training compiling is paid back, by the trial of ``--compile auto``.

    python -m benchmarks.compiling [--width 16] [--stage 1] [--batch 128] [--threads N]

Twice: with nothing compiled before, and with what the compiler has kept on disk of the first time. What is printed is
what a training says, whose trial is made whatever is expected of it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.routing import network
from benchmarks.training import STAGES, Loops, objective_of
from hybridprune.engine.compile_trial import Cost, Shape, Trial
from hybridprune.engine.compiler import Switch, compiles
from hybridprune.engine.descent import Descent
from hybridprune.engine.loop import Loop
from hybridprune.engine.pressure import parameter_groups
from hybridprune.measure.latency import device_clock

STEPS = 10_000
"""That the training is said to have, most of which it never does."""


class Promising:
    """Expects compiling to take no time, and to leave none of a step."""

    def expected(self, shape: Shape) -> Cost | None:
        """The cost of compiling for batches of this shape."""
        del shape
        return Cost(0.0, 0.0)

    def keep(self, shape: Shape, cost: Cost) -> None:
        """Remember nothing."""


def measure(width: int, stage: str, batch: int, device: torch.device) -> None:
    """One trial."""
    torch.manual_seed(0)
    torch.compiler.reset()
    pruned, options = STAGES[stage]
    net = network(width, pruned).to(device).train()
    loops = Loops(batch, 1, "fp32", False, device)
    descent = Descent(
        net,
        parameter_groups(net.named_parameters(), None),
        device,
        lr=1e-3,
        momentum=0.9,
        weight_decay=5e-4,
        schedule=lambda _: 1.0,
        steps=STEPS,
    )
    switch = Switch(net)
    trial = Trial(switch, STEPS, Promising(), device_clock(device), partial(compiles, device))
    loop = Loop(objective_of(net, options, batch, loops), descent, STEPS, "", trial=trial)
    for _ in loop(switch, itertools.repeat(loops.random_batch())):
        if trial.over:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--stage", choices=[name for name in STAGES if not name.startswith("3")], default="1")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "kernels")
        for told in ("nothing compiled before", "what the compiler kept on disk"):
            print(f"{told}:", flush=True)
            measure(arguments.width, arguments.stage, arguments.batch, torch.device(arguments.device))


if __name__ == "__main__":
    main()
