"""Small image trees for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> np.ndarray:
    """Write random pixels (height x width = ``size``) to a file and return them."""
    generator = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = generator.integers(0, 256, (*size, channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
    return pixels


def make_tree(
    root: Path,
    *,
    classes: tuple[str, ...] = ("bee", "ant"),
    folders: tuple[str, str] = ("train", "test"),
    counts: tuple[int, int] = (3, 2),
    suffix: str = "png",
) -> dict[str, np.ndarray]:
    """Write a tree; returns the pixels by relative path."""
    pixels = {}
    for folder, count in zip(folders, counts, strict=True):
        for name in classes:
            for number in range(count):
                relative = f"{folder}/{name}/{number}.{suffix}"
                pixels[relative] = write_image(root / relative, seed=len(pixels))
    return pixels
