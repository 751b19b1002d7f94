"""One recipe of fine-tuning for every network of a comparison: resumable, a saved state after each epoch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.ambient import seeded
from hybridprune.curvature import CROSS_ENTROPY
from hybridprune.data import Batch, Dataset, EvalBatches, ImageSet, Split, TrainBatches, make_split
from hybridprune.engine.distill import Forward, plainly
from hybridprune.engine.pressure import parameter_groups
from hybridprune.engine.rates import lr_factors
from hybridprune.engine.schedule import factor
from hybridprune.precision import DTYPES, Precision
from hybridprune.store.files import write_bytes
from hybridprune.store.seeds import stream_seed

EVAL_BATCH = 250
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum, a linear warm-up and a linear decay, beside distillation from the dense network.

    Separable layers have their own rates (`lr_factors`).
    """

    name: str = "default"
    lr: float = 0.03
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.1
    """Share of the steps over which the learning rate rises."""
    kd_weight: float = 0.7
    kd_temperature: float = 4.0
    precision: str = "bf16"

    def factor(self, share: float) -> float:
        """The factor of the learning rate at this share of the training."""
        return factor("up-down", {"0": 0.0, str(self.warm_up): 1.0, "1": 0.0}, share)


@dataclass(frozen=True)
class BenchImages:
    """Training images for measuring and training, test images in two fixed parts.

    Published networks have seen all training images. What is chosen is chosen on ``calibration``, a stratified fifth of
    the test images; ``report`` is the rest.
    """

    dataset: Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def parts(self) -> Split:
        """``validation`` is the calibration part, ``train`` the reported one: ids of test images."""
        return make_split(self.dataset.test.labels, 0.2, seed=0)

    def shuffled(self, seed: int, batch_size: int) -> ShuffledPairs:
        """All training images in random order as they are, in batches of pairs."""
        return ShuffledPairs(self.sample(seed, len(self.dataset.train), batch_size))

    def sample(self, seed: int, images: int, batch_size: int = EVAL_BATCH) -> EvalBatches:
        """Training images in random order, so many of them, as they are."""
        order = torch.randperm(len(self.dataset.train), generator=torch.Generator().manual_seed(seed))
        return self._plain(self.dataset.train, order[:images], batch_size)

    def of_test(self, ids: Tensor | None = None) -> EvalBatches:
        """The test images of these numbers, or all of them, in their order."""
        return self._plain(self.dataset.test, ids, EVAL_BATCH)

    def training(self, seed: int, batch_size: int) -> TrainBatches:
        """All training images, cropped and mirrored at random."""
        return TrainBatches(
            self.dataset.train,
            torch.arange(len(self.dataset.train)),
            batch_size=batch_size,
            mean=self.mean,
            std=self.std,
            crop=True,
            flip=self.dataset.flippable,
            seed=stream_seed(seed, "fine-tuning"),
            device=CPU,
            channels_last=True,
        )

    def correct(self, net: nn.Module) -> Tensor:
        """The test images that ``net``, put into eval mode, gets right: bool ``[M]``, in their order."""
        return self.logits(net).argmax(1) == self.dataset.test.labels

    @torch.no_grad()
    def logits(self, net: nn.Module) -> Tensor:
        """The logits ``[M, classes]`` of ``net``, put into eval mode, for the test images, in their order."""
        net.eval()
        return torch.cat([net(batch.images) for batch in self.of_test()])

    def _plain(self, data: ImageSet, ids: Tensor | None, batch_size: int) -> EvalBatches:
        return EvalBatches(
            data, ids, batch_size=batch_size, mean=self.mean, std=self.std, device=CPU, channels_last=True
        )


@dataclass(frozen=True)
class ShuffledPairs:
    """Batches as pairs of images and labels, as often as they are gone through."""

    batches: EvalBatches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((batch.images, batch.labels) for batch in self.batches)


@dataclass(frozen=True)
class Teacher:
    """The dense network's outputs for the images of an epoch, kept in files: all arms of a seed see the same images."""

    net: nn.Module
    """In eval mode."""
    folder: Path

    @torch.no_grad()
    def outputs(self, batches: TrainBatches, epoch: int, precision: str, images: int) -> Tensor:
        """Outputs ``[images, classes]`` by number of the image, zero where the epoch leaves one out."""
        path = self.folder / f"{precision}-{batches.seed}-{epoch}.pt"
        if path.is_file():
            return torch.load(path, weights_only=True)["outputs"]
        forward = forward_in(precision)
        parts = [(batch.ids, forward(self.net, batch.images)) for batch in batches.epoch(epoch)]
        found = parts[0][1].new_zeros(images, parts[0][1].shape[1])
        for ids, outputs in parts:
            found[ids] = outputs
        save(path, {"outputs": found})
        return found


Answer = Callable[[nn.Module, Batch, int], tuple[Tensor, Tensor | float]]
"""A network's outputs for a batch of an epoch, and what its loss has beside that of these."""


Mode = Callable[[nn.Module], object]
"""Puts a network into the mode of its training."""


def answered(net: nn.Module, batch: Batch, epoch: int) -> tuple[Tensor, Tensor | float]:
    """The outputs of a network for any batch, and nothing beside."""
    del epoch
    return net(batch.images), 0.0


def forward_in(precision: str) -> Forward:
    """``forward(network, inputs)`` under autocast."""
    return Precision("cpu", DTYPES[precision])(plainly)


def train(
    net: nn.Module,
    teacher: Teacher,
    images: BenchImages,
    recipe: Recipe,
    epochs: int,
    seed: int,
    path: Path,
    answer: Answer = answered,
    mode: Mode = nn.Module.train,
) -> list[float]:
    """Train ``net`` in place, each epoch in this ``mode``; the mean loss of each epoch.

    Its state is saved at ``path`` after each, and gone on from if it is there: the end is the same. Raises ValueError
    if what was saved is of another training.
    """
    batches = images.training(seed, recipe.batch_size)
    groups = parameter_groups(net.named_parameters(), None, lr_factors=lr_factors(net))
    optimizer = torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    of = {"recipe": asdict(recipe), "epochs": epochs, "seed": seed}
    losses: list[float] = []
    if path.is_file():
        state = torch.load(path, weights_only=True)
        if state["of"] != of:
            raise ValueError(f"{path}: is of the training {state['of']}, not {of}; name another --work")
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        losses = state["losses"]
    forward = Precision("cpu", DTYPES[recipe.precision])(answer)
    for epoch in range(len(losses), epochs):
        taught = (
            teacher.outputs(batches, epoch, recipe.precision, len(images.dataset.train)) if recipe.kd_weight else None
        )
        mode(net)
        total = 0.0
        with seeded(stream_seed(seed, "dropout", epoch), CPU):
            for step, batch in enumerate(batches.epoch(epoch)):
                share = (epoch + (step + 0.5) / len(batches)) / epochs
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr * recipe.factor(share) * group["factor"]
                output, beside = forward(net, batch, epoch)
                loss = F.cross_entropy(output.float(), batch.labels)
                if taught is not None:
                    distillation = CROSS_ENTROPY.divergence(output, taught[batch.ids], recipe.kd_temperature)
                    loss = (1 - recipe.kd_weight) * loss + recipe.kd_weight * distillation
                loss = loss + beside
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
        losses.append(total / len(batches))
        save(path, {"of": of, "net": net.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses})
    return losses


def save(path: Path, state: dict[str, Any]) -> None:
    """A dictionary of tensors and plain values, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
