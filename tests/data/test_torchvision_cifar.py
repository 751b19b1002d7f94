from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from hybridprune.data.torchvision_cifar import load_cifar
from hybridprune.errors import UserError
from tests.networks_and_images import all_pixels

_CLASSES = [f"class {number}" for number in range(100)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny CIFAR-100 in the published format, whose md5 check is taken away."""
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    for number, (name, count) in enumerate((("train", 4), ("test", 2))):
        pixels = np.random.default_rng(number).integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": pixels, "fine_labels": list(range(count))}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": _CLASSES}))
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    return tmp_path


def test_pixels_labels_and_classes(root: Path) -> None:
    dataset = load_cifar("cifar100", str(root), resize=32, download=False)
    assert dataset.name == "cifar100" and dataset.classes == tuple(_CLASSES) and dataset.flippable
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8).reshape(4, 3, 32, 32)
    assert np.array_equal(all_pixels(dataset.train), pixels)
    assert dataset.train.labels.tolist() == [0, 1, 2, 3] and dataset.test.labels.tolist() == [0, 1]
    assert dataset.mean == pytest.approx((pixels / 255).mean(axis=(0, 2, 3)).tolist())


def test_resize_changes_shape_and_digest(root: Path) -> None:
    plain = load_cifar("cifar100", str(root), resize=32, download=False)
    small = load_cifar("cifar100", str(root), resize=16, download=False)
    assert all_pixels(small.train).shape == (4, 3, 16, 16) and small.digest != plain.digest


def test_missing_data_dir_is_named() -> None:
    with pytest.raises(UserError, match="--data_dir is missing"):
        load_cifar("cifar10", None, resize=32, download=False)


def test_missing_files_suggest_the_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --download to fetch cifar10"):
        load_cifar("cifar10", str(tmp_path), resize=32, download=False)


def test_corrupt_files_are_named_and_not_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"anything")
    with pytest.raises(UserError, match=f"{CIFAR10.base_folder} is incomplete or corrupt"):
        load_cifar("cifar10", str(tmp_path), resize=32, download=False)


@pytest.mark.parametrize("error", [URLError("no\nnetwork"), RuntimeError("File not found or corrupted.")])
def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(self: CIFAR10) -> None:
        raise error

    monkeypatch.setattr(CIFAR10, "download", fail)
    with pytest.raises(UserError, match="--download: cifar10 could not be fetched") as caught:
        load_cifar("cifar10", str(tmp_path), resize=32, download=True)
    assert "\n" not in str(caught.value)
