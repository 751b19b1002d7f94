"""Putting a module into the place of another: under all of its names, with all that hangs on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` into every place of ``model`` at which the submodule called ``name`` is registered.

    Raises AttributeError if there is none of that name.
    """
    old = model.get_submodule(name)
    places = [place for place, found in model.named_modules(remove_duplicate=False) if found is old]
    for place in places:
        parent, _, child = place.rpartition(".")
        assert child, "a network has no place in itself"
        setattr(model.get_submodule(parent), child, module)


def inherit(new: M, old: nn.Module, blank: nn.Module) -> M:
    """Give ``new``, which takes the place of ``old``, all that a user may have hung on it; return ``new``.

    That is the training mode, whether weights and biases are trained, the memory format, hooks of every kind, and
    whatever ``old`` has that ``blank``, another module of its class, has not: attributes, buffers, parameters, modules.
    """
    before = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        kind = name.rpartition(".")[2]
        sources = (name, kind, f"core.{kind}", f"rotate_out.{kind}")
        parameter.requires_grad_(next(before[source].requires_grad for source in sources if source in before))
    new.to(memory_format=memory_format(before.values()))  # type: ignore[call-overload]
    own, bare = vars(blank), vars(nn.Module())
    for name, value in vars(old).items():
        if name in ("_parameters", "_buffers", "_modules"):
            vars(new)[name].update({key: entry for key, entry in value.items() if key not in own[name]})
        elif name in bare or name not in own:
            vars(new)[name] = value
    return new.train(old.training)


def memory_format(tensors: Iterable[Tensor]) -> torch.memory_format:
    """Channels last if any of the tensors is in that format and in no other."""
    for tensor in tensors:
        if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format
