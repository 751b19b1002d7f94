"""A finished run and its images, for the commands that read runs."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hybridprune.config import DataOptions
from hybridprune.data import EvalBatches
from hybridprune.errors import UserError
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.space import Budget, Cost
from hybridprune.routing.price import TOLERANCE
from hybridprune.stages.common import device_of, load_images, read_split
from hybridprune.store.run_folder import RunFolder, RunSpec

SplitName = Literal["test", "validation"]


class Parser(argparse.ArgumentParser):
    """A parser of a command that reads one run, whose mistakes are a user's like all others."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run of any stage")
        self.add_argument("--data_dir", help="where the images lie now (default: where they lay in training)")
        self.add_argument("--batch_size", "--bs", type=int, default=128, help="default: %(default)s")
        self.add_argument("--device", default="auto", help="default: %(default)s")

    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see --help")


@dataclass(frozen=True)
class FinishedRun:
    """A run's network and cost, and its images in batches."""

    run: RunFolder
    spec: RunSpec
    net: GatedNetwork
    cost: NetworkCost
    device: torch.device
    batches: dict[SplitName, EvalBatches]

    @staticmethod
    def load(arguments: argparse.Namespace) -> FinishedRun:
        """The run that parsed arguments name; UserError if it or its images cannot be read."""
        if arguments.batch_size < 1:
            raise UserError(f"--batch_size {arguments.batch_size}: must be at least 1")
        run = RunFolder.named(arguments.run)
        device = device_of(arguments.device)
        net, spec = run.load_network()
        dataset = load_images(_data_options(arguments.data_dir, run, spec))
        if dataset.digest != spec.dataset_digest:
            raise UserError(f"--data_dir: holds other images than {run.path} was trained on; name that run's data")

        def batches(split: SplitName) -> EvalBatches:
            return EvalBatches(
                dataset.test if split == "test" else dataset.train,
                None if split == "test" else read_split(run).validation,
                batch_size=arguments.batch_size,
                mean=spec.mean,
                std=spec.std,
                device=device,
                channels_last=True,
            )

        both: dict[SplitName, EvalBatches] = {"test": batches("test"), "validation": batches("validation")}
        return FinishedRun(run, spec, net.to(device).eval(), count(net, spec.input_size), device, both)

    @property
    def dense(self) -> Cost:
        """Of the unpruned network."""
        dense = self.run.read_json("result.json")["dense"]
        return Cost(dense["macs"], dense["params"])

    def budget_macs(self, target_flops: float) -> float:
        """The budget in MACs: up to 1 a share of the dense network's FLOPs, else FLOPs."""
        if target_flops <= 0:
            raise UserError(f"--target_flops {target_flops}: must be above 0")
        budget = Budget.of(target_flops, None, self.dense)
        assert budget is not None and budget.macs is not None
        return budget.macs

    def need_gates(self) -> None:
        """UserError if the network has none."""
        if self.net.num_gates == 0:
            raise UserError(f"{self.run.path}: {self.spec.network.network} has no gates, hence one operating point")


def check_reached(run: FinishedRun, target_flops: float, reached_macs: float) -> None:
    """UserError if ``reached_macs`` are further than 2 % from the budget."""
    if abs(reached_macs / run.budget_macs(target_flops) - 1) > TOLERANCE:
        raise UserError(
            f"--target_flops {target_flops}: the nearest operating point takes {reached_macs / run.dense.macs:.4f} of "
            f"the dense FLOPs ({2 * reached_macs:,.0f}); python -m hybridprune.sweep {run.run.path} shows what there is"
        )


def _data_options(data_dir: str | None, run: RunFolder, spec: RunSpec) -> DataOptions:
    """The run's own data options; ``--data_dir`` says where the images lie now."""
    stored = run.read_json("config.json")
    known = {f.name for f in dataclasses.fields(DataOptions)}
    options = DataOptions(**{key: value for key, value in stored.items() if key in known})
    return dataclasses.replace(options, data_dir=data_dir or options.data_dir, resize=spec.input_size)
