"""State of each run of a grid, by what lies in its folder, and the command that takes it further."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hybridprune.config import SUBCOMMANDS, PruneConfig, RlConfig, SpConfig, config_here, identity, resolve, to_json
from hybridprune.errors import UserError
from hybridprune.grid.grid import Run
from hybridprune.json_text import short
from hybridprune.store.run_folder import RunFolder

DEFAULTS = {"sp": SpConfig(), "prune": PruneConfig(), "rl": RlConfig()}


@dataclass(frozen=True)
class Found:
    """A run's folder, if there is one, and whether it is finished."""

    folder: RunFolder | None

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.folder is not None and self.folder.finished


def find(run: Run) -> Found:
    """The folder of ``run``; UserError if several could be it."""
    # Names begin with data set and network, which only the stage itself knows.
    experiment = run.result_dir / run.experiment
    folders = sorted(path for path in experiment.glob(f"*-{run.stage}-seed{run.seed}") if path.is_dir())
    if len(folders) > 1:
        raise UserError(
            f"{experiment}: both {folders[0].name} and {folders[1].name} could be {run.name}; move one away"
        )
    return Found(RunFolder(folders[0]) if folders else None)


def check(run: Run) -> Found:
    """Resolve the run's flags as its stage will, and compare them with what lies in its folder.

    Raises UserError on a flag that the stage refuses, and on a run that was made with other settings.
    """
    default, path = DEFAULTS[run.stage], config_here() if run.stage == "prune" else None
    try:
        invocation = resolve(default, run.arguments, prog=SUBCOMMANDS[run.stage], description="", config_path=path)
    except UserError as error:
        raise UserError(f"GRID, {run.stage}: {error}") from error
    if invocation.several is not None:
        raise UserError(
            f"GRID, {run.stage}: {path} has several values of {invocation.several.name}; give that list in the grid"
        )
    found = find(run)
    if found.folder is not None and (found.folder.path / "config.json").is_file():
        wanted, stored = to_json(invocation.config), found.folder.read_json("config.json")
        for key in sorted(identity(invocation.config)):
            if stored.get(key) != wanted[key]:
                raise UserError(
                    f"{found.folder.path} was made with {key} = {short(stored.get(key))}, "
                    f"the grid has {wanted[key]!r}; give the same value, or choose another exp_name"
                )
    _check_parent(run, found)
    return found


def _check_parent(run: Run, found: Found) -> None:
    """UserError if ``run`` was made from another run than the one that lies there now."""
    if run.parent is None or not found.finished or found.folder is None:
        return
    parent, stored = find(run.parent), found.folder.read_json("result.json").get("parent")
    known = parent.folder.read_spec().run_id if parent.folder is not None and parent.finished else None
    if not isinstance(stored, dict) or stored.get("run_id") != known:
        raise UserError(
            f"{found.folder.path} was made from another run than {run.parent.name} is now; restore that one, or move "
            "this one away"
        )


def command(run: Run, *, processes: int = 1, device: str | None = None) -> list[str]:
    """The command that starts ``run`` or goes on with it; torchrun where it has several processes."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    start += ["-m", "hybridprune", SUBCOMMANDS[run.stage]]
    # Without a folder, --resume begins a new run.
    return [*start, *run.arguments, *_parent(run), *(("--device", device) if device else ()), "--resume"]


def _parent(run: Run) -> Sequence[str]:
    if run.parent is None:
        return ()
    found = find(run.parent)
    # Before it has been run, a pattern stands for its folder.
    pattern = run.parent.result_dir / run.parent.experiment / f"*-{run.parent.stage}-seed{run.parent.seed}"
    return "--checkpoint_file", str(found.folder.path if found.folder else pattern)
