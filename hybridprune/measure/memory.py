"""Memory that a network takes in inference: its weights, and the tensors that are alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakOfTensors(TorchDispatchMode):
    """Inside, the bytes of all tensors that are made and not yet freed; `peak` is the most at one time.

    A storage counts once, from its making to the last view of it. What an operation takes for itself and gives back
    before it ends is not seen, on any device: this is the network's demand, to which kernels add their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._storages: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        known = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for each in tree_leaves(found):
            if isinstance(each, Tensor) and id(each.untyped_storage()) not in known:
                self._add(each.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return
        self._storages[key] = weakref.finalize(storage, self._free, key, size)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _free(self, key: int, size: int) -> None:
        del self._storages[key]
        self.alive -= size


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, shared ones once."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


@torch.inference_mode()
def activation_bytes(module: nn.Module, images: Tensor) -> int:
    """Peak of the tensors that ``module(images)`` makes, in bytes; images and weights are not among them."""
    with PeakOfTensors() as found:
        module(images)
    return found.peak
