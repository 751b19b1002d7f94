"""Other people's checkpoints: the state dict in a file, without executing code and without what wrapped the network."""

from __future__ import annotations

import argparse
import pathlib
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor

from hybridprune.errors import UserError
from hybridprune.store.weights import read_tensors

CONTAINERS = ("state_dict", "model_state_dict", "model", "network", "net", "weights", "params", "module", "ema")
"""Keys under which a training script's checkpoint may hold the network, the first that is there is taken."""
_DEPTH = 6  # containers within containers
_WRAPPERS = {"_orig_mod", "module"}  # of torch.compile, of DataParallel and of averaged models
_COUNTERS = {"n_averaged"}  # of averaged models

# What scripts put beside the weights and what is only data: numbers of NumPy, command lines and paths.
_NUMPY_SCALARS = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdgU"]
_HARMLESS: list[Any] = [
    np.dtype,
    *_NUMPY_SCALARS,
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # NumPy 1 and 2
    argparse.Namespace,
    pathlib.PosixPath,
]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, or in a ``torch.save`` of a state dict or of a dictionary that holds one.

    Containers (`CONTAINERS`) may lie within containers; what is no tensor beside the weights is left out. Names lose
    what wrappers put into them: ``_orig_mod.`` and ``module.``, wherever and however often, ``backbone.`` in front,
    and a container's name in front of all.

    Raises UserError if the file cannot be read without executing code, or holds no weights, the same name twice, or
    values that are not finite.
    """
    stored = read_tensors(path) if path.suffix == ".safetensors" else _load(path)
    found: dict[str, Tensor] = {}
    held = _weights(stored, path)
    shared = _shared_prefix(list(held))
    for name, tensor in held.items():
        plain = _unwrapped(name).removeprefix(shared)
        if plain in found:
            raise UserError(f"--weights {path}: holds {plain} twice, once as {name}; save model.state_dict() alone")
        if not _usable(tensor):
            raise UserError(f"--weights {path}: {name} is not finite or no plain tensor; save another checkpoint")
        found[plain] = tensor
    return found


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"--weights {path}: no such file; name an existing checkpoint")
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types on a broken archive
        raise UserError(
            f"--weights {path}: not a plain state dict ({_reason(error)}); save model.state_dict()"
        ) from error


def _reason(error: Exception) -> str:
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it holds a {found[1]}, which only its own code can make"
    if "TorchScript" in text:
        return "it is a TorchScript program"
    return textwrap.shorten(f"{type(error).__name__}: {text}", 150, placeholder=" ...")


def _weights(stored: Any, path: Path) -> Mapping[str, Tensor]:
    """The tensors of the first container that holds any."""
    if found := _held(stored, _DEPTH):
        return found
    keys = f" (it has {', '.join(map(str, list(stored)[:8]))})" if isinstance(stored, Mapping) and stored else ""
    raise UserError(f"--weights {path}: holds no state dict{keys}; save model.state_dict()")


def _held(stored: Any, depth: int) -> Mapping[str, Tensor] | None:
    if not isinstance(stored, Mapping) or depth == 0:
        return None
    for key in CONTAINERS:
        if found := _held(stored.get(key), depth - 1):
            return found
    tensors = {name: value for name, value in stored.items() if isinstance(value, Tensor) and name not in _COUNTERS}
    return tensors if all(isinstance(name, str) for name in tensors) else None


def _unwrapped(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "backbone":
        del parts[0]
    return ".".join(parts)


def _shared_prefix(names: list[str]) -> str:
    """Containers' names that all the names begin with, as of a network within a training framework's module."""
    parts, prefix = [_unwrapped(name).split(".") for name in names], ""
    while len({each[0] for each in parts}) == 1 and parts[0][0] in CONTAINERS and min(map(len, parts)) > 1:
        prefix += f"{parts[0][0]}."
        parts = [each[1:] for each in parts]
    return prefix


def _usable(tensor: Tensor) -> bool:
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and not tensor.is_complex() and bool(tensor.isfinite().all())
