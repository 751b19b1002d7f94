"""Randomness by name: every stream is a generator seeded from the run's seed and what the stream is for."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments, so that a resumed run draws the same numbers."""
    text = "/".join(str(part) for part in (seed, *purpose))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def stream_seed(seed: int, *purpose: str | int) -> int:
    """The seed of ``generator(seed, *purpose)`` for consumers that make their own generators."""
    return generator(seed, *purpose).initial_seed()
