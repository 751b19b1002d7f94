"""The finished run that stages 2 and 3 start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridprune.config import PruneConfig, RlConfig
from hybridprune.config.name_list import joined_names
from hybridprune.data import Split
from hybridprune.errors import UserError
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.stages.console import say
from hybridprune.stages.images import read_split
from hybridprune.store.find import find_parent, named_parent
from hybridprune.store.run_folder import RunFolder, RunSpec


def subtask_of(run: RunFolder) -> list[str]:
    """The classes that a run knows, if not all; none if it knows all."""
    return run.read_json("config.json").get("classes") or []


@dataclass(frozen=True)
class Parent:
    """The finished run a stage starts from."""

    run: RunFolder
    spec: RunSpec
    net: GatedNetwork
    result: Mapping[str, Any]

    @staticmethod
    def load(config: PruneConfig | RlConfig, wanted: RunSpec, stage: str, also: tuple[str, ...]) -> Parent:
        """The run that ``checkpoint_file`` names, else the matching run of ``stage`` (`find_parent`); says which.

        A named run may be of one of the stages ``also``.
        """
        if config.parent.checkpoint_file is not None:
            run = named_parent(Path(config.parent.checkpoint_file), wanted, {stage, *also})
        else:
            run = find_parent(Path(config.run.result_dir), wanted, stage, config.run.seed, say)
        say(f"parent run: {run.path}")
        return Parent.of(run)

    def check_subtask(self, classes: Sequence[str]) -> None:
        """UserError if the parent knows some classes alone, and these are others."""
        own = subtask_of(self.run)
        if own and list(classes) != own:
            raise UserError(f"--classes: {self.run.path} is of a subtask; give --classes {joined_names(own)}")

    @staticmethod
    def of(run: RunFolder) -> Parent:
        """A finished run; UserError if it is of a cascade, or broken."""
        net, spec = run.load_gated()
        # What the next run's own result is made of at its end, checked now.
        for name in ("dense.macs", "dense.params"):
            run.result(name, int, low=1)
        for name in ("group", "model_sha256"):
            run.result(name, str)
        return Parent(run, spec, net, run.read_json("result.json"))

    def split(self) -> Split:
        """The parent's validation split, which every descendant inherits."""
        return read_split(self.run)
