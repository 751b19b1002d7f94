"""Ctrl-C and SIGTERM where no training loop runs, and disks that are full: one line, and the run can go on."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridprune.pruning.pipeline import Pipeline
from hybridprune.stages import prune, result, rl_prune
from tests.cli.tiny_runs import OWN, SCRIPTS, TINY, Result, folder_of, run_here, weights
from tests.processes import file_size_limit

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("few_sweeps")]
DATA = (*TINY, "--dataset", "digits", "--resize", "8", "--max_train_samples", "40")
PARENTS = {"prune": "sp", "rl": "prune"}
FLAGS = {**OWN, "rl": (*OWN["rl"], "--target_flops", "0.55")}


def run(name: str, parents: Path, results: Path, *flags: str) -> Result:
    parent = ("--checkpoint_file", folder_of(parents, PARENTS[name])) if name in PARENTS else ()
    return run_here(SCRIPTS[name], *DATA, *FLAGS[name], *parent, "--result_dir", results, *flags)


def before(target: Any, name: str, act: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """``act`` when ``target.name`` is called."""
    original = getattr(target, name)

    def call(*args: Any, **options: Any) -> Any:
        act()
        return original(*args, **options)

    patch.setattr(target, name, call)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT means what it means at a terminal: in the background a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def undisturbed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a stage's run that nothing has disturbed."""
    results = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def of(name: str) -> Path:
        done = run(name, finished, results)
        assert done.returncode == 0, done.stderr
        return folder_of(results, name)

    return of


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("name", "target", "function"),
    [
        ("sp", result.Readings, "of"),  # the last evaluation
        ("prune", Pipeline, "make_plan"),  # curvature
        ("prune", prune, "load_selected"),
        ("rl", rl_prune, "share_weights"),  # statistics
        ("rl", rl_prune, "meet_budget"),
    ],
)
def test_a_signal_anywhere(
    name: str,
    target: Any,
    function: str,
    signum: int,
    finished: Path,
    undisturbed: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before(target, function, lambda: signal.raise_signal(signum), patch)
        stopped = run(name, finished, tmp_path / "a")
    assert stopped.returncode == 128 + signum, stopped.stderr
    assert "Traceback" not in stopped.stderr and stopped.stdout == ""
    assert stopped.stderr.splitlines()[-1] == "interrupted: give the same command with --resume to go on"
    assert_goes_on(name, finished, tmp_path / "a", undisturbed(name))


def assert_goes_on(name: str, parents: Path, results: Path, b: Path) -> None:
    """The run below ``results`` ends as the one in the folder ``b``, which nothing disturbed."""
    done = run(name, parents, results, "--resume")
    assert done.returncode == 0, done.stderr
    a = folder_of(results, name)
    assert weights(a) == weights(b)
    assert a.joinpath("metrics.jsonl").read_text().count("\n") == b.joinpath("metrics.jsonl").read_text().count("\n")
    assert not list(a.glob(".*.tmp"))


@pytest.mark.parametrize("file", ["selected.safetensors", "train_state.pt", "tb", "result.json"])
def test_a_file_that_cannot_be_written(
    file: str, finished: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = undisturbed("sp")
    size = max(path.stat().st_size for path in [*(whole / file).glob("*"), whole / file] if path.is_file())
    large = [path.name for path in whole.iterdir() if path.is_file() and path.stat().st_size >= size]
    with file_size_limit(size - 1):
        failed = run("sp", finished, tmp_path / "a")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("failed: [Errno 27] File too large: ")
    assert any(str(folder_of(tmp_path / "a", "sp") / name) in last for name in [*large, file]), last
    assert_goes_on("sp", finished, tmp_path / "a", whole)


def test_a_reader_that_has_gone_is_no_success(
    finished: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    def gone() -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with pytest.MonkeyPatch.context() as patch:
        before(result.Readings, "of", gone, patch)
        failed = run("sp", finished, tmp_path / "a")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("failed: nobody reads this output any more; give the same command")
    assert_goes_on("sp", finished, tmp_path / "a", undisturbed("sp"))


@contextlib.contextmanager
def disk(place: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A small file system at ``place``; gives what makes it larger. Skips the test where that is not allowed."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        yield lambda to: subprocess.run(["mount", "-o", f"remount,size={to}", str(place)], check=True) and None
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("pages", [6, 10, 14, 18, 22, 26])
def test_a_full_disk(pages: int, finished: Path, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    with disk(tmp_path / "a", pages * 4096) as resize:
        failed = run("sp", finished, tmp_path / "a")
        assert failed.returncode in (1, 2) and "Traceback" not in failed.stderr, failed.stderr
        last = failed.stderr.splitlines()[-1]
        assert "No space left on device" in last and str(tmp_path / "a") in last
        assert failed.returncode == 2 or last.endswith("make room, and give the same command with --resume to go on")
        resize(1 << 22)
        assert_goes_on("sp", finished, tmp_path / "a", undisturbed("sp"))
