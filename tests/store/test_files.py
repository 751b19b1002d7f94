"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hybridprune.store.files import sha256, write_atomic, write_json


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"epoch": 1})
    write_json(path, {"epoch": 2, "name": "é"})
    assert json.loads(path.read_text()) == {"epoch": 2, "name": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("existed", [True, False])
def test_a_writer_that_fails_midway_changes_nothing(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "a.json"
    if existed:
        path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, write)
    assert [p.read_text() for p in tmp_path.iterdir()] == (["old"] if existed else [])


@pytest.mark.parametrize("value", [{"loss": float("nan")}, {"path": Path("a")}])
def test_what_is_no_json_is_not_written(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"epoch": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert json.loads(path.read_text()) == {"epoch": 1} and len(list(tmp_path.iterdir())) == 1


def test_the_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and path.read_text() == "old"

    write_atomic(path, write)
    assert path.read_text() == "new"


def test_others_may_read_the_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
