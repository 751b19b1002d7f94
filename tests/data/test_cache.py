from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from hybridprune.data.cache import OLD, default_cache_dir, read_cache, write_cache

_TENSORS = {"train": torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)}
_SHAPES = {"train": (2, 3, 2, 2)}


def test_round_trip_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    write_cache(path, _TENSORS)
    found = read_cache(path, _SHAPES)
    assert found is not None and torch.equal(found["train"], _TENSORS["train"])
    assert list(path.parent.iterdir()) == [path]


def test_missing_or_unexpected_content_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert read_cache(path, _SHAPES) is None
    write_cache(path, _TENSORS)
    assert read_cache(path, {"train": (2, 3, 4, 1)}) is None
    assert read_cache(path, {"test": (2, 3, 2, 2)}) is None
    assert read_cache(path, {**_SHAPES, "test": (2, 3, 2, 2)}) is None


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff" * 64])
def test_broken_file_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert read_cache(path, _SHAPES) is None


def test_truncated_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_cache(path, _TENSORS)
    path.write_bytes(path.read_bytes()[:-1])
    assert read_cache(path, _SHAPES) is None


def test_unwritable_folder_only_warns(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(RuntimeWarning, match="not cached"):
        write_cache(tmp_path / "file" / "a.safetensors", _TENSORS)


def test_failed_replacement_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="not cached"):
        write_cache(path, _TENSORS)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_a_day_later(tmp_path: Path) -> None:
    ours = [tmp_path / f"a.safetensors.{pid}.tmp" for pid in (1, 2)]
    others = tmp_path / "notes.tmp"
    for path in (*ours, others):
        path.write_bytes(b"half")
    for path in (ours[0], others):
        before = time.time() - OLD - 60
        os.utime(path, (before, before))
    write_cache(tmp_path / "b.safetensors", _TENSORS)
    assert sorted(tmp_path.iterdir()) == sorted([ours[1], tmp_path / "b.safetensors", others])


def test_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "hybridprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "hybridprune"
