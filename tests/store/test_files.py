"""Files are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from hybridprune.store.files import (
    append,
    remove_leftovers,
    sha256,
    write_atomic,
    write_bytes,
    write_folder,
    write_json,
)


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

    def write(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, write)
    assert [p.read_text() for p in tmp_path.iterdir()] == (["old"] if existed else [])


def test_what_is_no_json_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"epoch": 1})
    with pytest.raises(TypeError):
        write_json(path, {"path": Path("a")})
    assert json.loads(path.read_text()) == {"epoch": 1} and len(list(tmp_path.iterdir())) == 1


def test_the_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        assert Path(file.name).parent == tmp_path and path.read_text() == "old"

    write_atomic(path, write)
    assert path.read_text() == "new"


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], indirect=True)
def test_a_new_file_has_the_permissions_that_the_user_wants(tmp_path: Path, umask: int) -> None:
    write_json(tmp_path / "a.json", {})
    append(tmp_path / "a.jsonl", "{}\n")
    assert mode(tmp_path / "a.json") == mode(tmp_path / "a.jsonl") == 0o666 & ~umask


@pytest.mark.parametrize("before", [0o600, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, before: int) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    path.chmod(before)
    write_json(path, {})
    assert mode(path) == before and path.read_text() == "{}\n"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    path, real = tmp_path / "a.json", tmp_path / "far" / "b.json"
    path.symlink_to(real)
    for content in (b"first", b"second"):  # of a file that is not there yet, and of one that is
        write_bytes(path, content)
        assert path.is_symlink() and real.read_bytes() == content
    assert sorted(tmp_path.rglob("*")) == [path, real.parent, real]


def test_the_file_is_on_disk_before_the_rename_and_then_the_rename_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "a", list[tuple[bool, bool]]()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_bytes(path, b"content")
    assert synced == [(False, False), (True, True)]


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 255)
    write_bytes(path, b"content")
    assert path.read_bytes() == b"content"


def test_the_systems_error_names_the_file(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as raised:
        write_atomic(tmp_path / "a.json", full)
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
    for write in (write_bytes, lambda path, _: append(path, "")):
        with pytest.raises(FileNotFoundError) as missing:
            write(tmp_path / "nowhere" / "a.json", b"")
        assert missing.value.filename == str(tmp_path / "nowhere" / "a.json")


@pytest.mark.parametrize("umask", [0o022, 0o077], indirect=True)
def test_a_folder_is_whole_or_absent(tmp_path: Path, umask: int) -> None:
    def fill(folder: Path, fail: bool = False) -> None:
        write_bytes(folder / "a", b"a")
        assert not (tmp_path / "new").exists()
        if fail:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "new", lambda folder: fill(folder, fail=True))
    assert list(tmp_path.iterdir()) == []
    write_folder(tmp_path / "new", fill)
    assert mode(tmp_path / "new") == 0o777 & ~umask
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "a"]


def test_what_killed_writers_have_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    def killed(file: BinaryIO) -> None:
        (tmp_path / ".spec.json.x1.tmp").touch()  # somebody else's
        os.link(file.name, tmp_path / "left")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.json", killed)
    # Under the name that it had.
    names: list[str] = []
    write_atomic(tmp_path / "b.json", lambda file: names.append(file.name))
    (tmp_path / "left").rename(names[0])
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".spec.json.x1.tmp", "b.json"]


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
