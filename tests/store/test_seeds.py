"""Streams of randomness by name."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.store.seeds import generator, stream_seed


def numbers(seed: int, *purpose: str | int) -> list[int]:
    return torch.randint(2**31, (4,), generator=generator(seed, *purpose)).tolist()


def test_a_stream_depends_on_nothing_but_its_name() -> None:
    before = numbers(0, "rollout", 3)
    torch.manual_seed(123)
    torch.rand(5)
    assert numbers(0, "rollout", 3) == before


def test_streams_differ_by_seed_purpose_and_number() -> None:
    names = list(itertools.product((0, 1, 10), ("rollout", "initialisation"), (0, 1, 10)))
    assert len({tuple(numbers(*name)) for name in names}) == len(names)
    assert numbers(1, "a", 1) != numbers(11, "a") and numbers(0, "a") != numbers(0, "a", 0)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    generator(0, "rollout")
    assert torch.equal(torch.rand(3), expected)


@given(st.integers(0, 2**40), st.text())
def test_stream_seed_gives_the_same_stream(seed: int, purpose: str) -> None:
    again = torch.Generator().manual_seed(stream_seed(seed, purpose))
    assert torch.equal(torch.rand(3, generator=again), torch.rand(3, generator=generator(seed, purpose)))
