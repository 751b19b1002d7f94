"""Commands in processes of their own: started anew as a user does, or forked by a server that has imported all."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests import ROOT

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.processes", "tests.preloaded"])


def run_cli(
    script: str, *args: object, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``main_*.py``, or a module as with ``python -m``, in ``cwd``, which also takes its cache."""
    target = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / ".cache"), **(env or {})}
    return subprocess.run(
        [sys.executable, *target, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


class Forked:
    """A running process, to be used like ``subprocess.Popen``; it leads a group of its own."""

    def __init__(self, target: Callable[..., object], *args: object, cwd: Path, env: Mapping[str, str]) -> None:
        """``target`` is called in ``cwd``, with ``env`` beside this process's environment."""
        self._said = Path(tempfile.mkdtemp())
        _start_server()
        self._process = _CONTEXT.Process(target=_run, args=(self._said, cwd, {**os.environ, **env}, target, *args))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; -N if signal N has ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The `returncode`, as ``Popen`` gives it."""
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """What it has said when it has ended: standard output and error. To be called once."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        said = (self._said / "out").read_text(), (self._said / "err").read_text()
        shutil.rmtree(self._said)
        return said


def start_cli(script: str, *args: object, cwd: Path, env: Mapping[str, str] | None = None) -> Forked:
    """Start ``main_*.py``, or a module as with ``python -m``, in ``cwd``, which also takes its cache."""
    settings = {"XDG_CACHE_HOME": str(cwd / ".cache"), **(env or {})}
    return Forked(_script, script, list(map(str, args)), cwd=cwd, env=settings)


def run_forked(
    script: str, *args: object, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`run_cli` without the seconds that a new interpreter takes to import everything."""
    process = start_cli(script, *args, cwd=cwd, env=env)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess([script, *map(str, args)], process.returncode, out, err)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Inside, the system refuses to make files larger, in the way in which a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _start_server() -> None:
    """Start the server if there is none; it imports from here, wherever an editable installation points to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        forkserver.ensure_running()


def _run(said: Path, cwd: Path, environment: dict[str, str], target: Callable[..., object], *args: object) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.stdout.flush()
    sys.stderr.flush()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), number)
    target(*args)


def _script(script: str, args: list[str]) -> None:
    if script.endswith(".py"):
        sys.argv = [str(ROOT / script), *args]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.argv = [script, *args]
        runpy.run_module(script, run_name="__main__", alter_sys=True)
