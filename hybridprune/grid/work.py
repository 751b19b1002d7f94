"""One run as a process of its own, and what every engine says of the runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hybridprune.grid.grid import Run
from hybridprune.grid.state import command


@dataclass(frozen=True)
class Outcome:
    """The end of a run: ``error`` is empty if it is finished."""

    run: Run
    error: str
    seconds: float


def log_of(run: Run) -> Path:
    """The file of a run's output."""
    return run.result_dir / "logs" / f"{run.experiment}-{run.stage}-seed{run.seed}.log"


@dataclass
class Worker:
    """Starts runs, from any thread, and can interrupt all that are under way."""

    processes: int = 1
    """Of each run."""
    threads: int | None = None
    """Of each process, unless the user has set OMP_NUM_THREADS; None: torch's own choice."""
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def __call__(self, run: Run, device: str | None = None) -> Outcome:
        """Run to the end; the output is added to the run's log."""
        log, started = log_of(run), time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if self.threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        with log.open("ab") as file:
            with self._lock:
                if self._stopped:
                    return Outcome(run, "not started", 0.0)
                # A session of its own: Ctrl-C reaches it once, through `stop`, and it saves its state.
                process = subprocess.Popen(
                    [*_mortal(), *command(run, processes=self.processes, device=device)],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        error = "" if code == 0 else f"exit code {code}: {_last_line(log)} (see {log})"
        return Outcome(run, error, time.monotonic() - started)

    def stop(self) -> None:
        """Interrupt the runs under way, as Ctrl-C does, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


def _mortal() -> list[str]:
    """What lets a run end as SIGTERM ends it, its state saved, should this process be killed; Linux has it."""
    tool = shutil.which("setpriv")
    return [] if tool is None else [tool, "--pdeathsig", "TERM"]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


Tell = Callable[[Outcome], None]
