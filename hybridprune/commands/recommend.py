"""The network or the cascade to ship at a budget: ``hybridprune recommend RESULTS``.

Reads the logits for the validation images that runs of stages 1 and 2 have stored, and the latencies of hybridprune
bench where there are any. Trains nothing but gates and opens no image, so it takes seconds. Tries all pairs and triples
of networks that rise in cost, and prints the best single network, the best pair and the best triple, and the command
that makes the winner. A cascade wins only if it is ahead beyond its interval; else it is all static.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hybridprune.commands.finished_run import CommandParser
from hybridprune.commands.member_runs import evaluated, member_runs
from hybridprune.commands.recommend_text import text
from hybridprune.commands.recommendation import recommend
from hybridprune.config import CutOptions, checked_value
from hybridprune.errors import UserError
from hybridprune.models.architectures import allow


def main(argv: Sequence[str], prog: str = "hybridprune recommend") -> None:
    """The command."""
    arguments = _parser(prog).parse_args(argv)
    target = checked_value(CutOptions, "target_flops", arguments.target_flops, "--target_flops")
    if arguments.batch_size < 1:
        raise UserError(f"--batch_size {arguments.batch_size}: must be at least 1")
    if arguments.network is not None:
        allow(arguments.network)
    members = member_runs(arguments.results, evaluated(arguments) if arguments.evaluate else None)
    print(text(recommend(members, target), arguments.results, arguments.data_dir))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=prog, description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder searched for runs at any depth")
    parser.add_argument(
        "--target_flops",
        type=float,
        required=True,
        help="budget of an image on average, gates counted: if <= 1 a share of the FLOPs of the dearest network among "
        "the runs before its cut, else FLOPs (2 x MACs); no default",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="run the networks that have no stored logits, as runs of older versions, and store them in their folders",
    )
    parser.add_argument(
        "--network",
        metavar="MODULE:FACTORY",
        help="--evaluate: a network of your own among the runs: a run by itself imports nothing (default: none)",
    )
    parser.add_argument(
        "--data_dir", help="where the images lie now, for --evaluate and the command (default: where they lay)"
    )
    parser.add_argument("--device", default="auto", help="--evaluate: of the networks, default: %(default)s")
    parser.add_argument("--batch_size", "--bs", type=int, default=128, help="--evaluate: default: %(default)s")
    return parser
