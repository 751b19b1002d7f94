from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybridprune.data import Dataset
from hybridprune.data.image_folder import load_image_folder
from hybridprune.data.resize import resize_images
from hybridprune.errors import UserError
from tests.data.image_trees import make_tree, write_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_tree(tmp_path / "pets", folders=("train", "val"), counts=(3, 2))
    return tmp_path / "pets"


def _load(root: Path, **changes: Any) -> Dataset:
    return load_image_folder(str(root), **{"img_type": "png", "resize": 8, "num_workers": 0, **changes})


def test_what_it_is(root: Path) -> None:
    dataset = _load(root)
    assert dataset.name == "pets" and dataset.classes == ("ant", "bee") and dataset.flippable and dataset.centre_crop
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.test.labels.tolist() == [0, 0, 1, 1]
    assert dataset.mean == (0.485, 0.456, 0.406) and dataset.std == (0.229, 0.224, 0.225)


def test_files_belong_to_their_labels(root: Path) -> None:
    dataset = _load(root, resize=9)
    for split, data in (("train", dataset.train), ("val", dataset.test)):
        for label, name in enumerate(("ant", "bee")):
            files = sorted((root / split / name).iterdir())
            ids = (data.labels == label).nonzero().flatten()
            for file, pixels in zip(files, data.pixels(ids), strict=True):
                image = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
                assert torch.equal(pixels, resize_images(image[None], 9, centre_crop=True)[0])


def test_nothing_is_decoded_before_it_is_read(root: Path) -> None:
    for file in root.glob("*/*/*.png"):
        file.write_bytes(b"no image")
    assert len(_load(root).train) == 6


@pytest.mark.parametrize("test", ["val", "validation", "test", "test_set"])
def test_names_of_the_split_folders(root: Path, test: str) -> None:
    before = _load(root).digest
    (root / "val").rename(root / test)
    assert len(_load(root).test) == 4 and _load(root).digest == before


def test_imagenets_own_test_folder_is_not_looked_at(root: Path) -> None:
    write_image(root / "test" / "without_a_label.png", seed=0)
    assert len(_load(root).test) == 4


def _rename(root: Path) -> None:
    (root / "train" / "ant" / "0.png").rename(root / "train" / "ant" / "00.png")


def _move(root: Path) -> None:
    (root / "train" / "ant" / "2.png").rename(root / "train" / "bee" / "3.png")


def _other_images(root: Path) -> None:
    for number, file in enumerate(sorted(root.glob("*/*/*.png"))):
        write_image(file, seed=number, size=(9, 9))


@pytest.mark.parametrize("change", [_rename, _move, _other_images])
def test_the_digest_tells_other_images(root: Path, change: Callable[[Path], None]) -> None:
    before = _load(root).digest
    change(root)
    assert _load(root).digest != before


def test_the_digest_is_of_the_size_but_not_of_the_place(root: Path) -> None:
    before = _load(root).digest
    assert _load(root, resize=16).digest != before
    shutil.move(root, root.parent / "elsewhere")
    assert _load(root.parent / "elsewhere").digest == before


def test_a_repaired_file_does_not_change_the_digest(root: Path) -> None:
    before = _load(root).digest
    write_image(root / "train" / "ant" / "1.png", seed=1, size=(20, 20))
    assert _load(root).digest == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: shutil.rmtree(root / "val"), "no test folder (any of val"),
        (lambda root: shutil.rmtree(root / "val" / "bee"), "val lacks 1 of the class folders of train: bee"),
        (lambda root: (root / "train" / "ant" / "notes.txt").write_text("x"), "not an image of --img_type png"),
        (lambda root: (root / "val" / "empty").mkdir(), "train lacks 1 of the class folders of val: empty"),
        (lambda root: [file.unlink() for file in (root / "val" / "bee").iterdir()], "holds no image"),
        (lambda root: shutil.rmtree(root), "is not a folder"),
    ],
)
def test_broken_trees(root: Path, change: Callable[[Path], object], words: str) -> None:
    change(root)
    with pytest.raises(UserError) as error:
        _load(root)
    assert words in str(error.value)


def test_a_missing_folder_name() -> None:
    with pytest.raises(UserError, match="--data_dir is missing"):
        load_image_folder(None, img_type="png", resize=8, num_workers=0)
