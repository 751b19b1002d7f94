"""The stages as subcommands of ``hybridprune``: the functions of ``main_*.py``, with a help in two lengths."""

from __future__ import annotations

from collections.abc import Sequence

from hybridprune.config import PruneConfig, RlConfig, SpConfig, config_here, help_text
from hybridprune.stages import prune as stage_2
from hybridprune.stages import rl_prune as stage_3
from hybridprune.stages import sp as stage_1

EVERY_STAGE = ("dataset", "data_dir", "network", "depth", "width")
TRAIN = (*EVERY_STAGE, "epochs", "lr", "bs", "alpha", "seed")
PRUNE = (*EVERY_STAGE, "checkpoint_file", "method", "target_flops", "epochs_start", "epochs_end")
ROUTE = (*EVERY_STAGE, "checkpoint_file", "target_flops", "epochs", "lr", "alpha")
"""The ten options of each stage that ``--help`` shows."""


def train(argv: Sequence[str], prog: str) -> None:
    """Stage 1, ``main_sp.py``."""
    if not _helped(argv, SpConfig(), prog, stage_1.DESCRIPTION, None, TRAIN):
        stage_1.main(_in_full(argv), prog)


def prune(argv: Sequence[str], prog: str) -> None:
    """Stage 2, ``main_prune.py``; a ``config.json`` in the working folder is read, but none has to be there."""
    path = config_here()
    if not _helped(argv, PruneConfig(), prog, stage_2.DESCRIPTION, path, PRUNE):
        stage_2.main(_in_full(argv), prog, path)


def route(argv: Sequence[str], prog: str) -> None:
    """Stage 3, ``main_rl_prune.py``."""
    if not _helped(argv, RlConfig(), prog, stage_3.DESCRIPTION, None, ROUTE):
        stage_3.main(_in_full(argv), prog)


def _helped(
    argv: Sequence[str],
    config: SpConfig | PruneConfig | RlConfig,
    prog: str,
    description: str,
    config_path: str | None,
    only: Sequence[str],
) -> bool:
    """Whether the short help was asked for, which is then printed."""
    wanted = "--help" in argv or "-h" in argv
    if wanted:
        print(help_text(config, prog=prog, description=description, config_path=config_path, only=only), end="")
        print(f"\nThese are the options that matter most; {prog} --help-all shows all of them, in groups.")
    return wanted


def _in_full(argv: Sequence[str]) -> list[str]:
    """The words with ``--help-all`` as the stages spell it."""
    return ["--help" if word == "--help-all" else word for word in argv]
