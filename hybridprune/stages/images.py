"""The images of a run, split, and drawn from for training, measurements and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hybridprune.config import DataOptions, PruneConfig, RlConfig, SpConfig
from hybridprune.data import Dataset, EvalBatches, Split, TrainBatches, batch_sizes, validation_split
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.errors import UserError
from hybridprune.processes import count as processes
from hybridprune.processes import rank
from hybridprune.store.run_folder import RunFolder
from hybridprune.store.seeds import generator, stream_seed

EVAL_BATCH = 500


def read_split(run: RunFolder) -> Split:
    """A run's validation split; UserError if the file is missing or broken."""
    record = run.read_json("split.json")
    try:
        return Split.from_json(record)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.path / 'split.json'}: broken ({error}); restore the file") from error


@dataclass(frozen=True)
class RunImages:
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
    ) -> RunImages:
        """Cut a validation split (of its own seed, the same for every run) unless one is inherited; limit the rest."""
        labels = dataset.train.labels
        split = split or validation_split(dataset)
        if split.total != len(labels):
            raise UserError(
                f"the parent's split is of {split.total} images, --data_dir has {len(labels)}; use the same data and "
                "--validation_from"
            )
        split = split.of_classes(dataset.subtask, labels)
        limited = split.limit_train(config.data.max_train_samples, labels, seed=0)
        # BatchNorm needs two images in each process.
        size, least = min(batch_sizes(len(limited.train), config.data.batch_size)), 2 * processes()
        if size < least and processes() > 1:
            raise UserError(
                f"--bs {config.data.batch_size}: a batch of {size} images is too small for {processes()} processes; "
                f"give at least {least} images, or torchrun a smaller --nproc-per-node"
            )
        return RunImages(dataset, limited, config.data, config.run.seed, device, config.optim.channels_last)

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
        """RunImages of an evaluation's batches: of large ones no more than a training step has to hold."""
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

    def recalibrate(self, net: nn.Module) -> None:
        """Re-estimate the BatchNorm statistics of ``net``, as its gates route it, on up to 10,000 training images."""
        recalibrate(net, self.sample(10_000, self.options.batch_size, "recalibration"))
