"""SVHN from its published files, with and without the extra training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import SVHN

from hybridprune.data.torchvision_svhn import load_svhn
from hybridprune.errors import UserError
from tests.networks_and_images import all_pixels

COUNTS = {"train": 3, "extra": 4, "test": 2}


def pixels(part: str) -> np.ndarray:
    """``[N, 32, 32, 3]`` of a part."""
    shape = (COUNTS[part], 32, 32, 3)
    return np.random.default_rng(COUNTS[part]).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny files in the published format, whose md5 check is taken away: labels are 1 to 10, images lie last."""
    for part, count in COUNTS.items():
        labels = np.arange(8, 8 + count, dtype=np.uint8).clip(max=10)[:, None]
        content = {"X": pixels(part).transpose(1, 2, 3, 0), "y": labels}
        savemat(tmp_path / SVHN.split_list[part][1], content)
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda path, md5: Path(path).is_file())
    return tmp_path


@pytest.mark.parametrize(("name", "parts"), [("svhn", ["train"]), ("svhn-extra", ["train", "extra"])])
def test_pixels_and_labels(name: str, parts: list[str], root: Path) -> None:
    dataset = load_svhn(name, str(root), resize=32, download=False)
    assert dataset.name == name and dataset.classes == tuple("0123456789") and not dataset.flippable
    expected = np.concatenate([pixels(part) for part in parts]).transpose(0, 3, 1, 2)
    assert np.array_equal(all_pixels(dataset.train), expected)
    assert np.array_equal(all_pixels(dataset.test), pixels("test").transpose(0, 3, 1, 2))
    assert dataset.train.labels.tolist() == [8, 9, 0, 8, 9, 0, 0][: len(expected)]  # 10 stands for the digit 0
    assert dataset.test.labels.tolist() == [8, 9]
    assert dataset.mean == pytest.approx((expected / 255).mean(axis=(0, 2, 3)).tolist())


def test_extra_images_are_looked_for_only_where_they_are_wanted(root: Path) -> None:
    (root / "extra_32x32.mat").unlink()
    assert len(load_svhn("svhn", str(root), resize=16, download=False).train) == 3
    with pytest.raises(UserError, match=r"holds no extra_32x32\.mat: give --download to fetch svhn-extra$"):
        load_svhn("svhn-extra", str(root), resize=16, download=False)


def test_a_corrupt_file_is_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "train_32x32.mat").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"train_32x32\.mat is incomplete or corrupt: delete it"):
        load_svhn("svhn", str(tmp_path), resize=32, download=False)
