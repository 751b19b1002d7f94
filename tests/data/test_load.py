from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybridprune.data import DATASETS, Dataset, load_dataset
from hybridprune.errors import UserError
from tests.data.image_trees import make_tree


def _load(**changes: Any) -> Dataset:
    arguments: dict[str, Any] = {
        "dataset": "digits",
        "data_dir": None,
        "img_type": "png",
        "resize": 8,
        "num_workers": 0,
        "download": False,
        "cache_dir": None,
    }
    return load_dataset(**{**arguments, **changes})


def test_digits_need_no_folder() -> None:
    assert _load().name == "digits"


def test_tree(tmp_path: Path) -> None:
    make_tree(tmp_path / "pets")
    dataset = _load(dataset="tree", data_dir=str(tmp_path / "pets"), cache_dir=str(tmp_path / "cache"))
    assert len(dataset.train) == 6 and (tmp_path / "cache").is_dir()


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name != "digits"])
def test_the_others_do(dataset: str) -> None:
    with pytest.raises(UserError, match="--data_dir is missing"):
        _load(dataset=dataset)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn", "svhn-extra"])
def test_a_published_set_is_looked_for_under_its_own_name(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"fetch {dataset}$"):
        _load(dataset=dataset, data_dir=str(tmp_path))


@pytest.mark.parametrize(("dataset", "remedy"), [("CIFAR-100", "did you mean cifar100"), ("mnist3d", "choose one of")])
def test_unknown_name(dataset: str, remedy: str) -> None:
    with pytest.raises(UserError, match=f"--dataset {dataset} is unknown: {remedy}"):
        _load(dataset=dataset)


def test_too_small() -> None:
    with pytest.raises(UserError, match="--resize 7 is too small"):
        _load(resize=7)
