"""What the three stages share: data, device, run folder, parent, and the result that ends a run."""

from __future__ import annotations

import dataclasses
import json
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridprune.config import (
    DataOptions,
    Invocation,
    NetworkOptions,
    PruneConfig,
    RlConfig,
    SpConfig,
    to_json,
)
from hybridprune.data import Dataset, EvalBatches, Split, TrainBatches, batch_sizes, make_split
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.engine.device import device_of as device_of
from hybridprune.errors import UserError
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.processes import count as processes
from hybridprune.processes import is_first, local_device, rank
from hybridprune.store.find import find_parent, named_parent
from hybridprune.store.run_folder import RunFolder, RunSpec
from hybridprune.store.seeds import generator, stream_seed

VALIDATION_SHARE = 0.1
EVAL_BATCH = 500


def say(message: str) -> None:
    """Tell the user something that is not the command's output; of several processes, the first one does."""
    if is_first():
        print(message, file=sys.stderr, flush=True)


def device_for(config: SpConfig | PruneConfig | RlConfig) -> torch.device:
    """The device of this process of a stage; UserError if it is not there, or cannot do what is asked of it."""
    device = local_device(device_of(config.run.device))
    if config.optim.sync_batchnorm and device.type != "cuda":
        raise UserError(f"--sync_batchnorm: works on GPUs only, this run is on {device.type}; leave it out")
    return device


def describe(stage: str, dataset: Dataset, size: int, network: NetworkOptions) -> RunSpec:
    """The specification of a new run of ``stage`` on this data, with the unpruned network.

    Raises UserError if the options name no network.
    """
    return RunSpec(
        stage=stage,
        run_id=uuid.uuid4().hex,
        network=NetworkSpec.of(network, len(dataset.classes)),
        class_names=dataset.classes,
        input_size=size,
        mean=dataset.mean,
        std=dataset.std,
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        centre_crop=dataset.centre_crop,
    )


@dataclass(frozen=True)
class Parent:
    """The finished run a stage starts from."""

    run: RunFolder
    spec: RunSpec
    net: GatedNetwork
    result: Mapping[str, Any]

    @staticmethod
    def load(config: PruneConfig | RlConfig, wanted: RunSpec, stage: str, also: tuple[str, ...]) -> Parent:
        """The run that ``checkpoint_file`` names, else the matching run of ``stage`` (`find_parent`); says which.

        A named run may be of one of the stages ``also``.
        """
        if config.parent.checkpoint_file is not None:
            run = named_parent(Path(config.parent.checkpoint_file), wanted, {stage, *also})
        else:
            run = find_parent(Path(config.run.result_dir), wanted, stage, config.run.seed, say)
        say(f"parent run: {run.path}")
        net, spec = run.load_network()
        # What the run's own result is made of at its end, checked now.
        for name, kind in (("dense.macs", int), ("dense.params", int), ("group", str), ("model_sha256", str)):
            run.result(name, kind, *((1,) if kind is int else ()))
        return Parent(run, spec, net, run.read_json("result.json"))

    def split(self) -> Split:
        """The parent's validation split, which every descendant inherits."""
        return read_split(self.run)


def read_split(run: RunFolder) -> Split:
    """A run's validation split; UserError if the file is missing or broken."""
    record = run.read_json("split.json")
    try:
        return Split.from_json(record)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.path / 'split.json'}: broken ({error}); restore the file") from error


@dataclass(frozen=True)
class Images:
    """A data set with its split, ready to be drawn from."""

    dataset: Dataset
    split: Split
    options: DataOptions
    seed: int
    device: torch.device
    channels_last: bool

    @staticmethod
    def of(
        dataset: Dataset, split: Split | None, config: SpConfig | PruneConfig | RlConfig, device: torch.device
    ) -> Images:
        """Cut a validation split (of its own seed, the same for every run) unless one is inherited; limit the rest."""
        labels = dataset.train.labels
        split = split or make_split(labels, VALIDATION_SHARE, seed=0)
        if split.total != len(labels):
            raise UserError(
                f"the parent's split is of {split.total} images, --data_dir has {len(labels)}; use the same data"
            )
        limited = split.limit_train(config.data.max_train_samples, labels, seed=0)
        # BatchNorm needs two images in each process.
        size, least = min(batch_sizes(len(limited.train), config.data.batch_size)), 2 * processes()
        if size < least and processes() > 1:
            raise UserError(
                f"--bs {config.data.batch_size}: a batch of {size} images is too small for {processes()} processes; "
                f"give at least {least} images, or torchrun a smaller --nproc-per-node"
            )
        return Images(dataset, limited, config.data, config.run.seed, device, config.optim.channels_last)

    def training(self, purpose: str) -> TrainBatches:
        """Shuffled, augmented training batches, this process's share of them; ``purpose`` names their randomness."""
        augment = self.options.augment
        return TrainBatches(
            self.dataset.train,
            self.split.train,
            batch_size=self.options.batch_size,
            mean=self.dataset.mean,
            std=self.dataset.std,
            crop=augment,
            flip=augment and self.dataset.flippable,
            seed=stream_seed(self.seed, purpose),
            device=self.device,
            channels_last=self.channels_last,
            rank=rank(),
            processes=processes(),
        )

    def sample(self, images: int, batch_size: int, purpose: str, shared: bool = False) -> EvalBatches:
        """About ``images`` random training images without augmentation, ``shared`` by the processes or all for each."""
        order = torch.randperm(len(self.split.train), generator=generator(self.seed, purpose))
        return self._plain(self.split.train[order[:images]], batch_size, shared)

    @property
    def eval_batch(self) -> int:
        """Images of an evaluation's batches: of large ones no more than a training step has to hold."""
        small = self.options.resize <= 64
        return EVAL_BATCH if small else max(1, min(EVAL_BATCH, self.options.batch_size // processes()))

    def validation(self) -> EvalBatches:
        """The validation split, shared by the processes."""
        return self._plain(self.split.validation, self.eval_batch, True)

    def test(self) -> EvalBatches:
        """The test images, shared by the processes."""
        return self._plain(None, self.eval_batch, True)

    def _plain(self, ids: torch.Tensor | None, batch_size: int, shared: bool) -> EvalBatches:
        return EvalBatches(
            self.dataset.test if ids is None else self.dataset.train,
            ids,
            batch_size=batch_size,
            mean=self.dataset.mean,
            std=self.dataset.std,
            device=self.device,
            channels_last=self.channels_last,
            rank=rank() if shared else 0,
            processes=processes() if shared else 1,
        )

    def recalibrate(self, net: GatedNetwork) -> None:
        """Re-estimate the BatchNorm statistics of ``net``, as routed by its gates, on up to 10,000 training images."""
        recalibrate(net, self.sample(10_000, self.options.batch_size, "recalibration"))


def to_device(net: GatedNetwork, device: torch.device, channels_last: bool) -> GatedNetwork:
    """Move ``net`` to the device, in the memory format of its images."""
    format = torch.channels_last if channels_last else torch.contiguous_format
    return net.to(device=device, memory_format=format)  # type: ignore[call-overload]


def unpruned(network: NetworkSpec) -> GatedNetwork:
    """The architecture before any edit, on the meta device."""
    with torch.device("meta"):
        return dataclasses.replace(network, edits=()).build()


def show_config(invocation: Invocation[Any]) -> None:
    """What ``--print-config`` prints; of several processes, the first one does."""
    if is_first():
        print(json.dumps(to_json(invocation.config), indent=2))


def show_plan(stage: str, spec: RunSpec, images: Images, cost: NetworkCost, lines: list[str]) -> None:
    """What ``--dry-run`` prints; of several processes, the first one does."""
    if not is_first():
        return
    print(f"stage {stage}: {spec.network}, {spec.network.classes} classes")
    print(
        f"  {len(images.split.train)} training, {len(images.split.validation)} validation, "
        f"{len(images.dataset.test)} test images of {spec.dataset} at {spec.input_size} x {spec.input_size}"
    )
    print(
        f"  backbone: {cost.backbone_params:,} parameters, {cost.backbone_macs / 1e9:.4f} GMACs "
        f"(FLOPs = 2 x MACs); gates: {cost.gate_params:,} parameters, {sum(cost.gate_macs):,} MACs"
    )
    for line in lines:
        print(f"  {line}")
