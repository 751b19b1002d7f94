"""Runs of a grid file (pure).

A grid is a JSON object. All keys but one stage are optional::

    {
      "result_dir": "results/sweep",      where the run folders lie (default: results)
      "exp_name": "default",              what the experiments' names begin with
      "seeds": [0, 1, 2],                 default: [0]; each run of a later stage starts from its own seed's
      "common": {"width": 16},            flags of every stage
      "sp": {"epochs": 14},               flags of stage 1 (hybridprune train, main_sp.py)
      "prune": {"target_flops": [0.5, 0.25], "config_path": "config.json"},
      "rl": {"alpha": [0.5, 1.0]}
    }

Flags are written without dashes. A list is swept: every element of it with every other choice, and each stage is run
once for every run of the stage before it. true and false stand for ``--flag`` and ``--no-flag``, null leaves the flag
out; a list that is itself a value (``exclude``, ``iter_epochs``) is written as text, ``"a,b"``. Stage 3 starts from
stage 2 or, without one, from stage 1; the first stage that the grid has finds its parent, if it needs one, as it does
by itself.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridprune.config import SCRIPTS
from hybridprune.config.experiment import swept_name, value_text
from hybridprune.errors import UserError
from hybridprune.json_text import read_json

STAGES = tuple(SCRIPTS)
KEYS = ("result_dir", "exp_name", "seeds", "common", *STAGES)
OWN = {"seed": "seeds", "exp_name": "exp_name", "result_dir": "result_dir"}
"""Flags that the grid sets by keys of its own."""
REFUSED = ("resume", "dry-run", "dry_run", "print-config", "print_config")
Flags = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of one stage, and the run that it starts from, if the grid has it."""

    stage: str
    result_dir: Path
    experiment: str
    seed: int
    flags: tuple[tuple[str, Any], ...]
    parent: Run | None

    @property
    def name(self) -> str:
        """The run's name in messages; no other run of the grid has it."""
        return f"{self.experiment} {self.stage} seed {self.seed}"

    @property
    def arguments(self) -> list[str]:
        """The stage's command line, but for its parent."""
        listed = [word for key, value in self.flags for word in _words(key, value)]
        return [*listed, "--result_dir", str(self.result_dir), "--exp_name", self.experiment, "--seed", str(self.seed)]


def read_grid(path: Path) -> list[Run]:
    """The runs of a grid file, parents before children; UserError if it cannot be read or is no grid."""
    try:
        grid = read_json(path)
    except OSError as error:
        raise UserError(f"GRID {path}: cannot be read ({error.strerror}); name an existing JSON file") from error
    except ValueError as error:
        raise UserError(f"GRID {path}: not valid JSON ({error}); mend that place") from error
    try:
        return list(runs(grid))
    except ValueError as error:
        raise UserError(f"GRID {path}: {error}") from error


def runs(grid: Any) -> Iterator[Run]:
    """All runs, parents before children; raises ValueError on what is no grid."""
    if not isinstance(grid, dict):
        raise ValueError("must hold one JSON object")
    for key in grid:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            raise ValueError(
                f"unknown key {key!r}{f', did you mean {close[0]}?' if close else ''}; the keys are {', '.join(KEYS)}"
            )
    stages = [stage for stage in STAGES if stage in grid]
    if not stages:
        raise ValueError(f'has none of the stages {", ".join(STAGES)}; give the flags of at least one, e.g. "sp": {{}}')
    result_dir, base, seeds = grid.get("result_dir", "results"), grid.get("exp_name", "default"), grid.get("seeds", [0])
    if not isinstance(result_dir, str) or not result_dir:
        raise ValueError(f"result_dir {json.dumps(result_dir)}: must be the name of a folder")
    if not isinstance(base, str) or not base or "/" in base:
        raise ValueError(f"exp_name {json.dumps(base)}: must be a name without /")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds {json.dumps(seeds)}: must be a list of whole numbers from 0, e.g. [0, 1, 2]")
    _no_repeats("seeds", seeds)
    sections = {name: _section(grid, name, first=name == stages[0]) for name in ("common", *stages)}
    for common, seed in itertools.product(_choices("", sections["common"]), seeds):
        parents: list[tuple[Run | None, tuple[str, ...]]] = [(None, common.labels)]
        for stage in stages:
            made = []
            for (parent, labels), choice in itertools.product(parents, list(_choices(f"{stage}.", sections[stage]))):
                swept = (*labels, *choice.labels)
                flags = tuple({**dict(common.flags), **dict(choice.flags)}.items())
                run = Run(stage, Path(result_dir), swept_name(base, swept), seed, flags, parent)
                made.append((run, swept))
                yield run
            parents = list(made)


@dataclass(frozen=True)
class _Choice:
    flags: tuple[tuple[str, Any], ...]
    labels: tuple[str, ...]
    """The swept ones in words."""


def _section(grid: Mapping[str, Any], name: str, first: bool) -> Flags:
    section = grid.get(name, {})
    if not isinstance(section, dict):
        raise ValueError(f"{name} {json.dumps(section)}: must be an object of flags and values")
    for key, value in section.items():
        if key in OWN:
            raise ValueError(f"{name}: {key} is set by the grid's own key {OWN[key]}; put it there")
        if key in REFUSED:
            raise ValueError(f"{name}: {key} is up to the sweep; leave it out")
        if key == "checkpoint_file" and not first:
            raise ValueError(f"{name}: checkpoint_file is the run of the stage before; leave it out")
        if isinstance(value, list):
            if not value or any(isinstance(each, list) for each in value):
                raise ValueError(
                    f"{name}: {key} {json.dumps(value)}: must be a value or a list of values to sweep over"
                )
            _no_repeats(f"{name}: {key}", value)
    return section


def _no_repeats(where: str, values: list[Any]) -> None:
    texts = [value_text(value) for value in values]
    if len(set(texts)) < len(texts):
        raise ValueError(f"{where} {json.dumps(values)}: holds a value twice; remove one")


def _choices(prefix: str, section: Flags) -> Iterator[_Choice]:
    """Every combination of a section's lists."""
    lists = [value if isinstance(value, list) else [value] for value in section.values()]
    for values in itertools.product(*lists):
        pairs = tuple(zip(section, values, strict=True))
        swept = [key for key, value in section.items() if isinstance(value, list) and len(value) > 1]
        yield _Choice(pairs, tuple(f"{prefix}{key}={value_text(value)}" for key, value in pairs if key in swept))


def _words(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    return [] if value is None else [f"--{key}", value_text(value)]
