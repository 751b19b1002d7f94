"""Storages that count as a GPU's: a tensor's device is that of its storage, here as on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef


class Storages:
    """Those that are claimed to lie on the GPU."""

    def __init__(self) -> None:
        self._claimed: dict[int, StorageWeakRef] = {}

    def device(self, x: Tensor) -> str:
        """The kind of device that a tensor claims to be on."""
        if isinstance(x, FakeTensor) or x.layout != torch.strided or x.is_meta:
            return x.device.type
        return "cuda" if x.untyped_storage()._cdata in self._claimed else "cpu"

    def claim(self, x: Tensor, device: str) -> Tensor:
        """Note where the storage of ``x``, a new one, lies; returns ``x``."""
        if device != "cuda" or isinstance(x, FakeTensor) or x.layout != torch.strided or x.is_meta:
            return x
        if len(self._claimed) % 4096 == 4095:
            self._claimed = {key: each for key, each in self._claimed.items() if not each.expired()}
        # A reference, however weak, keeps the number from being given to another storage.
        storage = x.untyped_storage()
        self._claimed[storage._cdata] = StorageWeakRef(storage)
        return x
