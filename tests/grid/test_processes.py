from __future__ import annotations

import multiprocessing
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridprune.grid import work
from hybridprune.grid.grid import Run, runs
from hybridprune.grid.processes import run_processes
from hybridprune.grid.work import Outcome, Worker, log_of


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell starts jobs in the background with SIGINT ignored, and their children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class FakeWorker(Worker):
    """Notes when each run started and ended, on what, and fails as told."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.failing, self.events, self.under_way = failing, [], 0
        self.most = 0
        self.devices: list[str | None] = []
        self.used: set[str | None] = set()
        self._guard = threading.Lock()

    def __call__(self, run: Run, device: str | None = None) -> Outcome:
        with self._guard:
            self.events.append(("start", run.name))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            assert device is None or device not in self.devices, "two runs on one device"
            self.devices.append(device)
            self.used.add(device)
        time.sleep(0.002)
        with self._guard:
            self.under_way -= 1
            self.devices.remove(device)
            self.events.append(("end", run.name))
        return Outcome(run, "broken" if run.name in self.failing else "", 0.0)


GRID = list(runs({"seeds": [0, 1, 2], "sp": {}, "prune": {"target_flops": [0.5, 0.25]}, "rl": {"alpha": [1, 2]}}))


@pytest.mark.parametrize(("jobs", "devices"), [(1, ()), (3, ()), (1, ("cuda:0", "cuda:1"))])
def test_children_start_after_their_parents_and_never_too_many_at_once(jobs: int, devices: tuple[str, ...]) -> None:
    worker, told = FakeWorker(), []
    run_processes(GRID, worker, told.append, jobs=jobs, devices=devices)
    assert sorted(outcome.run.name for outcome in told) == sorted(run.name for run in GRID)
    for run in GRID:
        if run.parent is not None:
            assert worker.events.index(("end", run.parent.name)) < worker.events.index(("start", run.name))
    assert worker.most == (len(devices) or jobs)
    assert worker.used == set(devices or (None,))


def test_a_failure_takes_only_its_descendants_along() -> None:
    broken = "prune.target_flops=0.5 prune seed 1"
    worker, told = FakeWorker((broken,)), []
    run_processes(GRID, worker, told.append, jobs=2)
    missing = {run.name for run in GRID} - {outcome.run.name for outcome in told}
    assert missing == {f"prune.target_flops=0.5,rl.alpha={alpha} rl seed 1" for alpha in (1, 2)}
    assert [outcome.run.name for outcome in told if outcome.error] == [broken]


def test_a_run_whose_parent_is_finished_starts_at_once() -> None:
    rest, told = [run for run in GRID if run.stage == "rl"], []
    run_processes(rest, FakeWorker(), told.append, jobs=2)
    assert len(told) == len(rest) == 12


def one(tmp_path: Path) -> Run:
    (run,) = runs({"sp": {}, "result_dir": str(tmp_path)})
    return run


def instead(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let this program be what a run's process does."""
    monkeypatch.setattr(work, "command", lambda run, **_: [sys.executable, "-c", program])


def test_the_output_is_logged_and_the_last_line_of_a_failure_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = one(tmp_path)
    instead(monkeypatch, "import os; print('threads', os.environ['OMP_NUM_THREADS'])")
    assert Worker(threads=3)(run).error == ""
    instead(monkeypatch, "import sys; print('first', file=sys.stderr); sys.exit('error: --lr 0')")
    failed = Worker()(run)
    assert failed.error == f"exit code 1: error: --lr 0 (see {log_of(run)})"
    assert log_of(run).read_text() == "threads 3\nfirst\nerror: --lr 0\n"


def test_stopping_interrupts_what_runs_and_starts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, worker = one(tmp_path), Worker()
    program = "import time\ntry:\n print('on', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
    instead(monkeypatch, program)

    def stop_soon() -> None:
        while not log_of(run).is_file() or "on" not in log_of(run).read_text():
            time.sleep(0.005)
        worker.stop()

    thread = threading.Thread(target=stop_soon)
    thread.start()
    outcome = worker(run)
    thread.join()
    assert outcome.error == "" and outcome.seconds < 30 and log_of(run).read_text() == "on\nsaved\n"
    assert worker(run).error == "not started"


def test_an_interrupted_sweep_interrupts_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = list(runs({"sp": {}, "seeds": [0, 1, 2], "result_dir": str(tmp_path)}))
    program = "import time\ntry:\n print('on', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
    instead(monkeypatch, program)

    def interrupt() -> None:
        while not log_of(todo[0]).is_file() or "on" not in log_of(todo[0]).read_text():
            time.sleep(0.005)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    started, thread = time.monotonic(), threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_processes(todo, Worker(), lambda outcome: None, jobs=1)
    thread.join()
    assert time.monotonic() - started < 30
    assert log_of(todo[0]).read_text() == "on\nsaved\n" and "on" not in log_of(todo[2]).read_text()


def sweep_on(run: Run) -> None:
    Worker()(run)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="the system cannot tell a process that its parent died")
def test_a_killed_sweep_takes_its_runs_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = one(tmp_path)
    program = """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved', flush=True)))
print('on', flush=True)
time.sleep(60)
"""
    instead(monkeypatch, program)
    sweep = multiprocessing.get_context("fork").Process(target=sweep_on, args=(run,))
    sweep.start()
    log = log_of(run)
    while not log.is_file() or "on" not in log.read_text():
        time.sleep(0.005)
    sweep.kill()
    sweep.join()
    started = time.monotonic()
    while log.read_text() != "on\nsaved\n":
        assert time.monotonic() - started < 30
        time.sleep(0.005)
