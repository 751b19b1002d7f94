from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridprune.data import Batch, EvalBatches, LabelledImages, TrainBatches, batch_sizes

_N = 41
_PLAIN: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "device": "cpu", "channels_last": False}


def _data() -> LabelledImages:
    """Pixels in 1..255, so that 0 is padding; with _PLAIN a batch holds the bytes themselves."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (_N, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(_N) % 7)


def _batches(ids: torch.Tensor | None = None, **changes: Any) -> TrainBatches:
    arguments = {"batch_size": 8, "crop": True, "flip": True, "seed": 3, **_PLAIN, **changes}
    return TrainBatches(_data(), torch.arange(_N) if ids is None else ids, **arguments)


def _same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.ids, b.ids)
        for a, b in zip(left, right, strict=True)
    )


def _by_index(batches: TrainBatches, epoch: int) -> dict[int, torch.Tensor]:
    seen = [
        (index, image)
        for batch in batches.epoch(epoch)
        for index, image in zip(batch.ids.tolist(), batch.images, strict=True)
    ]
    assert len(dict(seen)) == len(seen), "an image came twice"
    return dict(seen)


def test_labels_belong_to_the_index() -> None:
    data = _data()
    for batch in _batches().epoch(0):
        assert torch.equal(batch.labels, data.labels[batch.ids])


def test_each_image_is_some_crop_of_the_image_at_its_index() -> None:
    data = _data()
    mirrored = 0
    offsets = set()
    for index, image in _by_index(_batches(), 0).items():
        padded = torch.nn.functional.pad(data.images[index].float(), (2, 2, 2, 2))
        matches = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.allclose(
                image,
                padded[:, top : top + 16, left : left + 16].flip(2)
                if flip
                else padded[:, top : top + 16, left : left + 16],
            )
        ]
        assert len(matches) == 1
        offsets.add(matches[0][:2])
        mirrored += matches[0][2]
    assert 8 <= mirrored <= 32 and len(offsets) > 10


def test_augmentation_is_keyed_by_the_image() -> None:
    whole = _by_index(_batches(batch_size=8), 4)
    ids = torch.tensor([30, 2, 17, 5, 9, 11, 23])
    part = _by_index(_batches(ids, batch_size=3), 4)
    assert set(part) <= set(ids.tolist()) and len(part) == 6
    shared = set(part) & set(whole)
    assert shared and all(torch.equal(part[index], whole[index]) for index in shared)


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_a_resumed_epoch_continues_exactly(start: int) -> None:
    assert _same(list(_batches().epoch(7))[start:], list(_batches().epoch(7, start)))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = list(_batches().epoch(0))
    assert _same(first, list(_batches().epoch(0)))
    assert not _same(first, list(_batches().epoch(1)))
    assert not _same(first, list(_batches(seed=4).epoch(0)))
    assert not _same(list(_batches(seed=0).epoch(1)), list(_batches(seed=1).epoch(0)))


def test_without_crop_and_flip_the_images_are_unchanged() -> None:
    data = _data()
    for index, image in _by_index(_batches(crop=False, flip=False), 0).items():
        assert torch.allclose(image, data.images[index].float())


@pytest.mark.parametrize(
    ("images", "sizes"),
    [(3, [3]), (8, [8]), (11, [8, 3]), (16, [8, 8]), (17, [8, 8]), (41, [8] * 5)],
)
def test_batch_sizes(images: int, sizes: list[int]) -> None:
    batches = _batches(torch.arange(images))
    assert [len(batch.ids) for batch in batches.epoch(0)] == sizes
    assert len(batches) == len(sizes)


def test_every_id_is_seen_when_nothing_is_dropped() -> None:
    ids = torch.arange(1, 17) * 2
    assert set(_by_index(_batches(ids), 0)) == set(ids.tolist())


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(channels_last: bool) -> None:
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    settings = {**_PLAIN, "channels_last": channels_last}
    train = next(_batches(channels_last=channels_last).epoch(0))
    evaluation = next(iter(EvalBatches(_data(), None, batch_size=8, **settings)))
    assert all(batch.images.is_contiguous(memory_format=wanted) for batch in (train, evaluation))


@pytest.mark.parametrize("ids", [None, torch.tensor([9, 1, 40, 3, 2])])
def test_evaluation_is_everything_in_order(ids: torch.Tensor | None) -> None:
    data = _data()
    batches = EvalBatches(data, ids, batch_size=3, **_PLAIN)
    expected = torch.arange(_N) if ids is None else ids
    for _ in range(2):
        seen = list(batches)
        assert len(seen) == len(batches)
        assert torch.equal(torch.cat([batch.ids for batch in seen]), expected)
        assert torch.equal(torch.cat([batch.labels for batch in seen]), data.labels[expected])
        assert torch.allclose(torch.cat([batch.images for batch in seen]), data.images[expected].float())


@given(st.integers(1, 60), st.integers(1, 20))
def test_the_sizes_of_an_epochs_batches(images: int, batch_size: int) -> None:
    sizes = batch_sizes(images, batch_size)
    full = images // batch_size
    assert sizes[:full] == [batch_size] * full and len(sizes) >= 1
    rest = images - batch_size * full
    assert sizes[full:] == ([rest] if (full == 0 or (full == 1 and rest > 1)) else [])
