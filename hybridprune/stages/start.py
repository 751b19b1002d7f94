"""The start of a run: it claims its folder, and finds there how far an earlier start has come."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hybridprune.config import Invocation, identity, to_json
from hybridprune.engine.progress import Progress
from hybridprune.errors import FULL, Interrupted, RunFailed, UserError, signal_of
from hybridprune.processes import bytes_from_first, is_first, json_from_first
from hybridprune.stages.console import say
from hybridprune.stages.setup import C, StageSetup
from hybridprune.store.claim import check_unfinished, claim
from hybridprune.store.run_folder import RunFolder, RunSpec

GO_ON = "give the same command with --resume to go on"


@contextmanager
def open_run(setup: StageSetup[C]) -> Iterator[tuple[RunFolder, StageSetup[C], bool]]:
    """Claim the run's folder and write its specification; gives the folder, the setup and whether it is resumed.

    The folder is this run's until the context is left. Of several processes, the first one claims it for all. A resumed
    run keeps its specification, whose edits may have grown. Raises Interrupted and RunFailed for what interrupts the
    run and leaves it to be resumed: signals, a full disk, and a reader of its output that has gone.
    """
    with ExitStack() as held:
        path, record, resumed = json_from_first(lambda: _claim_run(held, setup.invocation, setup.spec))
        say(f"run folder: {path}{' (resumed)' if resumed else ''}")
        try:
            claimed = dataclasses.replace(setup, spec=RunSpec.from_json(record))
            yield RunFolder(Path(path), writes=is_first()), claimed, resumed
        except KeyboardInterrupt as error:  # where no training answers it
            raise Interrupted(GO_ON, signal_of(error)) from error
        except BrokenPipeError as error:  # of a finished run there is nothing left to say
            if not RunFolder(Path(path)).finished:
                raise RunFailed(f"nobody reads this output any more; {GO_ON}") from error
            raise
        except OSError as error:
            if error.errno in FULL:
                raise RunFailed(f"{error}; make room, and {GO_ON}") from error
            raise


def refuse_unfinished(setup: StageSetup[Any]) -> None:
    """UserError if a run that is not to be resumed would find an unfinished one in its place."""
    check_unfinished(*_place(setup.invocation, setup.spec))


def _place(invocation: Invocation[Any], spec: RunSpec) -> tuple[Path, str]:
    """The folder of the experiment, and the name of the run in it."""
    run = invocation.config.run
    return Path(run.result_dir) / run.exp_name, f"{spec.dataset}-{spec.network.label}-{spec.stage}-seed{run.seed}"


def _claim_run(held: ExitStack, invocation: Invocation[Any], spec: RunSpec) -> tuple[str, dict[str, Any], bool]:
    config = invocation.config
    experiment, name = _place(invocation, spec)
    claimed = claim(experiment, name, to_json(config), identity(config), invocation.resume)
    run, resumed = held.enter_context(claimed)
    if resumed and (run.path / "spec.json").is_file():
        before = run.read_spec()
        if before.dataset_digest != spec.dataset_digest:
            raise UserError(f"--resume: {run.path} was started with other images; restore them, or name an --exp_name")
        spec = before
    else:
        run.write_json("spec.json", spec.to_json())
    return str(run.path), spec.to_json(), resumed


def saved_progress(run: RunFolder) -> tuple[Progress, dict[str, Any] | None]:
    """The progress of an earlier start of this run, with however many processes, or the beginning."""
    if not json_from_first(run.state_file.is_file):
        return Progress(), None
    state = run.load_state(bytes_from_first(run.state_file.read_bytes))
    assert state is not None
    return Progress(**state["progress"]), state
