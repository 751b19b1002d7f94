"""The stages over seeds, ratios and alphas, each run once and for all: ``hybridprune grid GRID``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hybridprune.errors import Interrupted, RunFailed, UserError, signal_of
from hybridprune.grid import grid
from hybridprune.grid.grid import Run, read_grid
from hybridprune.grid.processes import run_processes
from hybridprune.grid.ray_tune import need_ray, run_ray
from hybridprune.grid.state import check, command
from hybridprune.grid.work import Outcome, Worker
from hybridprune.store.lock import exclusive

LOCK = ".sweep.lock"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: Sequence[str], prog: str = "python -m hybridprune.sweep_runs") -> None:
    """The command."""
    arguments = _parser(prog).parse_args(argv)
    for name in ("jobs", "nproc_per_run"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    devices = [name for name in arguments.devices.split(",") if name]
    if devices and arguments.engine == "ray":
        raise UserError("--devices: Ray chooses the devices; use --gpus_per_run")
    runs = read_grid(arguments.grid)
    found = {run.name: check(run) for run in runs}
    todo = [run for run in runs if not found[run.name].finished]
    plan = [f"{len(runs)} runs: {len(runs) - len(todo)} finished, {len(todo)} to do"]
    plan += [f"unfinished, will be resumed: {folder.path}" for run in todo if (folder := found[run.name].folder)]
    if arguments.dry_run or not todo:
        print(*plan, sep="\n", file=sys.stderr)
        for run in todo:
            print(_shown(command(run, processes=arguments.nproc_per_run)))
        return
    if arguments.engine == "ray":
        need_ray()
    result_dir = runs[0].result_dir
    result_dir.mkdir(parents=True, exist_ok=True)
    busy = f"result_dir {result_dir}: another sweep is at work there; wait for it or end it, or choose another folder"
    with exclusive(result_dir, busy, LOCK):
        print(*plan, sep="\n", file=sys.stderr, flush=True)
        _run(todo, _Progress(len(runs), len(runs) - len(todo)), arguments, devices)


def _run(todo: Sequence[Run], progress: _Progress, arguments: argparse.Namespace, devices: Sequence[str]) -> None:
    jobs = len(devices) or arguments.jobs
    processes = arguments.nproc_per_run
    # Processes with as many threads as there are cores would fight for them.
    threads = max(1, (os.cpu_count() or 1) // (jobs * processes)) if jobs * processes > 1 else None
    if arguments.engine == "ray":
        cpus, gpus = arguments.cpus_per_run, arguments.gpus_per_run
        run_ray(todo, progress.tell, jobs=jobs, cpus=cpus, gpus=gpus, processes=processes, threads=threads)
    else:
        try:
            run_processes(todo, Worker(processes, threads), progress.tell, jobs=jobs, devices=devices)
        except KeyboardInterrupt as error:
            saved = "the runs' states are saved; give the same command to go on"
            raise Interrupted(saved, signal_of(error)) from error
    progress.conclude(todo)


def _shown(words: Sequence[str]) -> str:
    """A line for the shell, which replaces the pattern of a parent by its folder."""
    quoted = [shlex.quote(word) for word in words]
    if "--checkpoint_file" in words:
        place = words.index("--checkpoint_file") + 1
        quoted[place] = quoted[place].replace("*", "'*'")
    return " ".join(quoted)


class _Progress:
    """Tells how each run ended, and at last which did not."""

    def __init__(self, total: int, finished: int) -> None:
        self._total, self._ended = total, finished
        self._outcomes: list[Outcome] = []

    def tell(self, outcome: Outcome) -> None:
        self._ended += 1
        self._outcomes.append(outcome)
        how = f"failed, {outcome.error}" if outcome.error else f"finished ({outcome.seconds:.0f} s)"
        print(f"[{self._ended}/{self._total}] {outcome.run.name}: {how}", file=sys.stderr, flush=True)

    def conclude(self, todo: Sequence[Run]) -> None:
        """RunFailed if any of ``todo`` is not finished."""
        broken = {outcome.run.name for outcome in self._outcomes if outcome.error}
        if failed := [run.name for run in todo if run.name in broken]:
            without = len(todo) - len(self._outcomes)
            not_started = f"; {without} that start from them were not started" if without else ""
            raise RunFailed(
                f"{len(failed)} of {self._total} runs: {', '.join(failed)}{not_started}; mend the cause and give "
                "the same command to go on"
            )


def _parser(prog: str) -> _Parser:
    parser = _Parser(
        prog=prog,
        description=grid.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("grid", metavar="GRID", type=Path, help="JSON file, as described above")
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="print the commands of what is to do, and stop"
    )
    parser.add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help='processes of this machine, or Ray Tune (pip install "hybridprune[sweep]"); default: %(default)s',
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument(
        "--devices",
        default="",
        help="processes: devices with commas between, one run at a time each, e.g. cuda:0,cuda:1 (default: each "
        "run's own choice)",
    )
    parser.add_argument(
        "--nproc_per_run", type=int, default=1, help="processes of each run, started by torchrun (default: %(default)s)"
    )
    parser.add_argument("--cpus_per_run", type=float, default=1, help="ray: CPUs of each run (default: %(default)s)")
    parser.add_argument("--gpus_per_run", type=float, default=0, help="ray: GPUs of each run (default: %(default)s)")
    return parser
