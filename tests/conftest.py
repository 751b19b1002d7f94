"""Settings and fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from hybridprune.pruning.directions import decomposition

# Tests run in parallel processes; more threads than cores make each of them slower.
torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def few_sweeps() -> Iterator[None]:
    """Components of separable layers are found in two sweeps of least squares, in this process and those it forks.

    Another hundred would do the same again, for a better fit alone: for tests that do not ask how good it is.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SWEEPS", "PLANNING_SWEEPS"):
            patch.setattr(decomposition, name, 2)
        yield


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 16x16 PNG files, ``train`` (30 a class) and ``test`` (10), whose three classes a network can learn.

    The classes are horizontal stripes, vertical stripes and a disc, of random phase, place and colours.
    """
    root = tmp_path_factory.mktemp("image_tree")
    draw = np.random.default_rng(0)
    row, column = np.mgrid[:16, :16]
    for folder, count in (("train", 30), ("test", 10)):
        for number in range(count):
            phase, (y, x) = draw.integers(4), draw.integers(5, 11, 2)
            shapes = {
                "disc": (row - y) ** 2 + (column - x) ** 2 < 16,
                "horizontal": (row + phase) % 4 < 2,
                "vertical": (column + phase) % 4 < 2,
            }
            for name, shape in shapes.items():
                dark, bright = draw.integers(0, 100, 3), draw.integers(156, 256, 3)
                pixels = np.where(shape[..., None], bright, dark) + draw.normal(0, 10, (16, 16, 3))
                path = root / folder / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return root
