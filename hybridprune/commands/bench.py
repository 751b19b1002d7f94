"""Latencies of the stages' networks, side by side: ``hybridprune bench RUN``.

Times the dense ancestor, the run's statically pruned ancestor, the run and the run as deployed on the same test images:
eager, compiled, in ONNX Runtime and, with --int8, quantised there. A cascade's ancestors are those of its dearest
member. All take turns, so that what disturbs the machine disturbs all of them alike. The predicted speed-up is that of
the FLOPs, the realised one that of the medians, both over the dense network in the same form. What is predicted of the
deployed network is what the run promised: deploying may spend more FLOPs to save time. Memory is that of the weights
and the most that tensors between layers take at once; what kernels need beside is not in it. Prints what was gained in
one sentence, then a table for each batch size, and writes bench.json into RUN (over an older one), which the report
reads. Energy is not claimed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from hybridprune.commands.bench_arms import Bench
from hybridprune.commands.bench_rows import markdown
from hybridprune.commands.bench_sentence import sentence
from hybridprune.commands.finished_run import FinishedRun, Parser
from hybridprune.deployment.onnx import need_onnx
from hybridprune.engine.device import device_of
from hybridprune.errors import UserError
from hybridprune.report.bench import FILE
from hybridprune.stages.console import say
from hybridprune.store.files import write_json

FORMS = ("eager", "compiled", "onnx")


def main(argv: Sequence[str], prog: str = "python -m hybridprune.bench") -> None:
    """The command."""
    parser = Parser(__doc__, prog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batch", metavar="N", type=int, nargs="+", default=[1, 32, 128], help="batch sizes, default: 1 32 128"
    )
    threads = torch.get_num_threads()
    parser.add_argument("--threads", metavar="N", type=int, default=threads, help="of the CPU, default: %(default)s")
    parser.add_argument(
        "--forms",
        metavar="FORM",
        nargs="+",
        choices=FORMS,
        help='eager, compiled, onnx (CPUs only; pip install "hybridprune[deploy]"); default: eager and, on a CPU with '
        "its packages, onnx",
    )
    parser.add_argument(
        "--int8", action="store_true", help="also quantise for ONNX Runtime, with its accuracy and size"
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=15, help="measurements of each median (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    for flag in ("threads", "rounds"):
        if getattr(arguments, flag) < 1:
            raise UserError(f"--{flag} {getattr(arguments, flag)}: must be at least 1")
    if min(arguments.batch) < 1:
        raise UserError(f"--batch {min(arguments.batch)}: must be at least 1")
    device = device_of(arguments.device)
    forms = _forms(arguments.forms, arguments.int8, device)
    arguments.batch_size = max(arguments.batch)
    torch.set_num_threads(arguments.threads)
    run = FinishedRun.load(arguments)
    run.need_deployable()
    run.run.refuse_links(FILE)
    bench = Bench(run, forms, arguments.int8, arguments.rounds, arguments.threads)
    dense, own = bench.accuracies()
    tables = [bench.table(batch) for batch in dict.fromkeys(arguments.batch)]
    write_json(run.run.path / FILE, tables)
    print(f"{sentence(tables, dense, own)}\n")
    for table in tables:
        print(markdown(table))
    say(f"written: {run.run.path / FILE}")


def _forms(given: Sequence[str] | None, int8: bool, device: torch.device) -> tuple[str, ...]:
    """The forms to time. UserError where one that was asked for cannot be; others are skipped, which is told."""
    for flag, wanted in (("--int8", int8), ("--forms onnx", "onnx" in (given or ()))):
        if wanted and device.type != "cpu":  # its times would stand beside those of the GPU as if they were its own
            raise UserError(
                f"{flag}: ONNX Runtime is timed on CPUs only, not on {device}; leave it out or give --device cpu"
            )
        if wanted:
            need_onnx(flag)
    if given:
        return tuple(given)
    if device.type != "cpu":
        return ("eager",)
    try:
        need_onnx("onnx")
    except UserError as error:
        say(f"skipped {error}")
        return ("eager",)
    return ("eager", "onnx")
