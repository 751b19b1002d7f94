"""Running a network on numbers that it was not written for, such as NaN, without harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

OWN = frozenset({"aten", "prim", "prims", "profiler"})
"""Namespaces of torch's own operations, and of the marks that ``DataParallel`` and others leave for a profiler."""


class ForeignOperation(RuntimeError):
    """The network has come to an operation that is not torch's."""


class TorchAlone(TorchDispatchMode):
    """Inside, an operation that is not torch's own raises ForeignOperation and is not run.

    Torch's operations take NaN in their stride. Others need not: torchvision's RoIAlign turns coordinates into
    addresses, and a box that is NaN ends the process. ``cleaned``, if there is one, gives the numbers that such an
    operation is to be run on instead of its own arguments.
    """

    def __init__(self, cleaned: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None) -> None:
        super().__init__()
        self._cleaned = cleaned

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run torch's own operation, or another on cleaned numbers."""
        if func.namespace not in OWN:
            if self._cleaned is None:
                raise ForeignOperation(f"{func.namespace}.{func.__name__} is not an operation of torch's own")
            args = self._cleaned(args)
        operation: Callable[..., Any] = func
        return operation(*args, **(kwargs or {}))
