"""Several processes of one run, started by torchrun: who they are, and handing a network from the first to all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(days=30)
"""The first process trains while the others wait."""


def world_size() -> int:
    """How many processes torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(device: torch.device) -> torch.device:
    """This process's own GPU where ``device`` is a GPU, else ``device``."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.type == "cuda" else device


@contextmanager
def process_group(device: torch.device) -> Iterator[int]:
    """Join the other processes; yields this one's rank. Without torchrun there is nobody to join."""
    if world_size() == 1:
        yield 0
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def send_text(text: str, device: torch.device) -> None:
    """Give a text to the other processes, which call ``receive_text``."""
    if world_size() > 1:
        content = torch.tensor([*text.encode()], dtype=torch.uint8, device=device)
        dist.broadcast(torch.tensor([len(content)], device=device), 0)
        if len(content):
            dist.broadcast(content, 0)


def receive_text(device: torch.device) -> str:
    """The text that the first process sends."""
    length = torch.zeros(1, dtype=torch.int64, device=device)
    dist.broadcast(length, 0)
    content = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if len(content):
        dist.broadcast(content, 0)
    return bytes(content.tolist()).decode()


def share_weights(net: nn.Module) -> None:
    """Give every process the first one's parameters and buffers of the same network, in place."""
    if world_size() > 1:
        for tensor in net.state_dict().values():
            content: Tensor = tensor.contiguous()
            dist.broadcast(content, 0)
            tensor.copy_(content)
