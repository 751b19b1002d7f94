"""The folder that a run writes to, which is its own for as long as it runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridprune.errors import UserError
from hybridprune.json_text import short
from hybridprune.store.files import remove_leftovers
from hybridprune.store.lock import exclusive
from hybridprune.store.run_folder import RunFolder


@contextmanager
def claim(
    experiment: Path, name: str, config: Mapping[str, Any], identity: Collection[str], resume: bool
) -> Iterator[tuple[RunFolder, bool]]:
    """The folder for a run called ``name`` under ``experiment`` and whether a run there is being resumed.

    ``config`` is stored as config.json; ``identity`` names those of its keys that a resumed run must share.

    Nothing is ever overwritten: beside finished runs a new folder with the next number is made. An unfinished run is
    taken up with ``resume``, else it is an error, and so are resuming with another configuration and a run that another
    process works on. Inside, no other process can claim the folder, unless its run is finished: nothing is left to do.
    """
    while True:
        newest = _newest(experiment, name)
        run = None if newest is None else RunFolder(newest)
        if run is None or (run.finished and not resume):
            path = _numbered(experiment, name, 1 if newest is None else _number(newest, name) + 1)
            if not _make(path):
                continue  # another process was faster: look again
            with _locked(path):
                _store(RunFolder(path), config)
                yield RunFolder(path), False
                return
        if run.finished:
            _check_same(run, config, identity)
            yield run, True
            return
        with _locked(run.path):
            if resume:
                _check_same(run, config, identity)
                yield run, True
                return
            if not run.finished:  # by now
                raise _unfinished(run)


def check_unfinished(experiment: Path, name: str) -> None:
    """UserError if `claim` without ``resume`` would find an unfinished run."""
    newest = _newest(experiment, name)
    if newest is not None and not RunFolder(newest).finished:
        raise _unfinished(RunFolder(newest))


def _unfinished(run: RunFolder) -> UserError:
    return UserError(f"{run.path} holds an unfinished run: add --resume, or choose another --exp_name")


def _numbered(experiment: Path, name: str, number: int) -> Path:
    return experiment / (name if number == 1 else f"{name}-{number}")


def _number(path: Path, name: str) -> int:
    suffix = path.name.removeprefix(name).removeprefix("-")
    return int(suffix) if suffix else 1


def _newest(experiment: Path, name: str) -> Path | None:
    found, number = None, 1
    while os.path.isdir(path := _numbered(experiment, name, number)):
        found, number = path, number + 1
    return found


def _make(path: Path) -> bool:
    """Make a folder; False if there is one already. UserError if there cannot be."""
    try:
        path.mkdir(parents=True)
    except OSError as error:
        if os.path.isdir(path):
            return False
        raise UserError(f"--result_dir: cannot create {path} ({error.strerror}); choose a writable folder") from error
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    busy = f"{path}: another process is at work on this run; wait for it, or end it and give --resume"
    with exclusive(path, busy):
        remove_leftovers(path)
        yield


def _store(run: RunFolder, config: Mapping[str, Any]) -> None:
    try:
        run.write_json("config.json", config)
    except OSError as error:
        raise UserError(
            f"--result_dir: cannot write in {run.path} ({error.strerror}); choose a writable folder"
        ) from error


def _check_same(run: RunFolder, config: Mapping[str, Any], identity: Collection[str]) -> None:
    if not (run.path / "config.json").is_file():
        _store(run, config)  # killed before its first file: nothing to contradict
        return
    before = run.read_json("config.json")
    for key in sorted(identity):
        if before.get(key) != config[key]:
            raise UserError(
                f"--resume: {run.path} was started with {key} = {short(before.get(key))}, not {config[key]!r}; "
                "give the same value, or choose another --exp_name"
            )
