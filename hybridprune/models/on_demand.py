"""A tensor that is computed when somebody reads its values, and not when only its type or shape is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class OnDemand(Tensor):
    """A tensor that ``compute()`` will return: the first operation on it gets that in its place, every time anew.

    Its ``dtype``, ``device`` and ``requires_grad`` are those of ``like``, its shape is ``shape``.
    """

    def __init__(self, compute: Callable[[], Tensor], like: Tensor, shape: Sequence[int]) -> None:
        self._compute = compute

    @staticmethod
    def __new__(cls, compute: Callable[[], Tensor], like: Tensor, shape: Sequence[int]) -> OnDemand:
        options: dict[str, Any] = {name: getattr(like, name) for name in ("dtype", "device", "requires_grad")}
        return Tensor._make_wrapper_subclass(cls, shape, **options)  # type: ignore[attr-defined]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(OnDemand, lambda tensor: tensor._compute(), (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} has met a tensor without values")


_ATTRIBUTES = ("dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_cuda")
_METHODS = ("size", "dim", "numel", "is_floating_point", "__len__")
_KNOWN = {*(getattr(Tensor, name).__get__ for name in _ATTRIBUTES), *(getattr(Tensor, name) for name in _METHODS)}
"""What can be answered without values."""
