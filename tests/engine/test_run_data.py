"""The images of a run whose folder may be a stranger's: what its config.json may decide, and what it may not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hybridprune.data import Dataset, load, tree
from hybridprune.engine.run_data import load_dataset_of
from hybridprune.errors import UserError
from hybridprune.store.run_folder import RunFolder, RunSpec
from tests.data.image_trees import make_tree, write_image
from tests.store.run_folders import SPEC


def listed(root: Path, cache: Path) -> Dataset:
    return tree.load_tree(str(root), img_type="png", resize=8, num_workers=0, cache_dir=str(cache))


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    """Of a run on the tree ``mine``."""
    make_tree(tmp_path / "mine")
    digest = listed(tmp_path / "mine", tmp_path / "cache").digest
    return dataclasses.replace(SPEC, dataset="mine", dataset_digest=digest)


def run_with(folder: Path, **config: Any) -> RunFolder:
    (folder / "run").mkdir(exist_ok=True)
    stored = {"dataset": "tree", "data_dir": str(folder / "mine"), "img_type": "png", **config}
    (folder / "run" / "config.json").write_text(json.dumps(stored))
    return RunFolder(folder / "run")


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user"


def test_where_they_lay_or_where_the_user_says(spec: RunSpec, tmp_path: Path) -> None:
    assert load_dataset_of(run_with(tmp_path), spec, None).digest == spec.dataset_digest
    moved = run_with(tmp_path, data_dir="/nowhere")
    with pytest.raises(UserError, match="--data_dir /nowhere"):
        load_dataset_of(moved, spec, None)
    assert load_dataset_of(moved, spec, str(tmp_path / "mine")).digest == spec.dataset_digest


@pytest.mark.parametrize("said", [True, False])
def test_no_other_image_is_opened(said: bool, spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "private")
    write_image(tmp_path / "private" / "train" / "ant" / "0.png", seed=9, size=(9, 9))  # the same names, another size
    monkeypatch.setattr(tree, "decode_files", None)
    run = run_with(tmp_path, data_dir=str(tmp_path / "private"))
    with pytest.raises(UserError, match=f"--data_dir {tmp_path / 'private'}: holds other images"):
        load_dataset_of(run, spec, str(tmp_path / "private") if said else None)


def test_nothing_is_written_where_the_run_says(spec: RunSpec, tmp_path: Path, user_cache: Path) -> None:
    run = run_with(tmp_path, cache_dir=str(tmp_path / "theirs"), num_workers=10**9)
    load_dataset_of(run, spec, None)
    assert not (tmp_path / "theirs").exists() and len(list(user_cache.rglob("*.safetensors"))) == 1
    load_dataset_of(run, spec, None, cache_dir=str(tmp_path / "own"))
    assert len(list((tmp_path / "own").iterdir())) == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_nothing_is_fetched_unless_the_user_says(
    wanted: bool, spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[bool] = []

    def load_cifar(name: str, data_dir: str | None, *, resize: int, download: bool) -> Dataset:
        fetched.append(download)
        raise UserError("not there")

    monkeypatch.setattr(load, "load_cifar", load_cifar)
    with pytest.raises(UserError, match="not there"):
        load_dataset_of(run_with(tmp_path, dataset="cifar10", download=True), spec, None, download=wanted)
    assert fetched == [wanted]


@pytest.mark.parametrize(
    "config",
    [{"dataset": 3}, {"dataset": ["tree"]}, {"dataset": "nothing"}, {"data_dir": 3}, {"data_dir": True},
     {"data_dir": ["/"]}, {"data_dir": ""}, {"data_dir": "/etc"}, {"img_type": None}, {"img_type": "exe"}],
    ids=str,
)  # fmt: skip
def test_damaged_configurations(config: dict[str, Any], spec: RunSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset_of(run_with(tmp_path, **config), spec, None)
    assert "\n" not in str(caught.value)
