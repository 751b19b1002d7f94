"""Tiny-ImageNet and CINIC-10, in tiny trees of their form."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybridprune.config import DataOptions
from hybridprune.data import Dataset, load_dataset, validation_split
from hybridprune.errors import UserError
from tests.data.image_trees import make_tree, write_image
from tests.networks_and_images import all_pixels

WNIDS = ("n02", "n01")


def _load(name: str, root: Path, **changes: Any) -> Dataset:
    options = {"img_type": "any", "resize": 8, "num_workers": 0, "download": False, "cache_dir": str(root.parent / "c")}
    return load_dataset(dataset=name, data_dir=str(root), **{**options, **changes})


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for wnid in WNIDS:
        for number in range(3):
            write_image(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", seed=number)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    (root / "test" / "images").mkdir(parents=True)
    for number in range(4):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", seed=10 + number)
    lines = [f"val_{number}.JPEG\t{WNIDS[number % 2]}\t0\t0\t7\t7\n" for number in range(4)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@pytest.fixture
def cinic(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    root = tmp_path / "CINIC-10"
    pixels = make_tree(root, folders=("train", "valid"), counts=(3, 2))
    return root, pixels | make_tree(root, folders=("test", "test"), counts=(2, 2))


def test_tiny_imagenet_is_labelled_by_folders_and_annotations(tiny: Path) -> None:
    found = _load("tiny-imagenet", tiny)
    assert found.name == "tiny-imagenet" and found.classes == ("n01", "n02") and found.flippable
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.labels.tolist() == [1, 0, 1, 0]  # the lines' order, not that of classes
    assert found.mean == pytest.approx((0.4802, 0.4481, 0.3975), abs=1e-4)
    assert found.std == pytest.approx((0.2770, 0.2691, 0.2821), abs=1e-4)
    # The same again from the cache, which the files' names and sizes identify wherever they lie.
    moved = Path(shutil.move(tiny, tiny.parent / "moved"))
    again = _load("tiny-imagenet", moved)
    assert again.digest == found.digest and torch.equal(all_pixels(again.test), all_pixels(found.test))
    with pytest.raises(UserError, match="holds other images"):
        _load("tiny-imagenet", moved, digest="0")


def test_its_network_sees_its_size_where_nobody_says() -> None:
    assert DataOptions(dataset="tiny-imagenet").resize == 64
    assert DataOptions(dataset="tiny-imagenet", resize=32).resize == 32
    assert DataOptions(dataset="cinic10").resize == 32 == DataOptions().resize


def test_cinic_validates_on_its_own_validation_images(cinic: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, pixels = cinic
    found = _load("cinic10", root)
    assert found.classes == ("ant", "bee") and found.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    split = validation_split(found)
    assert split.train.tolist() == [0, 1, 2, 3, 4, 5] and split.validation.tolist() == [6, 7, 8, 9]
    wanted = np.stack([pixels[f"valid/{name}/{number}.png"] for name in ("ant", "bee") for number in range(2)])
    assert np.array_equal(all_pixels(found.train)[split.validation].permute(0, 2, 3, 1), wanted)
    assert len(found.test) == 4 and found.mean[0] == 0.47889522 and found.std[2] == 0.25874835


def _without(place: str) -> Any:
    def spoil(root: Path) -> None:
        path = root / place
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def _annotate(text: str) -> Any:
    return lambda root: (root / "val" / "val_annotations.txt").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("train"), ("holds no train", "http://cs231n.stanford.edu/tiny-imagenet-200.zip")),
        (_without("val/val_annotations.txt"), ("holds no val/val_annotations.txt", "tiny-imagenet-200.zip")),
        (_without("val/images/val_2.JPEG"), ("val_2.JPEG", "tiny-imagenet-200.zip")),
        (_without("train/n01/images"), ("train/n01/images", "tiny-imagenet-200.zip")),
        (_annotate("val_0.JPEG\tn09\t0\n"), ("val_annotations.txt, line 1", "no file and a class of train")),
        (_annotate("../val_0.JPEG\tn01\n"), ("val_annotations.txt, line 1",)),
        (_annotate("val_0.JPEG\tn01\n"), ("val has no image of n02", "tiny-imagenet-200.zip")),
    ],
)
def test_what_is_missing_is_told_with_the_address(tiny: Path, spoil: Any, words: tuple[str, ...]) -> None:
    spoil(tiny)
    with pytest.raises(UserError) as refused:
        _load("tiny-imagenet", tiny)
    assert all(word in str(refused.value) for word in words) and "\n" not in str(refused.value)


def test_cinic_needs_its_three_folders(cinic: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = cinic
    shutil.rmtree(root / "valid" / "ant")
    with pytest.raises(UserError, match="valid lacks 1 of the class folders of train: ant"):
        _load("cinic10", root)
    shutil.rmtree(root / "valid")
    with pytest.raises(UserError, match=r"holds no valid; unpack CINIC-10 from https://datashare\.ed\.ac\.uk"):
        _load("cinic10", root)


@pytest.mark.parametrize("name", ["cinic10", "tiny-imagenet"])
def test_nothing_is_downloaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--download: does not fetch {name}; unpack .* http"):
        _load(name, tmp_path, download=True)
