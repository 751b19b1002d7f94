# pyright: strict, reportUnnecessaryIsInstance=false
"""A data set for a training without a run folder: by name, by options or given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.config import DataOptions
from hybridprune.data import Batch, Dataset, EvalBatches, TrainBatches, validation_split
from hybridprune.engine.device import device_of
from hybridprune.engine.run_data import load_images
from hybridprune.errors import UserError
from hybridprune.store.seeds import generator, stream_seed

Data = str | DataOptions | Dataset
"""A registered name (CIFAR's files lie in the folder ``data`` or are fetched there), options (of which all but the
batch size counts), or the images themselves."""

NATIVE_SIZE = {"digits": 8}
CIFAR_FOLDER = "data"
EVAL_BATCH = 500
RECALIBRATION_IMAGES = 10_000


@dataclass(frozen=True)
class Images:
    """A data set, split and ready to be drawn from, as the stages do it."""

    dataset: Dataset
    device: torch.device
    training: Epochs
    """Shuffled and augmented."""
    sample: EvalBatches
    """Training images, not augmented."""
    validation: EvalBatches
    test: EvalBatches

    @staticmethod
    def of(source: Data, batch_size: int, seed: int, device: str, purpose: str) -> Images:
        """The images of ``source``, a tenth of the training set for validation, the same whatever the seed.

        ``purpose`` names the randomness of the training batches. Raises UserError if there are no such images.
        """
        options = _options(source) if isinstance(source, str) else source
        if not isinstance(options, DataOptions | Dataset):
            raise UserError(
                f"dataset: is a {type(source).__name__}; give a name, a hybridprune.config.DataOptions or a "
                "hybridprune.data.Dataset"
            )
        data = options if isinstance(options, Dataset) else load_images(options)
        place, labels = device_of(device, "device"), data.train.labels
        limit, augment = (None, True) if isinstance(options, Dataset) else (options.max_train_samples, options.augment)
        split = validation_split(data).limit_train(limit, labels, seed=0)
        common: dict[str, Any] = {"mean": data.mean, "std": data.std, "device": place, "channels_last": True}
        training = TrainBatches(
            data.train,
            split.train,
            batch_size=batch_size,
            crop=augment,
            flip=augment and data.flippable,
            seed=stream_seed(seed, purpose),
            **common,
        )
        order = torch.randperm(len(split.train), generator=generator(seed, "recalibration"))
        sample = split.train[order[:RECALIBRATION_IMAGES]]
        small = data.train.pixels(order[:1]).shape[-1] <= 64
        eval_batch = EVAL_BATCH if small else min(EVAL_BATCH, batch_size)  # no more than a training step has to hold
        plain = [
            EvalBatches(part, ids, batch_size=eval_batch, **common)
            for part, ids in ((data.train, sample), (data.train, split.validation), (data.test, None))
        ]
        return Images(data, place, Epochs(training), *plain)

    @property
    def example(self) -> Tensor:
        """A blank image ``[1, 3, H, W]``."""
        return torch.zeros_like(self.dataset.test.pixels(torch.tensor([0])), dtype=torch.float32, device=self.device)

    def place(self, net: nn.Module) -> nn.Module:
        """``net`` on the device, in the memory format of the images."""
        return net.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class Epochs:
    """Epochs of training batches; each pass is the next one."""

    def __init__(self, batches: TrainBatches) -> None:
        self._batches, self._epoch = batches, -1

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        self._epoch += 1
        return self._batches.epoch(self._epoch)


def _options(name: str) -> DataOptions:
    """Where the images are of which a name is all that is known."""
    folder = CIFAR_FOLDER if name.startswith("cifar") else None
    return DataOptions(dataset=name, data_dir=folder, resize=NATIVE_SIZE.get(name, 32), download=folder is not None)
