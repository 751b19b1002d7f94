"""All checks that need a real GPU, in one table and one JSON file.

    python -m benchmarks.gpu_check [--device cuda] [--minutes 8] [--output FILE] [--data_dir DATA] [--only PATTERN]

1. ``step``: loss and gradients of one step in fp32 (TF32 off), TF32, bf16, fp16 with its scaler, in both memory formats
   and compiled, against a CPU in fp32.
2. ``measuring``, ``modules``, ``training``, ``routing``, ``commands``, ``deploying``, ``notebook``: the package's own
   paths (benchmarks/device_cases), on the device and on the CPU. Several processes share the device.
3. A process group of one: nccl.
4. ``images/s``: each stage's loop and the curvature passes, widths 16 and 64, nothing beside them.
5. With what is left of the time, the first epochs of the published row.

A row's ``difference`` is the largest one from the CPU of what a check computes, each relative to its norm; above
``tolerance`` the status is ``differs``. ``error`` and ``timeout`` say what happened and end nothing else; for what is
``skipped`` there was no time. The file is written after every row. Exits with 1 if anything differs, failed or took too
long.

``--device cpu`` is a rehearsal: a CPU without oneDNN stands for the GPU, and everything is as small as it goes.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import CHECKS
from benchmarks.gpu_check.check import to_json
from benchmarks.gpu_check.worker import Worker, serve
from hybridprune.store.files import write_json
from hybridprune.store.provenance import hardware, versions
from hybridprune.tables import markdown_head, markdown_row

SHARED = 0.55
"""Of the time, that checks which share the device may take."""
WORKERS = 6
BAD = ("differs", "error", "timeout")


@dataclass
class Report:
    """The rows so far, on the screen and in the file."""

    path: Path
    about: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """The table's head, and a file that says that nothing is done yet."""
        head = ("check", "status", "s", "difference", "tolerance", "images/s", "note")
        print(*markdown_head(head, "llrrrrl"), sep="\n", flush=True)
        self._write(complete=False)

    def add(self, row: dict[str, Any]) -> None:
        """One more line."""
        self.rows.append(row)
        cells = [row["check"], row["status"], f"{row['seconds']:.1f}"]
        for key, form in (("difference", ".1e"), ("tolerance", ".0e"), ("images_per_second", ",.0f")):
            value = row.get(key)
            cells.append("" if value is None else format(value, form))
        print(markdown_row([*cells, str(row["note"]).replace("|", "/")]), flush=True)
        self._write(complete=False)

    def end(self) -> bool:
        """Whether all is well."""
        self._write(complete=True)
        counts = {status: sum(row["status"] == status for row in self.rows) for status in ("ok", "skipped", *BAD)}
        print(f"\n{', '.join(f'{count} {status}' for status, count in counts.items())}: {self.path}", file=sys.stderr)
        return not any(counts[status] for status in BAD)

    def _write(self, complete: bool) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        write_json(self.path, {"format": 1, **self.about, "seconds": seconds, "complete": complete, "rows": self.rows})


@dataclass(frozen=True)
class Plan:
    """The checks to run, on which device, and until when."""

    device: str
    names: Sequence[str]
    end: float
    """By the monotonic clock."""
    shared_end: float
    workers: int
    quick: bool
    data_dir: str | None

    async def run(self, report: Report) -> None:
        """First what may share the device, then the rest, one by one."""
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        workers = [Worker(self.device, threads) for _ in range(self.workers)]
        # What has to be compiled last: it takes a minute each.
        shared = sorted((name for name in self.names if not CHECKS[name].alone), key=lambda name: CHECKS[name].seconds)
        waiting = shared[::-1]

        async def work(worker: Worker) -> None:
            while waiting:
                await self._check(worker, waiting.pop(), report, self.shared_end)
            await worker.end()

        try:
            await asyncio.gather(*map(work, workers))
            workers.append(alone := Worker(self.device, os.cpu_count() or 1))
            for name in self.names:
                if CHECKS[name].alone:
                    await self._check(alone, name, report, self.end)
        finally:
            for worker in workers:
                await worker.end()

    async def _check(self, worker: Worker, name: str, report: Report, end: float) -> None:
        check, left = CHECKS[name], end - time.monotonic()
        if left <= max(check.least, 0.0):
            report.add(to_json(name, "skipped", 0.0, note="no time left"))
            return
        report.add(await worker.ask(name, min(check.seconds, left), self.quick, self.data_dir))


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: %(default)s; cpu is a rehearsal")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything, default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="default: %(default)s")
    parser.add_argument("--data_dir", help="of CIFAR-100, for the published row; without it that is left out")
    parser.add_argument("--only", nargs="+", default=["*"], help="names of the checks to run, with * and ?")
    parser.add_argument("--workers", type=int, help="processes that share the device (default: by the cores)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        serve(torch.device(arguments.device))
        return 0
    names = [name for name in CHECKS if any(fnmatch.fnmatchcase(name, wanted) for wanted in arguments.only)]
    if not names:
        parser.error(f"--only {' '.join(arguments.only)}: no check is called so; one is {next(iter(CHECKS))!r}")
    device, started = torch.device(arguments.device), time.monotonic()
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {device}: torch {torch.__version__} finds no GPU; --device cpu is a rehearsal")
    plan = Plan(
        device=str(device),
        names=names,
        end=started + 60 * arguments.minutes,
        shared_end=started + 60 * arguments.minutes * SHARED,
        workers=arguments.workers or max(1, min(WORKERS, (os.cpu_count() or 1) // 2)),
        quick=device.type == "cpu",
        data_dir=arguments.data_dir,
    )
    about = {"minutes": arguments.minutes, "versions": versions(), "hardware": hardware(device)}
    report = Report(arguments.output, about)
    report.begin()
    asyncio.run(plan.run(report))
    return 0 if report.end() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
