"""A user's network in the plain form in which it can be measured: without wrappers, in float32, nothing recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.utils import checkpoint

from hybridprune.errors import UserError
from hybridprune.models.copies import copied
from hybridprune.nested import tensors_in, with_tensors

HALF = (torch.float16, torch.bfloat16)
TORCHS = checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator_impl
WRAPPERS = (OptimizedModule, nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module in ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``, itself the user's own.

    UserError if a part of it is wrapped: the names of its layers would be others than those of a fresh instance.
    """
    while isinstance(model, WRAPPERS):
        inner = model._orig_mod if isinstance(model, OptimizedModule) else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    for name, part in model.named_modules():
        if isinstance(part, WRAPPERS):
            raise UserError(
                f"{name}: a {type(part).__name__} inside of the network; give the network without it, and compile or "
                "distribute what comes back"
            )
    return model


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of an unwrapped module, its parameters and buffers of half precision in float32.

    UserError if the module cannot be copied.
    """
    try:
        found = copied(model)
    except Exception as error:  # of foreign code
        raise UserError(f"{type(model).__name__}: cannot be copied ({error}); mend that first") from error
    return found._apply(in_single)


def in_single(batch: Any) -> Any:
    """The batch, or tensor, with its tensors of half precision in float32; without such, it is the same object."""
    if not any(tensor.dtype in HALF for tensor in tensors_in(batch)):
        return batch
    return with_tensors(batch, lambda tensor: tensor.float() if tensor.dtype in HALF else tensor)


def take_types(net: nn.Module, original: nn.Module) -> nn.Module:
    """Give the numbers of ``net`` the precision that they had in ``original``, in place; return ``net``.

    A part of a layer that was replaced takes that of the layer's parameters.
    """
    halves = {
        name: found.pop()
        for name, module in original.named_modules(remove_duplicate=False)
        if len(found := {p.dtype for p in module.parameters(recurse=False) if p.is_floating_point()}) == 1
    }
    buffers = {name: buffer.dtype for name, buffer in original.named_buffers(remove_duplicate=False)}
    for name, module in net.named_modules():
        layer = name
        while layer and layer not in halves:
            layer = layer.rpartition(".")[0]
        dtype = halves.get(layer)
        for parameter in module.parameters(recurse=False):
            if dtype is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for key, buffer in module.named_buffers(recurse=False):
            buffer.data = buffer.data.to(buffers.get(f"{name}.{key}" if name else key, buffer.dtype))
    return net


@contextmanager
def checkpointing(enabled: bool) -> Iterator[None]:
    """Inside, ``torch.utils.checkpoint`` works as it does or, not ``enabled``, runs its function as if not there.

    A pass that computes a layer again counts it twice, or not at all: the reentrant kind gives no gradients in
    activations alone.
    """
    before = checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator_impl
    _use(*(TORCHS if enabled else (_Straight, _once)))
    try:
        yield
    finally:
        _use(*before)


def _use(reentrant: Any, other: Any) -> None:
    checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]
    checkpoint._checkpoint_without_reentrant_generator_impl = other  # type: ignore[assignment]


def _once(*args: Any, **options: Any) -> Iterator[None]:
    """Stands in for what runs before the function, and behind it."""
    yield


class _Straight:
    """Stands in for the reentrant autograd function."""

    @staticmethod
    def apply(function: Any, preserve: bool, *args: Any) -> Any:
        return function(*args)
