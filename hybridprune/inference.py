"""Using a finished run: its network, its classes and what it says of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from torch import Tensor, nn

from hybridprune.data import normalise
from hybridprune.data.decode import decode_file
from hybridprune.data.resize import resize_images
from hybridprune.errors import UserError
from hybridprune.models.skipnet import GatedNetwork, Mode
from hybridprune.pruned import PrunedSpec, restore
from hybridprune.store.run_folder import RunFolder, RunSpec

ImageLike = str | Path | Tensor


@dataclass(frozen=True)
class Model:
    """A network with all that is needed to use it."""

    network: GatedNetwork
    spec: RunSpec

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.spec.class_names


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image."""

    label: str
    probability: float
    blocks_executed: int
    """Of the gated ones."""


@overload
def load(run: str | Path, device: str | torch.device = "cpu", *, into: None = None) -> Model: ...


@overload
def load(run: str | Path | PrunedSpec, device: str | torch.device = "cpu", *, into: nn.Module) -> nn.Module: ...


def load(
    run: str | Path | PrunedSpec, device: str | torch.device = "cpu", *, into: nn.Module | None = None
) -> Model | nn.Module:
    """The selected network of a finished run of any stage, in eval mode; or a pruned module of your own.

    ``run`` is a run folder or its model.safetensors. With ``into``, a fresh instance of the module that
    ``hybridprune.prune`` was given, it is what ``prune`` returned (the specification alone: the architecture without
    weights) or a folder of ``hybridprune.save``, and ``into`` is edited in place and returned in its mode.
    Raises UserError if it is none of these, unfinished or broken.
    """
    if into is not None:
        return restore(run, into).to(device)
    assert not isinstance(run, PrunedSpec), "a specification needs into=, a fresh instance of the module"
    network, spec = RunFolder.named(Path(run)).load_network()
    return Model(network.to(device).eval(), spec)


@torch.inference_mode()
def predict(model: Model, images: Sequence[ImageLike], mode: Mode = "executed") -> list[Prediction]:
    """Classify images given as files or as uint8 tensors ``[3, H, W]`` (grey: ``[1, H, W]``) of any size.

    Raises UserError naming a file that cannot be read.
    """
    if not images:
        return []
    device = next(model.network.parameters()).device
    pixels = torch.stack([_pixels(image, model.spec) for image in images]).to(device)
    routed = model.network(normalise(pixels, model.spec.mean, model.spec.std, torch.contiguous_format), mode=mode)
    probabilities, labels = routed.logits.softmax(1).max(1)
    executed = routed.decisions.sum(1).int().tolist()
    return [
        Prediction(model.classes[label], probability, blocks)
        for label, probability, blocks in zip(labels.tolist(), probabilities.tolist(), executed, strict=True)
    ]


def _pixels(image: ImageLike, spec: RunSpec) -> Tensor:
    if not isinstance(image, Tensor):
        image = decode_file(image)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"an image is {image.dtype} {list(image.shape)}; give uint8 [3, H, W] or [1, H, W]")
    return resize_images(image.expand(3, -1, -1)[None], spec.input_size, spec.centre_crop)[0]
