"""What ``predict`` takes: one image or many, as files, in Pillow, NumPy or PyTorch; anything else it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hybridprune
from hybridprune.api.inference import Model, Prediction
from hybridprune.errors import UserError
from tests.networks_and_images import random_net
from tests.store.run_folders import SPEC


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(random_net(8, 2, 3), SPEC)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(model: Model, pixels: np.ndarray) -> list[Prediction]:
    """Each image by itself, by hand."""
    found = []
    for image in pixels:
        scaled = (torch.from_numpy(image).permute(2, 0, 1) / 255 - torch.tensor(SPEC.mean)[:, None, None]) / (
            torch.tensor(SPEC.std)[:, None, None]
        )
        with torch.no_grad():
            routed = model.network(scaled[None])
        probability, label = routed.logits.softmax(1)[0].max(0)
        found.append(Prediction(SPEC.class_names[label], float(probability), int(routed.decisions.sum())))
    return found


def assert_same(found: list[Prediction], expected: list[Prediction]) -> None:
    assert [(each.label, each.blocks_executed) for each in found] == [
        (each.label, each.blocks_executed) for each in expected
    ]
    assert [each.probability for each in found] == pytest.approx([each.probability for each in expected], rel=1e-5)


FORMS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "array": lambda image, folder: image,
    "array that cannot be written to": lambda image, folder: np.frombuffer(image.tobytes(), np.uint8).reshape(8, 8, 3),
    "array with negative strides": lambda image, folder: image[::-1].copy()[::-1],
    "tensor": lambda image, folder: torch.from_numpy(image).permute(2, 0, 1),
    "Pillow": lambda image, folder: Image.fromarray(image),
    "path": lambda image, folder: _saved(image, folder),
    "text": lambda image, folder: str(_saved(image, folder)),
}


def _saved(image: np.ndarray, folder: Path) -> Path:
    path = folder / f"{image.sum()}.png"
    Image.fromarray(image).save(path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_one_image_or_a_list(
    form: str, model: Model, pixels: np.ndarray, expected: list[Prediction], tmp_path: Path
) -> None:
    images = [FORMS[form](image, tmp_path) for image in pixels]
    assert_same(hybridprune.predict(model, images[0]), expected[:1])
    assert_same(hybridprune.predict(model, images), expected)
    assert_same(hybridprune.predict(model, iter(images)), expected)


def test_batches_and_mixtures(model: Model, pixels: np.ndarray, expected: list[Prediction], tmp_path: Path) -> None:
    tensors = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert_same(hybridprune.predict(model, pixels), expected)
    assert_same(hybridprune.predict(model, tensors), expected)
    assert_same(hybridprune.predict(model, tensors[:1]), expected[:1])
    mixture = [pixels[0], Image.fromarray(pixels[1]), tensors[2:4], _saved(pixels[4], tmp_path)]
    assert_same(hybridprune.predict(model, mixture), expected)


@pytest.mark.parametrize("empty", [[], (), np.zeros((0, 8, 8, 3), np.uint8), torch.zeros(0, 3, 8, 8).byte()])
def test_no_images(model: Model, empty: Any) -> None:
    assert hybridprune.predict(model, empty) == []


def test_many_images_are_run_in_batches(model: Model, pixels: np.ndarray, expected: list[Prediction]) -> None:
    sizes: list[int] = []
    hook = model.network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        assert_same(hybridprune.predict(model, np.tile(pixels, (53, 1, 1, 1))), expected * 53)
    finally:
        hook.remove()
    assert sizes == [128, 128, 9]


def test_grey_of_any_size(model: Model) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (9, 5), dtype=np.uint8)
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    expected = hybridprune.predict(model, colour)
    for same in (grey, grey[:, :, None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        assert hybridprune.predict(model, same) == expected


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (torch.zeros(3, 8, 8), r"image 0 is a torch\.float32 Tensor \[3, 8, 8\]"),
        (torch.zeros(8, 8).byte(), r"image 0 is a torch\.uint8 Tensor \[8, 8\]"),
        (torch.zeros(8, 8, 3).byte(), r"image 0 is a torch\.uint8 Tensor \[8, 8, 3\]"),
        (torch.zeros(2, 2, 8, 8).byte(), r"image 0 is a torch\.uint8 Tensor \[2, 8, 8\]"),
        (torch.zeros(3, 0, 8).byte(), r"image 0 is a torch\.uint8 Tensor \[3, 0, 8\]"),
        (np.zeros((3, 8, 8), np.uint8), r"image 0 is a uint8 ndarray \[3, 8, 8\]"),
        (np.zeros((8, 8, 3)), r"image 0 is a float64 ndarray \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"image 0 is a uint8 ndarray \[0, 8, 3\]"),
        ([np.zeros((8, 8, 3), np.uint8), None], "image 1 is a NoneType"),
        ([[np.zeros((8, 8, 3), np.uint8)]], "image 0 is a list"),
        (7, "image 0 is a int"),
        ({"cat.png": 1}, "image 0 is a dict"),
        (b"cat.png", "image 0 is a bytes"),
        (Image.new("F", (8, 8)), "image 0: floating-point"),
    ],
)
def test_what_is_no_image_is_named(given: Any, named: str, model: Model) -> None:
    with pytest.raises(UserError, match=rf"^{named}.*; give a path, a Pillow image, .*\[N, \.\.\.\]") as caught:
        hybridprune.predict(model, given)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_images_are_named(model: Model, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_text("")
    for path in (tmp_path / "text.png", tmp_path / "empty.png", tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(UserError, match=f"^{path}: cannot be decoded"):
            hybridprune.predict(model, path)
