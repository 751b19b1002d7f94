"""Random resized crops: torchvision's own for the same draws, and which part of an image they really show."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from hybridprune.data.augment import mixed_seed, resized_crop_flip
from hybridprune.data.resize import resize_images

HEIGHT, WIDTH, SIZE = 200, 240, 32


def _noise(height: int = 30, width: int = 44) -> Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("flip", [False, True])
def test_torchvision_with_the_same_parameters(seed: int, flip: bool) -> None:
    image, seed = _noise(), mixed_seed(seed)
    found = resized_crop_flip(image, 16, crop=True, flip=flip, seed=seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        parameters = v2.RandomResizedCrop(16).make_params([image])
        mirrored = flip and bool(torch.rand(1) < 0.5)
    box = [parameters[name] for name in ("top", "left", "height", "width")]
    expected = v2.functional.resized_crop(image, *box, size=[16, 16], antialias=True)
    assert torch.equal(found, expected.flip(2) if mirrored else expected)


def _shown(seed: int) -> tuple[float, float, float, float, bool]:
    """Top, left, height and width of the part that a draw shows, to about a pixel, and whether it is mirrored.

    The image says where each of its pixels was: red is the column, green the row.
    """
    row, column = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    image = torch.stack([column, row, row]).to(torch.uint8)
    columns, rows = resized_crop_flip(image, SIZE, crop=True, flip=True, seed=seed)[:2].double()
    columns, rows = columns.mean(0), rows.mean(1)
    mirrored = bool(columns[-1] < columns[0])
    if mirrored:
        columns = columns.flip(0)
    # Pixel i of n shows the source at start + (i + 1/2) length / n - 1/2; the two at each edge see less.
    found = []
    for places in (rows, columns):
        length = float(places[-3] - places[2]) * SIZE / (SIZE - 5)
        found += [float(places[2]) + 0.5 - 2.5 * length / SIZE, length]
    return found[0], found[2], found[1], found[3], mirrored


def test_what_is_shown_is_distributed_as_published() -> None:
    count, slack = 400, 2.5
    tops, lefts, areas, ratios, mirrored = [], [], [], [], 0
    for number in range(count):
        top, left, height, width, flipped = _shown(mixed_seed(number, 7))
        assert top > -slack and left > -slack and top + height < HEIGHT + slack and left + width < WIDTH + slack
        tops.append((top + slack) / (HEIGHT - height + 2 * slack))
        lefts.append((left + slack) / (WIDTH - width + 2 * slack))
        areas.append(height * width / (HEIGHT * WIDTH))
        ratios.append(math.log(width / height))
        mirrored += flipped
    assert 0.08 * 0.9 < min(areas) < 0.12 and 0.85 < max(areas) < 1.05
    assert (
        math.log(3 / 4) - 0.06 < min(ratios) < math.log(0.8) and math.log(1.25) < max(ratios) < math.log(4 / 3) + 0.06
    )
    # Areas are uniform but for the large ones, of which not every aspect fits.
    assert sum(area < 0.31 for area in areas) / count == pytest.approx(0.25, abs=0.07)
    assert sum(ratios) / count == pytest.approx(0, abs=0.05)
    for places in (tops, lefts):
        assert sum(places) / count == pytest.approx(0.5, abs=0.06)
        assert sum(place < 0.25 for place in places) / count == pytest.approx(0.25, abs=0.08)
    assert mirrored / count == pytest.approx(0.5, abs=0.08)


def test_without_a_crop_it_is_the_middle() -> None:
    middle = resize_images(_noise()[None], 16, centre_crop=True)[0]
    found = [resized_crop_flip(_noise(), 16, crop=False, flip=True, seed=mixed_seed(seed)) for seed in range(30)]
    mirrored = [torch.equal(image, middle.flip(2)) for image in found]
    assert 5 < sum(mirrored) < 25
    assert all(torch.equal(image, middle) for image, flipped in zip(found, mirrored, strict=True) if not flipped)


def test_others_draw_from_the_global_stream_undisturbed() -> None:
    before = torch.get_rng_state()
    resized_crop_flip(_noise(), 16, crop=True, flip=True, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_of_neighbours_are_far_apart() -> None:
    seeds = [mixed_seed(one, other) for one in range(20) for other in range(20)]
    assert len(set(seeds)) == 400 and all(0 <= seed < 2**64 for seed in seeds)
    assert sum(bin(mixed_seed(4, n) ^ mixed_seed(4, n + 1)).count("1") for n in range(50)) / 50 == pytest.approx(32, 3)
