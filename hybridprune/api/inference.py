# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnnecessaryIsInstance=false
"""Using a finished run: its network, its classes and what it says of images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch

from hybridprune.ambient import isolated
from hybridprune.api.pruned import PrunedSpec
from hybridprune.api.saved_folder import is_saved
from hybridprune.config import argument_names
from hybridprune.data import normalise
from hybridprune.data.image_like import ImageLike, each_image
from hybridprune.data.resize import resize_images
from hybridprune.engine.device import check_kind, device_of
from hybridprune.errors import UserError
from hybridprune.models.routed import Mode
from hybridprune.store.run_folder import RunFolder, RunSpec

_BATCH = 128
_RESTORE = "use hybridprune.restore(..., into=a fresh instance of the module)"


@dataclass(frozen=True)
class Model:
    """A network with all that is needed to use it."""

    network: Any
    """A `GatedNetwork` or, of a cascade's run, a `Cascade`; both are a `RoutedNetwork`."""
    spec: RunSpec

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.spec.class_names


@dataclass(frozen=True)
class Prediction:
    """A network's answer on one image."""

    label: str
    probability: float
    blocks_executed: int
    """Gated blocks, or members of a cascade beside the first."""


@argument_names(own=("device",))
@isolated()
def load(run: str | Path, device: str | torch.device = "cpu", *, into: None = None) -> Model:
    """The selected network of a finished run of any stage, in eval mode on ``device``.

    ``run`` is a run folder or its model.safetensors. Raises UserError if it is neither, unfinished or broken, if it is
    a pruned module of your own (`hybridprune.restore` is for that, and takes ``into``), or if the device is not there.
    """
    if into is not None:
        raise UserError(f"into: a run says itself what its network is; for a pruned module of your own {_RESTORE}")
    place = device_of(device, "device")
    if isinstance(run, PrunedSpec):
        raise UserError(f"run: is a PrunedSpec; {_RESTORE}")
    if not isinstance(run, str | Path):
        raise UserError(f"run: is a {type(run).__name__}; name a run folder or its model.safetensors")
    if is_saved(Path(run)):
        raise UserError(f"{run}: holds a pruned module or a cascade of your own; {_RESTORE}")
    network, spec = RunFolder.named(Path(run)).load_network()
    return Model(network.to(place).eval(), spec)


@argument_names()
@torch.inference_mode()
def predict(model: Model, images: ImageLike | Iterable[ImageLike], mode: Mode = "executed") -> list[Prediction]:
    """Classify images of any size: always a list of a prediction for each, in their order.

    ``images`` is one image, a batch or a list (any iterable) of these: a path, a Pillow image, a uint8 array
    ``[H, W, 3]``, ``[H, W, 1]`` or ``[H, W]``, a uint8 tensor ``[3, H, W]`` or ``[1, H, W]``, an array ``[N, H, W, C]``
    or a tensor ``[N, C, H, W]``. Grey is repeated, alpha dropped, EXIF's orientation heeded. They are read and run 128
    at a time.

    Raises UserError naming a file that cannot be read, the place of what is no image, or another argument that may not
    be what it is.
    """
    if not isinstance(model, Model):
        raise UserError(f"model: is a {type(model).__name__}; give what hybridprune.load returns")
    if mode not in get_args(Mode):
        raise UserError(f"mode {mode!r}: must be one of {', '.join(get_args(Mode))}")
    device = check_kind(next(model.network.parameters()).device, "the network is on")
    given, spec = each_image(images), model.spec
    predictions: list[Prediction] = []
    while few := [resize_images(image[None], spec.input_size, spec.centre_crop) for image in islice(given, _BATCH)]:
        pixels = torch.cat(few).to(device)
        routed = model.network(normalise(pixels, spec.mean, spec.std, torch.contiguous_format), mode=mode)
        probabilities, labels = routed.logits.softmax(1).max(1)
        executed = routed.decisions.sum(1).int().tolist()
        predictions += [
            Prediction(model.classes[label], probability, blocks)
            for label, probability, blocks in zip(labels.tolist(), probabilities.tolist(), executed, strict=True)
        ]
    return predictions
