"""Streamed images: the same batches whoever decodes them, in whichever process and from wherever an epoch goes on."""

from __future__ import annotations

import multiprocessing
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hybridprune.data import Batch, EvalBatches, TrainBatches
from hybridprune.data import stream as stream_module
from hybridprune.data.augment import mixed_seed
from hybridprune.data.resize import resize_images
from hybridprune.data.stream import ImageFiles
from hybridprune.errors import UserError
from tests.data.image_trees import write_image

N, SIZE = 22, 16
BYTES: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "device": "cpu", "channels_last": False}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of different sizes."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(N):
        write_image(folder / f"{number}é.png", seed=number, size=(24 + number, 40 - number))
    return [str(folder / f"{number}é.png") for number in range(N)]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, on machines with one core too."""
    monkeypatch.setattr(stream_module, "_cores", lambda: 2)


def _files(paths: list[str], workers: int = 0) -> ImageFiles:
    return ImageFiles(paths, torch.arange(len(paths)) % 4, size=SIZE, num_workers=workers)


def _train(paths: list[str], workers: int = 0, **changes: Any) -> TrainBatches:
    options = {"batch_size": 6, "crop": True, "flip": True, "seed": 3, **BYTES, **changes}
    return TrainBatches(_files(paths, workers), torch.arange(2, N), **options)


def _same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.ids, b.ids)
        for a, b in zip(left, right, strict=True)
    )


def test_batches_are_torchvisions_crops_of_the_images_they_name(paths: list[str]) -> None:
    """The epoch's draws: a seed first, then the order; an image's draws by that seed and its number."""
    draws = torch.Generator().manual_seed(mixed_seed(3, 5))
    epoch_seed = int(torch.randint(2**62, (), generator=draws))
    order = torch.arange(2, N)[torch.randperm(N - 2, generator=draws)]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batches = list(_train(paths, mean=mean, std=std).epoch(5))
    assert [len(batch.ids) for batch in batches] == [6, 6, 6]
    assert torch.equal(torch.cat([batch.ids for batch in batches]), order[:18])
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    for batch in batches:
        assert torch.equal(batch.labels, batch.ids % 4)
        for index, image in zip(batch.ids.tolist(), batch.images, strict=True):
            pixels = torch.from_numpy(np.array(Image.open(paths[index]))).permute(2, 0, 1)
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(mixed_seed(epoch_seed, index))
                torch.testing.assert_close(image, transform(pixels), rtol=1e-5, atol=1e-5)


def test_workers_change_nothing(paths: list[str]) -> None:
    alone, helped = _train(paths), _train(paths, workers=2)
    before = torch.get_rng_state()
    for epoch in (0, 1, 4):
        assert _same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    assert torch.equal(torch.get_rng_state(), before), "others draw from the global stream"
    assert not _same(list(helped.epoch(0)), list(helped.epoch(1)))
    assert not _same(list(helped.epoch(0)), list(_train(paths, workers=2, seed=4).epoch(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_anywhere(paths: list[str], workers: int) -> None:
    batches = _train(paths, workers)
    whole = list(batches.epoch(7))
    for start in range(4):
        assert _same(whole[start:], list(batches.epoch(7, start)))


@pytest.mark.parametrize("workers", [0, 2])
def test_readings_that_are_left_or_overlap(paths: list[str], workers: int) -> None:
    batches = _train(paths, workers)
    whole = list(batches.epoch(2))
    for batch in batches.epoch(1):
        assert len(batch.ids) == 6
        break
    together = list(zip(batches.epoch(2), batches.epoch(3), strict=True))
    assert _same([one for one, _ in together], whole)
    assert _same([other for _, other in together], list(batches.epoch(3)))


def test_shares_are_those_of_one_process(paths: list[str]) -> None:
    whole = list(_train(paths).epoch(6))
    parts = [list(_train(paths, rank=rank, processes=2).epoch(6)) for rank in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
        assert torch.equal(batch.labels, torch.cat([share.labels for share in shares]))
        assert [share.share and (share.share.start, share.share.stop) for share in shares] == [(0, 3), (3, 6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_the_middles_in_order(paths: list[str], workers: int) -> None:
    ids = torch.tensor([9, 0, 20, 1, 2])
    pixels = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]
    expected = torch.cat([resize_images(pixels[index][None], SIZE, centre_crop=True) for index in ids])
    batches = EvalBatches(_files(paths, workers), ids, batch_size=2, **BYTES)
    for _ in range(2):
        seen = list(batches)
        assert [len(batch.ids) for batch in seen] == [2, 2, 1]
        assert torch.equal(torch.cat([batch.ids for batch in seen]), ids)
        assert torch.equal(torch.cat([batch.labels for batch in seen]), ids % 4)
        torch.testing.assert_close(torch.cat([batch.images for batch in seen]), expected.float())
    assert torch.equal(_files(paths).pixels(ids), expected)
    plain = list(_train(paths, crop=False, flip=False).epoch(0))
    for batch in plain:
        torch.testing.assert_close(batch.images, _files(paths).pixels(batch.ids).float())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line(paths: list[str], tmp_path: Path, workers: int) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(paths[3]).read_bytes()[:200])
    files = _files([*paths[:10], str(broken), str(tmp_path / "gone.png")], workers)
    reader = files.plain([torch.tensor([0, 1]), torch.tensor([2, 10]), torch.tensor([11])], lambda images: images)
    assert next(reader).shape == (2, 3, SIZE, SIZE)
    with pytest.raises(UserError, match=r"broken\.png: cannot be decoded") as error:
        next(reader)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"gone\.png"):
        list(files.plain([torch.tensor([11])], lambda images: images))
    assert len(list(files.plain([torch.tensor([4])], lambda images: images))) == 1  # the workers live


@pytest.mark.full
@pytest.mark.parametrize("name", [pytest.param("INT", marks=pytest.mark.exhaustive), "TERM"])
def test_only_the_main_process_ends_the_workers(name: str, paths: list[str]) -> None:
    """What a terminal or a scheduler sends to all processes does not."""
    files = _files(paths, 2)
    reader = files.plain([torch.tensor([number]) for number in range(N)], lambda images: images)
    next(reader)
    workers = [str(process.pid) for process in multiprocessing.active_children()]
    assert len(workers) >= 2
    subprocess.run(["kill", f"-{name}", *workers], check=True)
    assert len(list(reader)) == N - 1
    for process in multiprocessing.active_children():
        process.terminate()
        process.join(10)
        assert process.exitcode == 0


def test_no_more_workers_than_cores(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_cores", lambda: 1)
    files = _files(paths, workers=64)
    next(files.plain([torch.tensor([0])], lambda images: images))
    assert files._idle == [] or files._idle[0]._loader.num_workers == 1
