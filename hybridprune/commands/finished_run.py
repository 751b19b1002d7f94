"""A finished run and its images, for the commands that read runs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from hybridprune.data import Dataset, EvalBatches, ImageSet, Split
from hybridprune.engine.device import device_of
from hybridprune.engine.run_data import load_dataset_of
from hybridprune.errors import UserError
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.architectures import allow
from hybridprune.models.routed import RoutedNetwork
from hybridprune.stages.images import read_split
from hybridprune.stages.setup import to_device
from hybridprune.store.run_folder import RunFolder, RunSpec

SplitName = Literal["test", "validation"]


class CommandParser(argparse.ArgumentParser):
    """A parser of a command, whose mistakes are a user's like all others: one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


class Parser(CommandParser):
    """A parser of a command that reads one run."""

    def __init__(self, description: str | None, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)
        self.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run of any stage")
        self.add_argument(
            "--network",
            metavar="MODULE:FACTORY",
            help="that of the run, if it is one of your own: a run by itself imports nothing (default: none)",
        )
        self.add_argument("--data_dir", help="where the images lie now (default: where they lay in training)")
        self.add_argument("--cache_dir", help="folder for decoded images (default: the user's cache)")
        self.add_argument(
            "--download", action="store_true", help="fetch a set that torchvision reads, if it is not there"
        )
        self.add_argument("--device", default="auto", help="of the network, default: %(default)s")


def add_batch_size(parser: Parser) -> None:
    """The flag that `FinishedRun.load` reads beside those of every parser."""
    parser.add_argument("--batch_size", "--bs", type=int, default=128, help="default: %(default)s")


@dataclass(frozen=True)
class FinishedRun:
    """A run's network and cost, and its images in batches."""

    run: RunFolder
    spec: RunSpec
    net: RoutedNetwork
    cost: NetworkCost
    device: torch.device
    dataset: Dataset
    batch_size: int

    @staticmethod
    def load(arguments: argparse.Namespace) -> FinishedRun:
        """The run that parsed arguments name; UserError if it or its images cannot be read."""
        if arguments.batch_size < 1:
            raise UserError(f"--batch_size {arguments.batch_size}: must be at least 1")
        run = RunFolder.named(arguments.run)
        device = device_of(arguments.device)
        if arguments.network is not None:
            allow(arguments.network)
        net, spec = run.load_network()
        if arguments.network not in (None, spec.network.network):
            raise UserError(f"--network {arguments.network}: {run.path} is of {spec.network.network}; give that")
        dataset = load_dataset_of(
            run, spec, arguments.data_dir, cache_dir=arguments.cache_dir, download=arguments.download
        )
        net, cost = to_device(net, device, channels_last=True).eval(), count(net, spec.input_size)
        return FinishedRun(run, spec, net, cost, device, dataset, arguments.batch_size)

    def batches(self, split: SplitName) -> EvalBatches:
        """The test or the validation images, as they are; UserError if the validation split cannot be read."""
        if split == "test":
            return self._plain(self.dataset.test, None)
        return self._plain(self.dataset.train, self.split().validation)

    def training_sample(self, images: int) -> EvalBatches:
        """About as many training images, evenly spaced; UserError if the split cannot be read."""
        ids = self.split().train
        return self._plain(self.dataset.train, ids[:: max(1, len(ids) // images)])

    def split(self) -> Split:
        """The run's split of the training images; UserError if its file is missing or broken, or of other images."""
        split = read_split(self.run)
        if split.total != len(self.dataset.train):
            raise UserError(
                f"{self.run.path / 'split.json'}: is of {split.total} training images, the data has "
                f"{len(self.dataset.train)}; restore the file"
            )
        # A file says which images are for validation. Of a subtask, the other classes' are no training images.
        return split.of_classes(self.dataset.subtask, self.dataset.train.labels)

    def _plain(self, data: ImageSet, ids: torch.Tensor | None) -> EvalBatches:
        return EvalBatches(
            data,
            ids,
            batch_size=self.batch_size,
            mean=self.spec.mean,
            std=self.spec.std,
            device=self.device,
            channels_last=True,
        )

    @property
    def dense_macs(self) -> int:
        """MACs of the unpruned backbone."""
        return self.run.result("dense.macs", int, low=1)

    def need_gates(self) -> None:
        """UserError if the network has none."""
        if self.net.num_gates == 0:
            raise UserError(f"{self.run.path}: {self.spec.network.network} has no gates, hence one operating point")
