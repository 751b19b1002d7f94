"""Samples of a loader: which images, how often, in which batches, at what cost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

from hybridprune.engine import sampling
from hybridprune.engine.sampling import READ_AHEAD, sampled

IMAGES = torch.arange(46.0).view(46, 1, 1, 1).expand(46, 3, 2, 2)
CLASSES = torch.arange(46) // 12
PARTS = list(zip(IMAGES.split(15), CLASSES.split(15), strict=True))
"""In class order, the last batch of one image."""


class Read(Dataset[tuple[Tensor, Tensor]]):
    """Remembers what was read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        self.read.append(place)
        return IMAGES[place], CLASSES[place]


class Streamed:
    """A loader without a length or an index."""

    def __init__(self, parts: Iterable[Any]) -> None:
        self.parts, self.read = parts, 0

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts:
            self.read += 1
            yield part


def numbers(batches: Iterable[Any]) -> list[list[int]]:
    """The images of each batch by number, whose classes must have come with them."""
    found = []
    for images, labels in batches:
        places = images[:, 0, 0, 0].long()
        assert labels.equal(CLASSES[places])
        found.append(places.tolist())
    return found


LOADERS = {
    "index": lambda: DataLoader(TensorDataset(IMAGES, CLASSES), batch_size=15),
    "shuffled": lambda: DataLoader(TensorDataset(IMAGES, CLASSES), batch_size=15, shuffle=True),
    "list": lambda: PARTS,
    "stream": lambda: Streamed(PARTS),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_all_images_come_once_in_mixed_batches_none_of_them_alone(kind: str) -> None:
    batches = numbers(sampled(LOADERS[kind](), 1000, seed=0))
    assert sorted(itertools.chain(*batches)) == list(range(46))
    assert [len(batch) for batch in batches] == [15, 15, 16]
    assert all(len({place // 12 for place in batch}) == 4 for batch in batches), batches


@pytest.mark.parametrize("kind", LOADERS)
def test_a_sample_is_the_seeds_alone(kind: str) -> None:
    loader = LOADERS[kind]()
    once, other = sampled(loader, 20, seed=3), sampled(loader, 20, seed=4)
    torch.manual_seed(1)
    first = numbers(once)
    torch.manual_seed(2)
    assert first == numbers(once) == numbers(sampled(LOADERS[kind](), 20, seed=3)) != numbers(other)
    assert [len(batch) for batch in first] == [15, 5] and len(set(itertools.chain(*first))) == 20


@pytest.mark.parametrize("kind", ["index", "list"])
def test_every_image_is_as_likely_as_any_other(kind: str) -> None:
    """Also that of the batch that has no other."""
    drawn, trials, wanted = Counter[int](), 300, 9
    loader = LOADERS[kind]()
    for seed in range(trials):
        drawn.update(itertools.chain(*numbers(sampled(loader, wanted, seed))))
    share = wanted / 46
    deviation = (trials * share * (1 - share)) ** 0.5
    assert all(abs(drawn[place] - trials * share) < 4.5 * deviation for place in range(46)), drawn


def test_of_an_indexed_data_set_no_other_images_are_read() -> None:
    data = Read()
    assert sum(map(len, numbers(sampled(DataLoader(data, batch_size=15), 10, seed=0)))) == 10
    assert len(data.read) == 10


def test_only_what_the_loaders_sampler_gives_comes() -> None:
    chosen = [3, 17, 18, 40, 41]
    loader = DataLoader(TensorDataset(IMAGES, CLASSES), batch_size=3, sampler=SubsetRandomSampler(chosen))
    assert sorted(itertools.chain(*numbers(sampled(loader, 1000, seed=0)))) == chosen


@pytest.mark.parametrize("own", [False, True])
def test_generators_are_as_they_were(own: bool) -> None:
    generator = torch.Generator().manual_seed(5) if own else None
    loader = DataLoader(TensorDataset(IMAGES, CLASSES), batch_size=15, shuffle=True, generator=generator)
    before = torch.get_rng_state(), None if generator is None else generator.get_state()
    numbers(sampled(loader, 20, seed=0))
    numbers(sampled(PARTS, 20, seed=0))
    assert torch.get_rng_state().equal(before[0])
    assert generator is None or before[1] is None or generator.get_state().equal(before[1])


def test_a_sample_does_not_depend_on_what_the_loader_has_given_before() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(IMAGES, CLASSES), batch_size=15, shuffle=True, generator=generator)
    before = numbers(sampled(loader, 20, seed=0))
    next(iter(loader))
    assert numbers(sampled(loader, 20, seed=0)) == before


def test_a_loader_without_an_index_is_gone_through_once() -> None:
    loader = Streamed(PARTS)
    sample = sampled(loader, 20, seed=0)
    assert loader.read == 0
    assert numbers(sample) == numbers(sample) and loader.read == len(PARTS)


def test_an_endless_loader_ends() -> None:
    loader = Streamed(itertools.cycle(PARTS))
    assert sum(map(len, numbers(sampled(loader, 3, seed=0)))) == 3
    assert loader.read == 3 * READ_AHEAD


def test_a_loader_without_batches_gives_none() -> None:
    assert list(sampled([], 5, seed=0)) == list(sampled(DataLoader(TensorDataset(IMAGES[:0])), 5, seed=0)) == []


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    image = IMAGES[0].numel() * 4 + 8
    monkeypatch.setattr(sampling, "HELD_BYTES", 10 * image)
    assert sum(map(len, numbers(sampled(PARTS, 40, seed=0)))) == 10


def test_batches_of_any_structure() -> None:
    images = [torch.full((3, 4 + n, 5), float(n)) for n in range(7)]
    detection = [(images[:4], [{"id": n} for n in range(4)]), (images[4:], [{"id": n} for n in range(4, 7)])]
    found = list(sampled(detection, 5, seed=0))
    assert [len(batch) for batch, _ in found] == [5]
    assert [int(image[0, 0, 0]) for image in found[0][0]] == [target["id"] for target in found[0][1]]

    padded = [{"x": torch.zeros(3, length), "y": torch.full((3,), length)} for length in (4, 6)]
    each = list(sampled(padded, 4, seed=0))
    assert sum(len(batch["x"]) for batch in each) == 4 and all(batch["x"].shape[1] == batch["y"][0] for batch in each)
