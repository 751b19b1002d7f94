"""The three stages on the embedded digits, in minutes, and the table of what they gained.

Two networks are trained and cut. Images that the small one is sure of stop there, the others go on to the large one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hybridprune.config.name_list import joined_names
from hybridprune.errors import UserError
from hybridprune.report import command as report
from hybridprune.stages import prune, rl_prune, sp
from hybridprune.stages.console import say

DEPTHS = "8", "14"
COMMON = "--dataset digits --resize 16 --width 16 --bs 64 --scheduler_id up-down"
TRAIN = '--epochs 12 --lr 0.1 --alpha 0.1 --scheduler_params {"0":0.2,"0.2":1,"1":0}'
PRUNE = (
    "--target_flops 0.5 --epochs_start 6 --epochs_end 6 --lr 0.02 --alpha 0.1 --curvature_images 1024 "
    '--scheduler_params {"0":0.2,"0.2":1,"1":0}'
)
ROUTE = "--routing cascade --target_flops 0.35"
PAGE = "report.html"
OWN = {"default", PAGE}
"""What the demo itself leaves in its folder."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: Sequence[str], prog: str = "hybridprune demo") -> None:
    """The command. A demo that was stopped goes on where it was."""
    parser = _Parser(
        prog=prog,
        description=__doc__,
        epilog="All other flags go to every stage, for example --device cuda:0 or --seed 1.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        default="demo_results",
        help="where the runs and the page lie, made if it is missing (default: %(default)s)",
    )
    arguments, others = parser.parse_known_args(argv)
    folder = Path(arguments.folder)
    _check(folder)
    common = [*COMMON.split(), *others, "--result_dir", str(folder), "--resume"]
    for number, (stage, own) in enumerate(((sp.main, TRAIN), (_prune, PRUNE)), 1):
        for depth in DEPTHS:
            say(f"stage {number} of 3, ResNet-{depth}")
            stage([*own.split(), *common, "--depth", depth], prog)
    say("stage 3 of 3")
    members = joined_names(_cut(folder, depth) for depth in DEPTHS)
    rl_prune.main([*ROUTE.split(), *common, "--members", members], prog)
    report.main([str(folder), "--html", str(folder / PAGE)], prog)
    report.main([str(folder)], prog)
    print(f"the page: {folder / PAGE}")


def _prune(argv: Sequence[str], prog: str) -> None:
    """Stage 2, whatever ``config.json`` the working folder has."""
    prune.main(argv, prog, None)


def _cut(folder: Path, depth: str) -> str:
    """The newest run of stage 2 of this depth."""
    finished = (folder / "default").glob(f"*-resnet{depth}-*-prune-*/result.json")
    return str(max(finished, key=lambda path: path.stat().st_mtime).parent)


def _check(folder: Path) -> None:
    """UserError if ``folder`` holds anything but a demo."""
    try:
        strange = sorted({path.name for path in folder.iterdir()} - OWN) if folder.exists() else []
    except OSError as error:
        raise UserError(f"FOLDER {folder}: cannot be read ({error.strerror}); name another folder") from error
    if strange:
        raise UserError(f"FOLDER {folder}: holds {strange[0]}, which is no part of a demo; name a new folder")
