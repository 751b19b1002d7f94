"""Weights of any module as safetensors files."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hybridprune.errors import UserError
from hybridprune.store.files import write_bytes

_VERSIONS = "versions"
"""What the file's header has beside the tensors: the versions of the modules, which some need to read their own."""


def save_weights(net: torch.nn.Module, path: Path) -> None:
    """Save the weights as safetensors, atomically."""
    state = net.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: cannot hold {name}, a {type(value).__name__}; let get_extra_state give a tensor")
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    modules: Mapping[str, Mapping[str, Any]] = getattr(state, "_metadata", {})
    versions = {name: found["version"] for name, found in modules.items() if found.get("version") is not None}
    write_bytes(path, save(tensors, {_VERSIONS: json.dumps(versions, sort_keys=True)}))


def read_tensors(path: Path) -> OrderedDict[str, Tensor]:
    """A safetensors file's tensors, with their modules' versions as ``state_dict`` has them.

    Raises UserError when it is missing or broken.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name an existing checkpoint")
    try:
        tensors = OrderedDict(load_file(path))
        with safe_open(path, framework="pt") as file:
            versions = json.loads((file.metadata() or {}).get(_VERSIONS, "null"))
        if versions is not None:
            tensors._metadata = {name: {"version": int(version)} for name, version in versions.items()}  # type: ignore[attr-defined]
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: truncated or not a safetensors file ({error}); restore it") from error
    return tensors


def read_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of a safetensors file's tensors, which its header says: none of them is read.

    Raises UserError when it is missing or broken.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name an existing checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or not a safetensors file ({error}); restore it") from error


def check_shapes(shapes: Mapping[str, list[int]], net: torch.nn.Module, source: Path) -> None:
    """UserError, naming the first difference, if a checkpoint of these ``shapes`` is not one of ``net``."""
    own = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    for name in sorted(own.keys() | shapes.keys()):
        if shapes.get(name) != own.get(name):
            raise UserError(
                f"{source}: checkpoint of another architecture: {name} is {shapes.get(name, 'nothing')}, the network "
                f"has {own.get(name, 'nothing')}; give the network that it was saved from"
            )


def load_weights(net: torch.nn.Module, path: Path, assign: bool = False) -> None:
    """Load safetensors strictly into ``net``; UserError names the first difference of architecture.

    ``assign`` takes the tensors as they are for the network's, which may then lie on the meta device.
    """
    load_tensors(net, read_tensors(path), path, assign)


def load_tensors(net: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path, assign: bool = False) -> None:
    """Load ``tensors`` strictly into ``net``; UserError names the first difference of architecture.

    Where they do not say of which versions of the modules they are, they are of the present ones.
    """
    check_shapes({name: list(tensor.shape) for name, tensor in tensors.items()}, net, source)
    own = net.state_dict()
    state = OrderedDict(tensors)
    state._metadata = getattr(tensors, "_metadata", getattr(own, "_metadata", None))  # type: ignore[attr-defined]
    try:
        net.load_state_dict(state, assign=assign)
    except RuntimeError as error:  # what a layer does not take for its own
        raise UserError(f"{source}: {' '.join(str(error).split())}; restore it") from error
