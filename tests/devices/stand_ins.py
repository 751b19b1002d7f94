"""Stand-ins for functions of torch while a GPU is claimed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from tests.devices.claimed_generator import ClaimedGenerator

Entered = Callable[[Callable[..., Any]], Callable[..., Any]]


def stand_ins(entered: Entered, export: Callable[..., Any]) -> list[tuple[Any, str, Any]]:
    """Where, under which name and what; ``entered`` makes a function that calls Python again see the claims."""
    engine, enabled = entered(torch.autograd.graph._engine_run_backward), torch.is_autocast_enabled

    class Autocast(torch.autocast):
        """That of the CPU in the place of CUDA's."""

        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(_on_cpu(device_type), *args, **kwargs)

    return [
        (torch, "autocast", Autocast),
        (torch, "is_autocast_enabled", lambda *device: enabled(*map(_on_cpu, device))),
        (torch, "Generator", ClaimedGenerator),
        (torch.accelerator, "is_available", lambda: False),
        (torch.autograd, "_engine_run_backward", engine),
        (torch.autograd.graph, "_engine_run_backward", engine),
        (torch.export, "export", export),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "default_generators", (torch.default_generator,)),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "get_device_name", lambda *device: "claimed"),
        (torch.cuda, "get_device_properties", lambda *device: SimpleNamespace(major=0, minor=0)),
        (torch.cuda, "get_rng_state", lambda *device: torch.get_rng_state()),
        (torch.cuda, "init", lambda: None),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_current_stream_capturing", lambda: False),
        (torch.cuda, "set_device", lambda device: None),
        (torch.cuda, "set_rng_state", lambda state, *device: None),
        (torch.cuda, "synchronize", lambda *device: None),
    ]


def _on_cpu(device: str) -> str:
    return "cpu" if device == "cuda" else device
