from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hybridprune.data.resize import resize_images


@pytest.mark.parametrize(("height", "width", "size"), [(40, 30, 16), (8, 8, 12), (9, 24, 9)])
def test_resize_agrees_with_pillow(height: int, width: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, height, width), dtype=torch.uint8, generator=generator)
    resized = resize_images(images, size)
    assert resized.shape == (2, 3, size, size) and resized.is_contiguous()
    for image, result in zip(images, resized, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
        difference = np.asarray(picture).astype(int) - result.permute(1, 2, 0).numpy().astype(int)
        assert np.abs(difference).max() <= 1


def test_resize_in_chunks_equals_resize_of_each() -> None:
    images = torch.randint(256, (1001, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = resize_images(images, 8)
    assert torch.equal(resized[[0, 999, 1000]], torch.cat([resize_images(images[[i]], 8) for i in (0, 999, 1000)]))


@pytest.mark.parametrize(("height", "width", "size", "scaled"), [(40, 30, 14, (21, 16)), (8, 20, 28, (32, 80))])
def test_centre_crop_agrees_with_pillow(height: int, width: int, size: int, scaled: tuple[int, int]) -> None:
    images = torch.randint(256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = resize_images(images, size, centre_crop=True)
    assert resized.shape == (2, 3, size, size) and resized.is_contiguous()
    top, left = ((side - size + 1) // 2 for side in scaled)
    for image, result in zip(images, resized, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture = picture.resize((scaled[1], scaled[0]), Image.Resampling.BILINEAR)
        expected = np.asarray(picture)[top : top + size, left : left + size].astype(int)
        assert np.abs(expected - result.permute(1, 2, 0).numpy().astype(int)).max() <= 1
