"""Torch's process-wide state, which a caller may have set: generators, autocast, gradients, defaults.

A library has no business changing it, and must not depend on it either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from hybridprune.precision import no_autocast

CPU = torch.device("cpu")


def reseed(number: int, device: torch.device) -> None:
    """Let torch's own generators of the CPU and of ``device`` start from ``number``.

    ``torch.manual_seed`` would do it to those of all other devices as well.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(number)


@contextmanager
def kept_generators(device: torch.device = CPU) -> Iterator[None]:
    """Inside, torch's own generators of the CPU and of ``device`` may draw; then they go on as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        yield


@contextmanager
def seeded(number: int, device: torch.device = CPU) -> Iterator[None]:
    """Inside, torch's own generators of the CPU and of ``device`` start from ``number``; then they go on as before."""
    with kept_generators(device):
        reseed(number, device)
        yield


@contextmanager
def isolated(seed: int = 0, device: torch.device = CPU, dtype: torch.dtype | None = torch.float32) -> Iterator[None]:
    """Inside, torch is as a new process finds it, with generators that start from ``seed``; then it is as it was.

    Whatever the caller has set: no autocast, gradients are recorded, tensors are on the CPU and of type ``dtype``
    unless it is said. None leaves the type to the caller, whose own networks and data may count on it, if it is fp32 or
    fp64: nothing is measured in half precision.
    """
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(seeded(seed, device))
        stack.enter_context(no_autocast())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device() != CPU:
            stack.enter_context(CPU)
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(dtype or torch.promote_types(before, torch.float32))
        yield
