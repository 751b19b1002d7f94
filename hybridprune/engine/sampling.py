"""A random sample of the images of a loader, in mixed batches, at a known cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from hybridprune.ambient import seeded
from hybridprune.nested import images_in, joined, some_images, tensors_in

HELD_BYTES = 2**30
"""A sample that has to be kept in memory takes no more."""
READ_AHEAD = 64
"""Of a loader that does not say how long it is, so many times the wanted images are read at most."""


def sampled(loader: Iterable[Any], images: int, seed: int) -> Iterable[Any]:
    """About ``images`` images of ``loader``, each as likely as any other, in random order and in batches of its kind.

    Statistics of the first batches would be those of one class, where a loader is in the order of the classes. The
    same images come each time that the result is gone through. No batch has a single image if the loader's have more.

    A plain ``DataLoader`` of a data set with an index reads just these images, anew each time. Any other loader is gone
    through once, and the sample kept in memory, of at most 1 GiB (else it has fewer images). A loader without a length,
    which may be endless, is read up to 64 times the images that are wanted. The random numbers of the loader, and of
    the process, are not touched, unless what the data set does with an image takes some.
    """
    if (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    ):
        return _by_index(loader, images, seed)
    return _Kept(loader, images, seed)


def _by_index(loader: DataLoader[Any], images: int, seed: int) -> Iterable[Any]:
    states = [(g, g.get_state()) for g in _generators(loader)]
    with seeded(seed):
        batches = [list(batch) for batch in itertools.islice(loader.batch_sampler, _most_batches(loader, images))]  # type: ignore[arg-type]
    for generator, state in states:
        generator.set_state(state)
    places = [place for batch in batches for place in batch]
    if all(isinstance(place, int) for place in places):
        places.sort()  # the choice is the seed's alone
    size = max(map(len, batches), default=1)
    draw = torch.Generator().manual_seed(seed)
    chosen = [places[i] for i in torch.randperm(len(places), generator=draw)[:images].tolist()]
    return DataLoader(
        loader.dataset,
        batch_sampler=[chosen[start:stop] for start, stop in _ranges(len(chosen), size)],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=draw,
        prefetch_factor=loader.prefetch_factor,
    )


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """What going through the loader's indices may draw from, beside the process's own generator."""
    holders = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    return [g for holder in holders if isinstance(g := getattr(holder, "generator", None), torch.Generator)]


@dataclass(frozen=True)
class _Kept:
    """A reservoir (Vitter 1985, algorithm R), filled when it is first asked for."""

    loader: Iterable[Any]
    images: int
    seed: int
    batches: list[Any] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        if not self.batches:
            self.batches.extend(self._read())
        return iter(self.batches)

    def _read(self) -> Iterator[Any]:
        draw = torch.Generator().manual_seed(self.seed)
        kept: list[Any] = []
        seen, size, most = 0, 1, self.images
        for batch in itertools.islice(self.loader, _most_batches(self.loader, self.images)):
            held = images_in(batch)
            if held is None:
                raise ValueError("a batch that does not say how many images it holds")
            if not seen and held:
                size = held
                most = max(2, min(most, HELD_BYTES * held // max(1, sum(t.nbytes for t in tensors_in(batch)))))
            # image number t takes the place of one of the first t + 1, if that is in the sample
            places = torch.rand(held, generator=draw, dtype=torch.float64) * torch.arange(seen + 1, seen + held + 1)
            for number, place in enumerate(places.long().tolist()):
                if len(kept) < most:
                    kept.append(some_images(batch, [number]))
                elif place < most:
                    kept[place] = some_images(batch, [number])
            seen += held
        # as the same images of an indexed data set
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(self.seed)).tolist()
        for start, stop in _ranges(len(kept), size):
            yield from joined([kept[place] for place in order[start:stop]])


def _most_batches(loader: Iterable[Any], images: int) -> int | None:
    """None: all that there are."""
    try:
        len(loader)  # type: ignore[arg-type]
    except TypeError:
        return READ_AHEAD * images
    return None


def _ranges(images: int, size: int) -> list[tuple[int, int]]:
    """Where batches of ``size`` start and stop; a rest of one image joins the batch before it."""
    starts = list(range(0, images, size))
    if size > 1 and images % size == 1 and len(starts) > 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], images], strict=False))
