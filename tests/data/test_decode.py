from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridprune.data.decode import decode_file, decode_files
from hybridprune.errors import UserError
from tests.data.image_trees import write_image


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_rgb_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    pixels = write_image(tmp_path / f"a.{suffix}", seed=1, size=(5, 7))
    assert np.array_equal(decode_file(tmp_path / f"a.{suffix}").permute(1, 2, 0), pixels)


def test_jpeg_is_read_closely(tmp_path: Path) -> None:
    rows = np.linspace(0, 255, 32).astype(np.uint8)
    pixels = np.stack(
        [np.broadcast_to(rows, (32, 32)), np.broadcast_to(rows[:, None], (32, 32)), np.full((32, 32), 90)], 2
    )
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    difference = decode_file(tmp_path / "a.jpg").permute(1, 2, 0).numpy().astype(int) - pixels
    assert np.abs(difference).mean() < 4


def _truncated(path: Path) -> None:
    write_image(path, seed=1, size=(32, 32))
    path.write_bytes(path.read_bytes()[:1500])


def _text(path: Path) -> None:
    path.write_text("not an image")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _float(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(path, format="TIFF")


def _narrow(path: Path) -> None:
    Image.fromarray(np.full((4, 4), 4095, dtype=np.uint16)).save(path, format="TIFF")


@pytest.mark.parametrize("break_file", [_truncated, _text, _empty, _float, _narrow])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, break_file, num_workers: int) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        write_image(path, seed=1)
    break_file(paths[1])
    with pytest.raises(UserError, match=r"1\.png: cannot be decoded") as caught:
        decode_files([str(path) for path in paths], resize=8, num_workers=num_workers, title="")
    assert "\n" not in str(caught.value)


def test_threads_give_what_one_thread_gives(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number:03}.png") for number in range(150)]
    pixels = [write_image(Path(path), seed=number) for number, path in enumerate(paths)]
    images = decode_files(paths, resize=8, num_workers=2, title="")
    assert np.array_equal(images.permute(0, 2, 3, 1), np.stack(pixels))
    assert torch.equal(images, decode_files(paths, resize=8, num_workers=0, title=""))
