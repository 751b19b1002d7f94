"""The engine for clusters: Ray Tune schedules the runs of one stage after the other. The extra ``sweep``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hybridprune.errors import UserError
from hybridprune.grid.grid import STAGES, Run
from hybridprune.grid.work import Outcome, Tell, Worker


def need_ray() -> None:
    """UserError if Ray Tune is not installed."""
    try:
        import ray.tune  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f'--engine ray: Ray Tune is not installed ({error}); pip install "hybridprune[sweep]", or use processes'
        ) from error


def run_ray(
    todo: Sequence[Run], tell: Tell, *, jobs: int, cpus: float, gpus: float, processes: int, threads: int | None
) -> None:
    """Run all of ``todo``; one that fails takes only those along that start from it.

    A run is a trial that holds ``cpus`` and ``gpus``; ``processes`` and ``threads`` are those of its `Worker`. On
    several nodes, all of them see this folder, ``result_dir`` and the images under the same names. Ray's own files lie
    where Ray puts them (by default in ~/ray_results) and can be deleted: what resumes are the run folders.
    """
    from ray import tune  # pyright: ignore[reportMissingImports]

    home = os.getcwd()
    finished = {run.name for run in _parents(todo) if run not in todo}
    for stage in STAGES:
        wave = [r for r in todo if r.stage == stage and (r.parent is None or r.parent.name in finished)]
        if not wave:
            continue

        def trial(config: dict[str, Any], wave: list[Run] = wave) -> dict[str, Any]:
            os.chdir(home)  # Ray's workers live elsewhere, and the grid's paths are relative to here
            outcome = Worker(processes, threads)(wave[config["run"]])
            return {"run": config["run"], "error": outcome.error, "run_seconds": outcome.seconds}

        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": cpus, "gpu": gpus}),
            param_space={"run": tune.grid_search(list(range(len(wave))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=jobs),
            run_config=tune.RunConfig(verbose=0),
        )
        for result in tuner.fit():
            metrics, config = result.metrics or {}, result.config or {}
            run = wave[config["run"]]
            error = str(result.error) if result.error else metrics["error"]
            if not error:
                finished.add(run.name)
            tell(Outcome(run, error, metrics.get("run_seconds", 0.0)))


def _parents(runs: Sequence[Run]) -> list[Run]:
    return [run.parent for run in runs if run.parent is not None]
