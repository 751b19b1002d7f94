"""Finding run folders: the parent to start from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from hybridprune.config import SCRIPTS, SUBCOMMANDS
from hybridprune.errors import UserError
from hybridprune.json_text import short
from hybridprune.store.run_folder import RunFolder, RunSpec


class FoundRun(NamedTuple):
    """A finished run that may be a parent."""

    run: RunFolder
    spec: RunSpec
    seed: int
    modified: float
    """When it was finished, in seconds."""


def runs_under(folder: Path, tell: Callable[[str], object]) -> Iterator[FoundRun]:
    """All finished runs below ``folder``; ``tell`` is given a line for each that cannot be read."""
    for path in sorted(folder.rglob("result.json")):
        run = RunFolder(path.parent)
        try:
            seed = run.read_json("result.json").get("seed")
            if type(seed) is not int:
                raise UserError(f"{path}: seed is {short(seed)}, not a whole number")
            candidate = FoundRun(run, run.read_spec(), seed, path.stat().st_mtime)
        except (UserError, OSError) as error:
            tell(f"warning: {run.path} is passed over: {error}")
            continue
        yield candidate


def find_parent(result_dir: Path, wanted: RunSpec, stage: str, seed: int, tell: Callable[[str], object]) -> RunFolder:
    """The finished run of ``stage`` that matches ``wanted`` and is the only one of this ``seed``, else the newest.

    It has the same data set and, but for edits, the same network. ``tell`` is given a line for each run that cannot be
    read. Raises UserError if there is none, or if those that match differ in their seeds and it is not one alone that
    has this one.
    """
    matches: list[tuple[float, int, RunFolder]] = []
    others: list[str] = []
    for run, spec, its_seed, modified in runs_under(result_dir, tell):
        if spec.stage != stage:
            continue
        difference = _difference(spec, wanted)
        if difference is None:
            matches.append((modified, its_seed, run))
        else:
            others.append(f"{run.path} has {difference}")
    if not matches:
        closest = f" ({others[-1]})" if others else ""
        raise UserError(
            f"--result_dir {result_dir}: no finished run to start from{closest}; run hybridprune {SUBCOMMANDS[stage]} "
            f"({SCRIPTS[stage]}) first, or name a run with --checkpoint_file"
        )
    same = [run for _, other, run in matches if other == seed]
    if len(same) == 1:
        return same[0]
    seeds = sorted({other for _, other, _ in matches})
    if len(seeds) > 1:
        raise UserError(
            f"--result_dir {result_dir}: runs of seeds {', '.join(map(str, seeds))} match, "
            f"{len(same) or 'none'} of --seed {seed}; choose one with --checkpoint_file, e.g. "
            f"{(same or [matches[-1][2]])[-1].path}"
        )
    return max(matches, key=lambda match: match[0])[2]


def named_parent(checkpoint_file: Path, wanted: RunSpec, stages: Collection[str]) -> RunFolder:
    """The run that ``checkpoint_file`` (its folder or its model.safetensors) names.

    Raises UserError if it is missing, does not match ``wanted`` or is not of one of ``stages``.
    """
    path = checkpoint_file if checkpoint_file.is_dir() else checkpoint_file.parent
    if not checkpoint_file.exists():
        raise UserError(f"--checkpoint_file {checkpoint_file}: no such run; name a run folder or its model.safetensors")
    run = RunFolder(path)
    spec = run.read_spec()
    difference = _difference(spec, wanted)
    if spec.stage not in stages:
        difference = f"stage {spec.stage}, not {' or '.join(sorted(stages))}"
    if difference is not None:
        raise UserError(f"--checkpoint_file {checkpoint_file}: that run has {difference}; name a matching run")
    return run


def _difference(spec: RunSpec, wanted: RunSpec) -> str | None:
    """What keeps ``spec`` from being a parent of ``wanted``, in words, or None."""
    if spec.network.network != wanted.network.network:
        return f"network {spec.network.network}, not {wanted.network.network}"
    theirs, ours = spec.network.arguments, wanted.network.arguments
    default = "its factory's default"
    for label, there, here in (
        *((name, theirs.get(name, default), ours.get(name, default)) for name in theirs | ours),
        ("data set", spec.dataset, wanted.dataset),
        ("input size", spec.input_size, wanted.input_size),
    ):
        if there != here:
            return f"{label} {there}, not {here}"
    if spec.dataset_digest != wanted.dataset_digest:
        return f"been trained on other images of {spec.dataset}"
    return None
