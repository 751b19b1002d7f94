"""The default engine: a few runs at a time on this machine, each as soon as its parent is finished."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from hybridprune.grid.grid import Run
from hybridprune.grid.work import Outcome, Tell, Worker


def run_processes(todo: Sequence[Run], worker: Worker, tell: Tell, *, jobs: int, devices: Sequence[str] = ()) -> None:
    """Run all of ``todo``; one that fails takes only those along that start from it.

    There are at most ``jobs`` at a time or, if ``devices`` are given, one on each of them. A run whose parent is not in
    ``todo`` can start at once. KeyboardInterrupt reaches the runs, which save their state, and is raised when all have
    ended.
    """
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for device in devices or [None] * jobs:
        free.put(device)

    def work(run: Run) -> Outcome:
        device = free.get()
        try:
            return worker(run, device)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices) or jobs) as pool:
        waiting = list(todo)
        under_way: dict[Future[Outcome], Run] = {}

        def start(ready: list[Run]) -> None:
            for run in ready:
                waiting.remove(run)
                under_way[pool.submit(work, run)] = run

        try:
            start([run for run in todo if run.parent not in todo])
            while under_way:
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    run, outcome = under_way.pop(future), future.result()
                    tell(outcome)
                    if not outcome.error:
                        start([child for child in waiting if child.parent == run])
        except BaseException:
            worker.stop()
            raise
