"""Image files into one uint8 tensor, by a pool of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hybridprune.data.pixels import rgb_pixels
from hybridprune.data.resize import resize_images
from hybridprune.errors import UserError

IMG_TYPES: dict[str, tuple[str, ...]] = {
    "png": (".png",),
    "jpg": (".jpg", ".jpeg"),
    "webp": (".webp",),
    "gif": (".gif",),
    "bmp": (".bmp",),
    "tiff": (".tif", ".tiff"),
    "ppm": (".ppm", ".pgm", ".pbm"),
}
# The content of a file chooses the decoder, whatever its name; Pillow would hand others to outside programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_CHUNK = 64  # files a task: with one each, the pool would cost more than decoding a small image


def decode_file(path: str | Path) -> Tensor:
    """The image in a file, upright and as RGB, uint8 ``[3, h, w]``.

    Raises ``UserError`` with the file's name if it cannot be decoded, or has no such form (`rgb_pixels`).
    """
    # Pillow and not torchvision.io, which is deprecated (it warns at every call) and slower on small files.
    try:
        with Image.open(path, formats=_FORMATS) as image:
            pixels = rgb_pixels(image)
    except Exception as error:  # decoders raise nearly anything on broken bytes
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be decoded ({reason}); repair or replace the file") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_files(paths: Sequence[str], *, resize: int, num_workers: int, title: str) -> Tensor:
    """Decode and resize files into uint8 ``[N, 3, resize, resize]``, with a progress bar on stderr.

    ``num_workers`` threads (at most one a processor core); 0 decodes in the calling thread.
    """
    images = torch.empty(len(paths), 3, resize, resize, dtype=torch.uint8)

    def decode_chunk(start: int) -> int:
        chunk = paths[start : start + _CHUNK]
        for offset, path in enumerate(chunk):
            images[start + offset] = resize_images(decode_file(path)[None], resize)[0]
        return len(chunk)

    starts = range(0, len(paths), _CHUNK)
    workers = min(num_workers, os.cpu_count() or 1)
    with tqdm(total=len(paths), desc=title, unit=" images", disable=None) as progress:
        for done in _map(decode_chunk, starts, workers):
            progress.update(done)
    return images


def _map(function, items: Sequence[int], workers: int) -> Iterator[int]:
    if workers <= 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)
