"""The speed of the stages' trainings against a bare loop over the same gated network, and where the rest goes.

    python -m benchmarks.training [--widths 16 64] [--batch 128] [--threads N] [--precision fp32] [--compile]

*bare* is a plain loop: random images, the same gated network (compiled or not, as the stage's), loss, backward pass and
optimiser, no data, no logging. In stage 3 it makes the rollouts that the estimator needs. *stage / bare* is images per
second of the stage's own loop over those of the bare loop. *data* is the time of the augmented batches alone, *logging
and loop* what else the stage takes. The rest are parts of the bare loop, by loops that leave something out: *gates* is
the time with gates that decide nothing over the backbone's alone, *blending* that of the routed network over that, and
*objective* that of the bare loop over the routed network with plain cross-entropy: rollouts, above all. All loops take
turns in one process; shares are of the stage's time, medians of rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.clock import median_seconds
from benchmarks.routing import SIZE, network
from hybridprune.config import OptimOptions, RoutingOptions
from hybridprune.data import Batch, LabelledImages, TrainBatches
from hybridprune.engine.compiler import compiled
from hybridprune.engine.fit import Fit
from hybridprune.engine.objective import Objective, Supervised
from hybridprune.engine.progress import Progress, Validation
from hybridprune.measure.cost import count
from hybridprune.models.gates import Decide, greedy, straight_through
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.precision import Precision, tf32
from hybridprune.routing.gumbel import GumbelRouting
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.policy_gradient import PolicyGradient
from hybridprune.routing.price import Price
from hybridprune.routing.rollout import rollout
from hybridprune.store.run_folder import RunFolder
from hybridprune.tables import markdown_head, markdown_row

CLASSES = 100
STAGES: Mapping[str, tuple[bool, RoutingOptions | None]] = {
    "1": (False, None),
    "2": (True, None),
    "3, counterfactual": (True, RoutingOptions(rl_warmup=0.0)),
    "3, self-critical": (True, RoutingOptions(rl_warmup=0.0, baseline="self_critical")),
    "3, counterfactual, BatchNorm trained": (True, RoutingOptions(rl_warmup=0.0, batchnorm="trained")),
    "3, gumbel": (True, RoutingOptions(estimator="gumbel")),
}
"""Is the network statically pruned, and how its gates learn (None: supervised)."""


@dataclass(frozen=True)
class Loops:
    """The loops over one network, each of the same number of steps."""

    batch: int
    steps: int
    precision: str
    compile: bool
    device: torch.device
    tf32: bool = False

    def batches(self) -> TrainBatches:
        """Batches of as many images as the steps need."""
        size = self.batch * self.steps
        images = torch.randint(256, (size, 3, SIZE, SIZE), dtype=torch.uint8)
        return TrainBatches(
            LabelledImages(images, torch.randint(CLASSES, (size,))),
            torch.arange(size),
            batch_size=self.batch,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            crop=True,
            flip=True,
            seed=0,
            device=self.device,
            channels_last=True,
        )

    def random_batch(self) -> Batch:
        """One batch on the device."""
        images = torch.randn(self.batch, 3, SIZE, SIZE, device=self.device).to(memory_format=torch.channels_last)
        labels = torch.randint(CLASSES, (self.batch,), device=self.device)
        return Batch(images, labels, torch.arange(self.batch, device=self.device))

    def stage(self, net: GatedNetwork, objective: Objective, frozen_norms: bool, folder: Path) -> Callable[[], float]:
        """An epoch of the stage's own loop; gives its seconds."""
        batches = self.batches()

        def run() -> float:
            with tempfile.TemporaryDirectory(dir=folder) as path, contextlib.redirect_stderr(io.StringIO()):
                fit = Fit(
                    run=RunFolder(Path(path)),
                    net=net,
                    objective=objective,
                    batches=batches,
                    validate=lambda _: Validation(0.0, {}),
                    optim=OptimOptions(lr=1e-3, precision=self.precision, tf32=self.tf32),
                    epochs=1,
                    device=self.device,
                    log_interval=50,
                    compile="on" if self.compile else "off",
                    gate_grad_norm=1.0 if frozen_norms else None,
                    train_mode=nn.Module.eval if frozen_norms else nn.Module.train,
                )
                return fit(Progress(), None).seconds  # an epoch ends with reading its losses

        return run

    def bare(
        self, net: nn.Module, loss_of: Callable[[Callable[..., Any], Batch], Tensor], frozen_norms: bool = False
    ) -> Callable[[], None]:
        """The plain loop."""
        net.train(not frozen_norms)
        batch = self.random_batch()
        forward = Precision.of(self.precision, self.device)(torch.compile(net) if self.compile else net)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, nesterov=True)

        def run() -> None:
            with tf32(False):  # as in the stages
                for _ in range(self.steps):
                    loss = loss_of(forward, batch)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
            self.wait()

        return run

    def wait(self) -> None:
        """Until the device has done all it was given: a clock of the host says nothing before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Undecided(nn.Module):
    """A gated network whose gates are run and not asked."""

    def __init__(self, net: GatedNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's logits and those of the gates ``[B, N]``."""
        net = self.net
        state, hidden, logits = net.start(images), None, []
        for gate in range(net.num_gates):
            logit, hidden = net.gate(gate, state.features, hidden)
            logits.append(logit)
            state = state._replace(features=net.block(gate + 1)(state.features), blocks_done=gate + 2)
        return net.finish(state), torch.stack(logits, 1)


def decided_in(options: RoutingOptions | None) -> Decide:
    """The decision rule of gates in a stage: with a gradient unless it estimates one."""
    return greedy if options is not None and options.estimator == "reinforce" else straight_through


def objective_of(net: GatedNetwork, options: RoutingOptions | None, images: int, loops: Loops) -> Objective:
    """The objective of the stage."""
    device = loops.device
    cost = count(net, SIZE)
    if options is None:
        return Supervised.of(cost, 0.02, device)
    price = Price(options.reward_scale, None, options.price_step, device)
    terms = RoutingTerms.of(cost, options, price, device, precision=Precision.of(loops.precision, device))
    if options.estimator == "gumbel":
        return GumbelRouting(terms, images=images, seed=0)
    return PolicyGradient(
        net, terms, images=images, seed=0, learn_from=compiled(rollout, device) if loops.compile else rollout
    )


def measure(loops: Loops, width: int, stage: str, rounds: int, folder: Path) -> str:
    """One row of the table."""
    pruned, options = STAGES[stage]
    frozen = options is not None and options.batchnorm == "frozen"
    images = loops.batch * loops.steps
    torch.compiler.reset()  # one network after the other would reach the limit of recompilations
    staged, bare, routed, asked, alone = (network(width, pruned).to(loops.device) for _ in range(5))
    seconds: list[float] = []
    epoch = loops.stage(staged, objective_of(staged, options, images, loops), frozen, folder)
    bare_objective = objective_of(bare, options, images, loops)
    data = loops.batches()

    def cross_entropy(forward: Callable[..., Any], batch: Batch) -> Tensor:
        return F.cross_entropy(forward(batch.images).float(), batch.labels)

    def plain(forward: Callable[..., Any], batch: Batch) -> Tensor:
        found = forward(batch.images, decide=decided_in(options))
        return F.cross_entropy(found.logits.float(), batch.labels) + 0 * found.gate_logits.sum()

    def undecided(forward: Callable[..., Any], batch: Batch) -> Tensor:
        logits, gates = forward(batch.images)
        return F.cross_entropy(logits.float(), batch.labels) + 0 * gates.sum()

    def drawn() -> None:
        for _ in data.epoch(0):
            pass
        loops.wait()

    found = median_seconds(
        {
            "stage": lambda: seconds.append(epoch()),
            "bare": loops.bare(bare, lambda forward, batch: bare_objective(forward, batch, 0.0)[0], frozen),
            "routed": loops.bare(routed, plain, frozen),
            "undecided": loops.bare(Undecided(asked), undecided, frozen),
            "backbone": loops.bare(alone.backbone, cross_entropy, frozen),
            "data": drawn,
        },
        rounds,
    )
    own = sorted(seconds[1:])[rounds // 2]  # without validation and the files of an epoch, which are not per step
    shares = {
        "data": found["data"],
        "logging and loop": own - found["bare"] - found["data"],
        "gates": found["undecided"] - found["backbone"],
        "blending": found["routed"] - found["undecided"],
        "objective": found["bare"] - found["routed"],
    }
    shown = (f"{100 * value / own:.1f}" for value in shares.values())
    return markdown_row([str(width), stage, f"{images / own:.0f}", f"{found['bare'] / own:.3f}", *shown])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="of a loop's turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    loops = Loops(arguments.batch, arguments.steps, arguments.precision, arguments.compile, device)
    shares = ("data", "logging and loop", "gates", "blending", "objective")
    head = ("Width", "Stage", "Images/s", "stage / bare", *(f"{name} %" for name in shares))
    print(*markdown_head(head, "rl" + "r" * (2 + len(shares))), sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        for width in arguments.widths:
            for stage in arguments.stages:
                print(measure(loops, width, stage, arguments.rounds, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
