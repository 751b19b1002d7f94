"""Rules of operators on tensors of several devices, as on a GPU (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.devices.claimed_generator import draws_elsewhere

COPIES = {"copy_", "_foreach_copy_", "set_"}
"""These take tensors of several devices."""
SCALARS = {"fill", "index_fill", "index_put", "lerp", "masked_fill", "where"}
"""Beside pointwise operators: these, in place or not, take a number on the CPU, as a tensor without dimensions."""
PRODUCTS = {"addmm", "addmv", "baddbmm", "bmm", "dot", "mm", "mv"}
"""On GPUs not of integers."""

PLAIN = {bool, float, int, str, type(None), torch.dtype}
"""The usual arguments that are no tensors: asking torch whether they are takes longer."""


def placed(func: Any, inputs: Sequence[Tensor], devices: Sequence[str], arguments: Sequence[Any]) -> str:
    """Where the outputs of an operator lie that has ``inputs``, some of its ``arguments``, on ``devices``."""
    if func.overloadpacket.__name__ in COPIES:
        return devices[0]
    together = _together(func, inputs, devices, arguments)
    return "cuda" if "cuda" in together else next(iter(together))


def refusals(func: Any, inputs: Sequence[Tensor], devices: Sequence[str], arguments: Sequence[Any]) -> Iterator[str]:
    """Why a GPU would not run it."""
    name, on = func.overloadpacket.__name__, "cuda" if "cuda" in devices else "cpu"
    if (kind := draws_elsewhere(arguments, on)) is not None:
        yield f"{func} on {on} draws from a generator on {kind}"
    if on == "cuda" and name in PRODUCTS and not (inputs[0].is_floating_point() or inputs[0].is_complex()):
        yield f"{func} of integers is not implemented for CUDA"
    if name not in COPIES and len(_together(func, inputs, devices, arguments)) > 1:
        shown = (
            f"{device} {str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
            for x, device in zip(inputs, devices, strict=True)
        )
        yield f"{func} of {', '.join(shown)}"


def tensors(tree: Any) -> list[Tensor]:
    """Those in nested dictionaries, lists and tuples, in order."""
    found: list[Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, (list, tuple)):
        for each in tree:
            _gather(each, found)
    elif isinstance(tree, dict):
        for each in tree.values():
            _gather(each, found)
    elif type(tree) not in PLAIN and isinstance(tree, Tensor):
        found.append(tree)


def _together(func: Any, inputs: Iterable[Tensor], devices: Sequence[str], arguments: Sequence[Any]) -> set[str]:
    """The devices of the inputs, but for numbers on the CPU where they may be there."""
    everywhere = set(devices)
    if len(everywhere) == 1:  # the usual case, and there are many operators
        return everywhere
    name = func.overloadpacket.__name__
    numbers = torch.Tag.pointwise in func.tags or name.rstrip("_") in SCALARS or name.startswith("_foreach")
    together = {
        device
        for x, device in zip(inputs, devices, strict=True)
        if not (numbers and device == "cpu" and x.ndim == 0) or _written(func, arguments, x)
    }
    return together or everywhere


def _written(func: Any, arguments: Sequence[Any], x: Tensor) -> bool:
    """Whether the operator changes ``x`` in place."""
    return any(
        given is x and (info := declared.alias_info) is not None and info.is_write
        for declared, given in zip(func._schema.arguments, arguments, strict=False)
    )
