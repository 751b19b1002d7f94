"""Number formats: what may be computed in fewer bits than fp32 has, and what never is.

Only a network's own passes are. Losses, decisions, prices and all linear algebra are computed outside of autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

P = ParamSpec("P")
R = TypeVar("R")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_backends: Any = torch.backends  # whose attributes are not annotated
_ON_GPUS = (_backends.cuda.matmul, _backends.cudnn.conv, _backends.cudnn.rnn)
_ON_CPUS = (_backends.mkldnn.matmul, _backends.mkldnn.conv, _backends.mkldnn.rnn)


@dataclass(frozen=True)
class Precision:
    """The number format of a network's passes: autocast to ``dtype`` around them, and around nothing else."""

    device_type: str = "cpu"
    dtype: torch.dtype = torch.float32

    @staticmethod
    def of(name: str, device: torch.device) -> Precision:
        """The precision that ``--precision`` names."""
        return Precision(device.type, DTYPES[name])

    def __call__(self, run: Callable[P, R]) -> Callable[P, R]:
        """``run``, a pass through a network, in this precision; the tensors that it returns are fp32 again."""
        if self.dtype == torch.float32:
            return run

        # A context for each pass: within one, weights that were cast once are not cast again when they change.
        @wraps(run)
        def within(*args: P.args, **kwargs: P.kwargs) -> R:
            with torch.autocast(self.device_type, self.dtype):
                found = run(*args, **kwargs)
            return tree_map(_widened, found)

        return within


_INSTRUCTIONS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
"""By format: the extensions of x86-64 of which one computes in it."""


def is_emulated(name: str, device: torch.device) -> bool:
    """Whether the processor has no instructions for the format, so that it takes longer than fp32.

    Known of x86-64 alone; of others, and of GPUs, it is not said.
    """
    if device.type != "cpu" or name not in _INSTRUCTIONS:
        return False
    known = torch.cpu.get_capabilities()
    return known.get("architecture") == "x86_64" and not any(known.get(each) for each in _INSTRUCTIONS[name])


def _widened(value: Any) -> Any:
    narrow = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if narrow else value


FP32 = Precision()


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, products of fp32 numbers may (or must not) be rounded to TF32's 10 bits on GPUs; never to bf16 on CPUs.

    By default torch rounds in cuDNN's convolutions, and not in matrix products.
    """
    backends = *_ON_GPUS, *_ON_CPUS
    before = [backend.fp32_precision for backend in backends]
    # torch has two sets of names for the same flags, and raises where they contradict each other.
    legacy = _readable(lambda: torch.backends.cudnn.allow_tf32), _readable(torch.get_float32_matmul_precision)
    try:
        _set_legacy(allowed, "high" if allowed else "highest")
        for backend in backends:
            backend.fp32_precision = "tf32" if allowed and backend in _ON_GPUS else "ieee"
        yield
    finally:
        _set_legacy(*legacy)
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def _set_legacy(convolutions: bool | None, products: str | None) -> None:
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
    if products is not None:
        torch.set_float32_matmul_precision(products)


def _readable(flag: Callable[[], R]) -> R | None:
    """The flag; None where a caller has set it by its other name."""
    try:
        return flag()
    except RuntimeError:
        return None


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, fp32 is fp32: no autocast, no TF32. For what measures, decides or decomposes."""
    with no_autocast(), tf32(False):
        yield


@contextmanager
def no_autocast() -> Iterator[None]:
    """Inside, a caller's autocast has no effect."""
    with ExitStack() as stack:
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def fp32_precisions() -> dict[str, str]:
    """The precision of fp32 on GPUs now, by operation: ``ieee``, ``tf32`` or ``none`` (torch's default, ieee)."""
    names = "matmul", "conv", "rnn"
    return {name: backend.fp32_precision for name, backend in zip(names, _ON_GPUS, strict=True)}
