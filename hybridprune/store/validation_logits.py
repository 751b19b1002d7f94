"""``validation.safetensors`` of a run of stage 1 or 2: its logits for the validation images, to choose members by.

Single precision, as they were computed: what is chosen by them is chosen by what the network says. Every block is
executed, as in a member of a cascade. The header names the run and the weights that they are of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hybridprune.errors import UserError
from hybridprune.store.files import write_bytes
from hybridprune.store.run_folder import RunFolder, RunSpec

FILE = "validation.safetensors"


@dataclass(frozen=True)
class ValidationLogits:
    """A network's logits for M validation images, every block executed, on the CPU."""

    logits: Tensor
    """``[M, classes]``, float32"""
    labels: Tensor
    """``[M]``, int64"""
    ids: Tensor
    """``[M]``, int64, rising: which of the training images they are."""

    def save(self, run: RunFolder, spec: RunSpec, model_sha256: str) -> None:
        """Write them into the run's folder, atomically."""
        if run.writes:
            tensors = {name: value.contiguous() for name, value in vars(self).items()}
            write_bytes(run.path / FILE, save(tensors, _origin(spec, model_sha256)))

    @staticmethod
    def read(run: RunFolder, spec: RunSpec) -> ValidationLogits | None:
        """The logits of a finished run; None without the file, UserError if it is broken or of another network."""
        path = run.path / FILE
        if not path.is_file():
            return None
        found, origin = _read(path)
        if origin != _origin(spec, run.result("model_sha256", str)):
            raise UserError(f"{path}: is not of the network in {run.path}; remove it")
        _check(found, spec.network.classes, path)
        return found


def _origin(spec: RunSpec, model_sha256: str) -> dict[str, str]:
    """What the file's header says of the logits; one text, since the order of several is left to chance."""
    of = {"run_id": spec.run_id, "model_sha256": model_sha256, "dataset_digest": spec.dataset_digest}
    return {"of": json.dumps(of, sort_keys=True)}


def _read(path: Path) -> tuple[ValidationLogits, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("logits", "labels", "ids")}
            return ValidationLogits(**tensors), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or not a run's validation logits ({error}); remove it") from error


def _check(found: ValidationLogits, classes: int, path: Path) -> None:
    """UserError if the tensors are no logits of so many classes for as many images as there are labels and ids."""
    logits, labels, ids = found.logits, found.labels, found.ids
    count = len(labels) if labels.ndim else 0
    if (
        [logits.dtype, labels.dtype, ids.dtype] != [torch.float32, torch.int64, torch.int64]
        or count < 2
        or logits.shape != (count, classes)
        or labels.shape != ids.shape
        or labels.ndim != 1
        or not bool((ids.diff() > 0).all())
        or int(labels.min()) < 0
        or int(labels.max()) >= classes
    ):
        raise UserError(f"{path}: not the logits of {classes} classes, labels and image ids; remove it")
    if not bool(logits.isfinite().all()):
        raise UserError(f"{path}: holds logits that are not finite, so the network is no member of a cascade")
