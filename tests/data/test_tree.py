from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybridprune.data import Dataset
from hybridprune.data import tree as tree_module
from hybridprune.data.tree import load_tree
from hybridprune.errors import UserError
from tests.data.image_trees import make_tree, write_image
from tests.networks_and_images import all_pixels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_tree(tmp_path / "pets")
    return tmp_path / "pets"


def _load(root: Path, **changes: Any) -> Dataset:
    arguments = {
        "img_type": "png",
        "resize": 8,
        "num_workers": 0,
        "cache_dir": str(root.parent / "cache"),
        **changes,
    }
    return load_tree(str(root), **arguments)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are decoded, as they are."""
    paths: list[str] = []
    decode_files = tree_module.decode_files

    def spy(files: list[str], **options: Any) -> torch.Tensor:
        paths.extend(files)
        return decode_files(files, **options)

    monkeypatch.setattr(tree_module, "decode_files", spy)
    return paths


def test_pixels_labels_and_order(tmp_path: Path) -> None:
    pixels = make_tree(tmp_path / "pets", classes=("bee", "ant"), counts=(3, 2))
    dataset = _load(tmp_path / "pets")
    assert dataset.name == "pets" and dataset.classes == ("ant", "bee") and dataset.flippable
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.test.labels.tolist() == [
        0,
        0,
        1,
        1,
    ]
    wanted = [pixels[f"train/{name}/{number}.png"] for name in ("ant", "bee") for number in range(3)]
    assert np.array_equal(all_pixels(dataset.train).permute(0, 2, 3, 1), np.stack(wanted))
    wanted = [pixels[f"test/{name}/{number}.png"] for name in ("ant", "bee") for number in range(2)]
    assert np.array_equal(all_pixels(dataset.test).permute(0, 2, 3, 1), np.stack(wanted))


def test_statistics_are_of_the_train_images(root: Path) -> None:
    dataset = _load(root)
    pixels = all_pixels(dataset.train).double() / 255
    assert dataset.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert dataset.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist())


def test_images_of_any_size_are_resized(root: Path) -> None:
    write_image(root / "train" / "ant" / "wide.png", seed=9, size=(20, 50))
    dataset = _load(root, resize=16)
    assert all_pixels(dataset.train).shape == (7, 3, 16, 16) and all_pixels(dataset.test).shape == (4, 3, 16, 16)


@pytest.mark.parametrize("train", ["train", "training_set", "training"])
@pytest.mark.parametrize("test", ["test", "test_set", "val"])
def test_names_of_the_split_folders(tmp_path: Path, train: str, test: str) -> None:
    make_tree(tmp_path / "renamed" / "pets", folders=(train, test))
    make_tree(tmp_path / "plain" / "pets")
    renamed, plain = _load(tmp_path / "renamed" / "pets"), _load(tmp_path / "plain" / "pets")
    assert torch.equal(all_pixels(renamed.train), all_pixels(plain.train))
    assert renamed.digest == plain.digest


@pytest.mark.parametrize(
    ("suffix", "img_type"),
    [
        ("jpg", "jpg"),
        ("jpeg", "jpg"),
        ("JPG", "jpeg"),
        ("webp", "webp"),
        ("gif", ".GIF"),
        ("tif", "tiff"),
        ("bmp", "any"),
    ],
)
def test_image_types(tmp_path: Path, suffix: str, img_type: str) -> None:
    make_tree(tmp_path / "pets", suffix=suffix)
    assert len(_load(tmp_path / "pets", img_type=img_type).train) == 6


def test_any_mixes_types(root: Path) -> None:
    write_image(root / "train" / "ant" / "more.jpg", seed=3)
    write_image(root / "train" / "ant" / "more.webp", seed=4)
    assert len(_load(root, img_type="any").train) == 8


def test_hidden_files_and_thumbs_are_ignored(root: Path) -> None:
    before = _load(root)
    for folder in (root, root / "train", root / "train" / "ant"):
        (folder / ".DS_Store").write_text("x")
        (folder / "Thumbs.db").write_text("x")
        (folder / ".hidden").mkdir()
    after = _load(root)
    assert torch.equal(all_pixels(after.train), all_pixels(before.train)) and after.digest == before.digest


# --- cache ---


def test_second_load_decodes_nothing_and_is_equal(root: Path, decoded: list[str]) -> None:
    first = _load(root)
    assert len(decoded) == 10
    second = _load(root)
    assert len(decoded) == 10
    for left, right in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(all_pixels(left), all_pixels(right)) and torch.equal(left.labels, right.labels)
    assert (first.mean, first.std, first.digest) == (second.mean, second.std, second.digest)


def _touch(root: Path) -> None:
    path = root / "train" / "ant" / "0.png"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def _change(root: Path) -> None:
    write_image(root / "test" / "bee" / "0.png", seed=77, size=(9, 9))


def _add(root: Path) -> None:
    write_image(root / "train" / "ant" / "new.png", seed=5)


def _remove(root: Path) -> None:
    (root / "train" / "ant" / "2.png").unlink()


def _rename(root: Path) -> None:
    (root / "train" / "ant" / "2.png").rename(root / "train" / "ant" / "00.png")


@pytest.mark.parametrize("change", [_touch, _change, _add, _remove, _rename])
def test_any_change_of_the_tree_is_decoded_anew(root: Path, decoded: list[str], change: Callable[[Path], None]) -> None:
    _load(root)
    decoded.clear()
    change(root)
    dataset = _load(root)
    assert len(decoded) == len(dataset.train) + len(dataset.test)
    assert torch.equal(all_pixels(dataset.test), all_pixels(_load(root, cache_dir=str(root.parent / "other")).test))


def test_sizes_have_their_own_cache_files(root: Path, decoded: list[str]) -> None:
    _load(root)
    _load(root, resize=9)
    assert len(decoded) == 20 and len(list((root.parent / "cache").iterdir())) == 2


def test_broken_cache_is_made_anew_in_silence(root: Path, decoded: list[str], recwarn: pytest.WarningsRecorder) -> None:
    first = _load(root)
    (cache,) = (root.parent / "cache").iterdir()
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-5])
    again = _load(root)
    assert len(decoded) == 20 and torch.equal(all_pixels(first.test), all_pixels(again.test))
    assert cache.read_bytes() == whole and not recwarn.list


def test_unwritable_cache_only_warns(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(RuntimeWarning, match="not cached"):
        dataset = _load(root, cache_dir=str(tmp_path / "file" / "cache"))
    assert torch.equal(all_pixels(dataset.train), all_pixels(_load(root).train))


def test_default_cache_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    _load(root, cache_dir=None)
    assert len(list((tmp_path / "xdg" / "hybridprune").glob("*.safetensors"))) == 1


# --- digest ---


def test_digest_is_independent_of_place_and_time(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    _touch(tmp_path / "elsewhere")
    assert _load(root).digest == _load(tmp_path / "elsewhere").digest


@pytest.mark.parametrize("change", [_change, _add, _remove, _rename])
def test_digest_follows_the_listing(root: Path, change: Callable[[Path], None]) -> None:
    before = _load(root).digest
    change(root)
    assert _load(root).digest != before


def test_digest_covers_the_size(root: Path) -> None:
    assert _load(root).digest != _load(root, resize=9).digest


# --- mistakes ---


def _only_one_class(root: Path) -> None:
    for folder in ("train", "test"):
        shutil.rmtree(root / folder / "bee")


def _empty_class(root: Path) -> None:
    for path in (root / "test" / "bee").iterdir():
        path.unlink()


def _truncated(root: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "big.png")
    (root / "test" / "bee" / "1.png").write_bytes((root / "big.png").read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: shutil.rmtree(root),
            r"--data_dir .*pets is not a folder; .* give --dataset digits, which needs none",
        ),
        (lambda root: shutil.rmtree(root / "train"), r"--data_dir .*no train folder .*training_set"),
        (lambda root: shutil.rmtree(root / "test"), r"--data_dir .*no test folder .*val"),
        (
            lambda root: shutil.rmtree(root / "test" / "bee"),
            r"test lacks 1 of the class folders of train: bee",
        ),
        (
            lambda root: shutil.rmtree(root / "train" / "ant"),
            r"train lacks 1 of the class folders of test: ant",
        ),
        (_only_one_class, r"found 1 class folder"),
        (_empty_class, r"test.bee: the class folder holds no image"),
        (
            lambda root: (root / "train" / "list.txt").write_text("x"),
            r"train.list\.txt: expected only class folders",
        ),
        (
            lambda root: (root / "train" / "ant" / "a.txt").write_text("x"),
            r"a\.txt: not an image of --img_type png",
        ),
        (
            lambda root: write_image(root / "train" / "ant" / "a.jpg", seed=0),
            r"a\.jpg: not an image .*--img_type",
        ),
        (lambda root: (root / "train" / "ant" / "a.png").mkdir(), r"a\.png: not an image"),
        (lambda root: (root / "train" / "ant" / "a.png").symlink_to("gone"), r"a\.png: not an image"),
        (lambda root: (root / "test" / "bee" / "1.png").write_text("text"), r"1\.png: cannot be decoded"),
        (_truncated, r"1\.png: cannot be decoded"),
    ],
)
def test_a_spoilt_tree_is_named_in_one_line(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        _load(root)
    assert "\n" not in str(caught.value)


def test_missing_data_dir_is_named() -> None:
    with pytest.raises(UserError, match="--data_dir is missing"):
        load_tree(None, img_type="png", resize=8, num_workers=0, cache_dir=None)


def test_unknown_image_type_is_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"--img_type jpx is unknown: .*webp.* or any"):
        _load(root, img_type="jpx")


# --- real data ---


@pytest.mark.full
@pytest.mark.skipif(
    "HYBRIDPRUNE_CIFAR100_PNG" not in os.environ,
    reason="HYBRIDPRUNE_CIFAR100_PNG names no CIFAR-100 PNG tree",
)
def test_cifar100_as_a_tree(tmp_path: Path) -> None:
    dataset = load_tree(
        os.environ["HYBRIDPRUNE_CIFAR100_PNG"],
        img_type="png",
        resize=32,
        num_workers=2,
        cache_dir=str(tmp_path),
    )
    assert (len(dataset.train), len(dataset.test), len(dataset.classes)) == (50_000, 10_000, 100)
    assert dataset.classes[0] == "apple" and dataset.classes[99] == "worm"
    assert dataset.train.labels.bincount().tolist() == [500] * 100
    assert dataset.test.labels.bincount().tolist() == [100] * 100
    assert dataset.mean == pytest.approx((0.5071, 0.4866, 0.4409), abs=1e-4)
    assert dataset.std == pytest.approx((0.2673, 0.2564, 0.2762), abs=1e-4)
