"""The published row on one GPU of the Hopper class in under 15 minutes a seed: ``reproduce_published.sh --fast``.

Two wide networks without gates are trained for 40 epochs, in the manner of fast CIFAR recipes: bf16, channels_last,
compiled, batch 512, crops and flips on the device, label smoothing, a warm-up and half a cosine, averaged weights. Both
are cut and fine-tuned for 8 epochs, distilled from themselves. Stage 3 joins them to a cascade: gates fitted on the
validation images let sure ones stop at the small network. It trains nothing, unlike gates at blocks, which would need
as many FLOPs as stage 1 and have not paid (docs/dynamic.md).

WORK of a seed, counted, not measured. F is a forward pass; a step is 3 F, in stage 2 and 1 F of the teacher; an epoch
has 45,000 training images.
    stage 1, ResNet-32:             40 epochs x 45,000 x 3 x 2.2014 GFLOPs              11.9 PFLOP
    stage 1, ResNet-20:             40 epochs x 45,000 x 3 x 1.2954 GFLOPs               7.0 PFLOP
    stage 2, ResNet-32 to 0.51:      8 epochs x 45,000 x (3 x 0.51 + 2.2014) GFLOPs      1.3 PFLOP
    stage 2, ResNet-20 to 0.25:      8 epochs x 45,000 x (3 x 0.25 + 1.2954) GFLOPs      0.7 PFLOP
    all steps, bf16:                                                                    21.0 PFLOP
    validation twice an epoch, 5,000 images, and the figures at the end, fp32:           1.6 PFLOP
NEEDS, of 15 minutes: 4 are set aside for starts, compiling, measuring and cutting, and fp32 at 10 TFLOP/s takes 2.7.
The steps have 8.3 minutes: 42 TFLOP/s, 4.3 % of the 989 that such a GPU has in bf16. At 100 TFLOP/s all takes 10.2.

Images lie in the host's memory as bytes. Batches are sent ahead of the steps, 3 kB an image: at 20,000 images/s these
are 60 MB/s, a hundredth of what the bus carries, so keeping them on the device would spare nothing.

REHEARSED, not run: no such GPU was at hand. On a CPU all runs went through with these widths, depths and shares of the
FLOPs, and images of 8x8 (DATASET=digits RESIZE=8 BATCH=32 COMPILE=0 EPOCHS_SP=5 EPOCHS_PRUNE=1, the budgets as shares):
a 4,500th of the work. What the speed and the accuracies are on CIFAR-100 is open.

At the time limit runs end with their states saved, and the table is of what is finished. The same command goes on. What
the environment may change, with its default:
    RESULTS         results/fast
    MINUTES         15 for each seed; then it stops
    DATASET DATA_DIR DEVICE PRECISION       cifar100 (downloaded) data auto bf16
    SEEDS JOBS      0 1 (JOBS=2 trains both networks at a time, which hides the time of compiling)
    DEPTH SMALL_DEPTH WIDTH RESIZE          32 20 64 32
    BATCH COMPILE   512 1 (COMPILE=0: not; learning rates follow the batch)
    EPOCHS_SP EPOCHS_PRUNE                  40 8
    STATIC_FLOPS SMALL_FLOPS DYNAMIC_FLOPS  0.51e9 0.25e9 0.40e9 (a share of the dense FLOPs if <= 1)
    DRY_RUN         empty; 1 prints the commands and stops
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results_log import append_line, read_lines
from hybridprune.commands.grid import LOCK
from hybridprune.errors import Interrupted, RunFailed, UserError, run_command, signal_of
from hybridprune.grid.grid import Run
from hybridprune.grid.processes import run_processes
from hybridprune.grid.state import check, command, find
from hybridprune.grid.work import Outcome, Worker
from hybridprune.report.formats import render
from hybridprune.report.records import read_runs
from hybridprune.report.rows import build_rows
from hybridprune.stages.images import read_split
from hybridprune.store.lock import exclusive
from hybridprune.store.run_folder import RunFolder
from hybridprune.tables import Table

ROOT = Path(__file__).resolve().parent.parent
TIMES = "times.jsonl"
HEAD = ("Run", "Minutes", "of training", "PFLOP", "TFLOP/s")


@dataclass(frozen=True)
class Settings:
    """Settings of the row, from variables of the environment."""

    environment: Mapping[str, str]

    def __call__(self, name: str, default: str) -> str:
        """The value of a variable; an empty one is not there."""
        return self.environment.get(name) or default

    def number(self, name: str, default: str) -> float:
        """The value of a variable that holds a number above or at 0; UserError if it is none."""
        try:
            value = float(self(name, default))
        except ValueError:
            value = -1.0
        if not 0 <= value < math.inf:
            raise UserError(f"{name}={self(name, default)}: must be a number from 0, e.g. {default}")
        return value

    def count(self, name: str, default: str) -> int:
        """The whole number in a variable; what stands behind a point is left out."""
        return int(self.number(name, default))

    @property
    def results(self) -> Path:
        """The folder of all runs."""
        return Path(self("RESULTS", "results/fast"))

    @property
    def seeds(self) -> list[int]:
        """One row each; UserError if they are no whole numbers."""
        given = self("SEEDS", "0")
        if not re.fullmatch(r"\d+(,\d+)*", given):
            raise UserError(f"SEEDS={given}: must be whole numbers with commas between, e.g. 0,1,2")
        return [int(seed) for seed in given.split(",")]

    @property
    def images(self) -> dict[str, Any]:
        """Flags of all stages."""
        dataset = self("DATASET", "cifar100")
        return {
            "dataset": dataset,
            "data_dir": self("DATA_DIR", "data"),
            "download": dataset.startswith("cifar"),
            "resize": self.count("RESIZE", "32"),
            "device": self("DEVICE", "auto"),
        }

    def networks(self, seed: int) -> list[Run]:
        """Stages 1 and 2 of both networks, the small one first: parents before children."""
        batch, epochs = self.count("BATCH", "512"), self.count("EPOCHS_PRUNE", "8")
        made = []
        for experiment, depth, target in (
            ("small", self.count("SMALL_DEPTH", "20"), self.number("SMALL_FLOPS", "0.25e9")),
            ("default", self.count("DEPTH", "32"), self.number("STATIC_FLOPS", "0.51e9")),
        ):
            common = {
                **self.images,
                "depth": depth,
                "width": self.count("WIDTH", "64"),
                "gate": "none",
                "alpha": 0,
                "precision": self("PRECISION", "bf16"),
            }
            train = {
                **common,
                "epochs": self.count("EPOCHS_SP", "40"),
                "bs": batch,
                "lr": 0.1 * batch / 128,
                "scheduler_id": "cosine",
                "scheduler_params": {"0": 0.02, "0.1": 1, "1": 0},
                "label_smoothing": 0.1,
                "ema_decay": 0.995,
                "compile": "on" if self("COMPILE", "1") == "1" else "off",
            }
            cut = {
                **common,
                "config_path": str(ROOT / "config.json"),
                "target_flops": target,
                "epochs_start": epochs,
                "epochs_end": epochs,
                "bs": batch // 2,
                "lr": 0.03 * batch / 256,
                "ema_decay": 0.99,
            }
            parent = Run("sp", self.results, experiment, seed, tuple(train.items()), None)
            made += [parent, Run("prune", self.results, experiment, seed, tuple(cut.items()), parent)]
        return made

    def cascade(self, networks: Sequence[Run]) -> Run:
        """Stage 3, which joins the cut networks."""
        cuts = [run for run in networks if run.stage == "prune"]
        members = ",".join(str(found.path if (found := find(run).folder) else f"<{run.name}>") for run in cuts)
        flags = {
            **self.images,
            "routing": "cascade",
            "members": members,
            "target_flops": self.number("DYNAMIC_FLOPS", "0.40e9"),
        }
        return Run("rl", self.results, "default", cuts[0].seed, tuple(flags.items()), None)


def training_flops(stage: str, epochs: int, images: int, own: float, dense: float) -> float:
    """FLOPs of the steps of a run: 3 passes of ``own`` FLOPs an image and, in stage 2, one of its ``dense`` teacher."""
    return epochs * images * (3 * own + (dense if stage == "prune" else 0))


def times(runs: Sequence[Run], lines: Sequence[Mapping[str, Any]]) -> Table:
    """Minutes of each run in all its starts and, of a finished one, how fast it trained."""
    body = []
    for run in runs:
        minutes = sum(line["seconds"] for line in lines if line["run"] == run.name) / 60
        found = find(run)
        row = [run.name, f"{minutes:.1f}", "" if found.finished else "not finished", "", ""]
        if found.finished and found.folder is not None and run.stage != "rl":
            row[2:] = _training(found.folder)
        body.append(row)
    return Table(HEAD, "lrrrr", body)


def _training(folder: RunFolder) -> list[str]:
    result, images = folder.read_json("result.json"), len(read_split(folder).train)
    own, dense = 2 * result["macs"]["backbone"], 2 * result["dense"]["macs"]
    work, seconds = training_flops(result["stage"], result["epochs"], images, own, dense), result["seconds"]
    return [f"{seconds / 60:.1f}", f"{work / 1e15:.4g}", f"{work / 1e12 / seconds:.4g}" if seconds else ""]


def main() -> None:
    """All runs of all seeds, or as many as the time limit allows, and the tables."""
    settings = Settings(os.environ)
    results, minutes = settings.results, settings.number("MINUTES", str(15 * len(settings.seeds)))
    rows = [settings.networks(seed) for seed in settings.seeds]
    runs = [run for networks in rows for run in (*networks, settings.cascade(networks))]
    if settings("DRY_RUN", ""):
        print(*(shlex.join(command(run)) for run in runs), sep="\n")
        return
    for run in runs:  # what is refused is so before the first one starts
        check(run)
    started = time.monotonic()
    results.mkdir(parents=True, exist_ok=True)
    with exclusive(results, f"RESULTS {results}: another command is at work there; wait for it or end it", LOCK):
        late, failed = _work(settings, rows, minutes)
    if any(find(run).finished for run in runs):
        print(render(build_rows(read_runs(results)), "markdown"))
    print(times(runs, read_lines(results / TIMES)).markdown())
    print(f"{(time.monotonic() - started) / 60:.1f} minutes", file=sys.stderr)
    if failed:
        why = f"the limit of MINUTES={minutes:g} is reached" if late else f"{failed[0]} failed"
        raise RunFailed(f"{why}; give the same command to go on")


def _work(settings: Settings, rows: Sequence[Sequence[Run]], minutes: float) -> tuple[bool, Sequence[str]]:
    """Do what is left to do, row by row; give whether the time was over, and the names of runs that did not finish."""
    failed, late, worker = list[str](), threading.Event(), Worker()

    def stop() -> None:
        late.set()
        worker.stop()

    def tell(outcome: Outcome) -> None:
        append_line(settings.results / TIMES, {"run": outcome.run.name, "seconds": round(outcome.seconds, 1)})
        print(f"{outcome.run.name}: {outcome.error or 'finished'} ({outcome.seconds:.0f} s)", file=sys.stderr)
        if outcome.error:
            failed.append(outcome.run.name)

    def work(runs: Sequence[Run]) -> None:
        if not failed:
            todo = [run for run in runs if not find(run).finished]
            run_processes(todo, worker, tell, jobs=max(1, settings.count("JOBS", "1")))

    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True
    timer.start()
    try:
        for networks in rows:
            work(networks)
            work([settings.cascade(networks)])
    except KeyboardInterrupt as error:
        raise Interrupted("the runs' states are saved; give the same command to go on", signal_of(error)) from error
    finally:
        timer.cancel()
    return late.is_set(), failed


if __name__ == "__main__":
    sys.exit(run_command(main))
